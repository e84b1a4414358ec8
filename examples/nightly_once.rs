//! A nightly job on three replicas: each night it runs once, although the clocks of the replicas
//! are minutes apart and one of them is killed at work.
//!
//! The nights are a second long. Each replica is a process of its own. Its clock is minutes fast or
//! slow, and it prints its time beside its work. A lock alone would not help here: each replica
//! would come at its own three o'clock, and find the lock free.
//!
//! ```console
//! $ cargo run --release -p leasehold-examples --example nightly_once
//! $ cargo run --release -p leasehold-examples --example nightly_once --features redis -- \
//! >     --url redis://127.0.0.1/
//! ```
//!
//! Without `--url` the lock and its record are files and need no server. The exit code is 1 if a
//! night was run twice, or was lost.

use std::{
    error::Error,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Parser;
use leasehold::{
    LockClient, Ttl,
    once::{Every, Missed, Occurrence, Once, Run, RunState},
};
use leasehold_examples::start_self;
use tokio::{process::Child, sync::mpsc};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const NIGHT: Duration = Duration::from_secs(1);
/// How many seconds the clock of each replica is fast.
const CLOCKS: [i64; 3] = [0, 180, -120];
/// How many nights are run before the program ends.
const NIGHTS: u64 = 6;
/// The output of a replica that waits to be killed: the first attempt of every sixth night.
const STUCK: &str = "in the middle of its work is replica";

/// Runs a nightly job on three replicas.
#[derive(Debug, Parser)]
#[command(name = "nightly_once")]
struct Args {
    /// URL of the backend, which must keep records and whose feature must be compiled in [default:
    /// files in a temporary directory]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The name of the job; used by the program to start a replica
    #[arg(long, hide = true)]
    job: Option<String>,
    /// The number of the replica; used by the program to start one
    #[arg(long, hide = true, default_value_t = 0)]
    replica: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = match (&args.url, &args.job) {
        (Some(url), Some(job)) => replica(url, job, args.replica).await,
        (url, _) => replicas(url.as_deref()).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nightly_once: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the job. All replicas have the same schedule and the same policies.
fn nightly(client: &LockClient, job: &str) -> Result<Once> {
    // The work of a killed replica is taken over after this time, on most servers.
    let ttl = Ttl::from_secs(2)?.max(client.capabilities().min_ttl);
    Ok(client
        .once(job)
        .with_schedule(Every::new(NIGHT)?)
        // A night that nobody could run in time is made up for.
        .with_missed(Missed::All { limit: 100 })
        .with_ttl(ttl))
}

/// Runs the job for as long as the process lives.
async fn replica(url: &str, job: &str, number: usize) -> Result<()> {
    let client = leasehold::connect(url).await?;
    let once = nightly(&client, job)?;
    once.serve(async |run: Run| {
        println!(
            "replica {number}, whose clock shows {}, begins night {} (attempt {})",
            clock(SystemTime::now(), CLOCKS[number]),
            night(run.occurrence()),
            run.attempt()
        );
        if night(run.occurrence()).is_multiple_of(NIGHTS) && run.attempt() == 1 {
            println!("{STUCK} {number}");
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(NIGHT / 4).await;
        Ok::<_, std::io::Error>(())
    })
    .await?;
    Ok(())
}

/// Starts three replicas, kills one of them at work, and checks the history.
async fn replicas(url: Option<&str>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = url.map_or_else(
        || format!("file:{}", folder.path().display()),
        str::to_owned,
    );
    let job = format!("nightly/{}", std::process::id());
    let (lines, mut begun) = mpsc::unbounded_channel();
    let mut running: Vec<Child> = Vec::new();
    for number in 0..CLOCKS.len() {
        let replica = number.to_string();
        let (child, mut output) =
            start_self(["--url", &url, "--job", &job, "--replica", &replica])?;
        let lines = lines.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = output.next_line().await {
                drop(lines.send((number, line)));
            }
        });
        running.push(child);
    }
    drop(lines);

    let (mut begins, mut killed_at) = (0, None);
    // One night begins after the other, so the second attempt has ended once the next night begins.
    while begins <= NIGHTS || killed_at.is_none_or(|at| begins < at + 2) {
        let line = tokio::time::timeout(NIGHT * 60, begun.recv()).await?;
        let (number, line) = line.ok_or("all replicas have ended")?;
        if !line.starts_with(STUCK) {
            begins += 1;
            println!("{line}");
        } else {
            println!("replica {number} is killed in the middle of its work");
            running[number].kill().await?;
            killed_at = Some(begins);
        }
    }
    for child in &mut running {
        child.kill().await?;
    }
    check(&leasehold::connect(&url).await?, &job).await
}

/// Checks that each night ran to its end once, and that one of them needed a second attempt.
async fn check(client: &LockClient, job: &str) -> Result<()> {
    let history = nightly(client, job)?.history().await?;
    client.close().await?;
    let mut runs = history.runs;
    runs.reverse();
    let nights: Vec<u64> = runs.iter().map(|run| night(&run.occurrence)).collect();
    if nights.windows(2).any(|pair| pair[1] != pair[0] + 1) {
        return Err(format!("a night was lost or run twice: {nights:?}").into());
    }
    let complete = runs.iter().filter(|run| run.state == RunState::Ok);
    let (complete, crashes) = complete.fold((0_u64, 0), |(complete, crashes), run| {
        (complete + 1, crashes + run.crashes)
    });
    println!("{complete} nights ran once each, {crashes} of them after a crash");
    if complete + 2 < NIGHTS || crashes != 1 {
        return Err(format!("that is not what happened: {runs:#?}").into());
    }
    Ok(())
}

/// Returns the number of a night.
fn night(occurrence: &Occurrence) -> u64 {
    match occurrence {
        Occurrence::At(at) => {
            let since = at
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            since.as_secs() / NIGHT.as_secs() % 10_000
        }
        Occurrence::Named(_) => 0,
    }
}

/// Returns the time of day of a clock that is fast by some seconds.
fn clock(now: SystemTime, fast: i64) -> String {
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let second = since.as_secs().saturating_add_signed(fast) % 86_400;
    format!(
        "{:02}:{:02}:{:02}",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}
