//! A leader among four processes: the leader is killed or resigns, another one takes over, and an
//! observer sees each of them.
//!
//! Each process is a candidate. The one that leads writes its name and its fencing token to a
//! journal, again and again. The program waits until the observer shows a leader. It kills two of
//! them at work, and asks two to resign. It ends when all of them have led.
//!
//! ```console
//! $ cargo run --release -p leasehold-examples --example leader
//! $ cargo run --release -p leasehold-examples --example leader --features redis -- \
//! >     --url redis://127.0.0.1/
//! ```
//!
//! Without `--url` the election needs no server: its lock and the value of the leader are files.
//!
//! The journal refuses a token that is smaller than the last one. Without this, a leader that was
//! paused could write after its successor, because it learns of the loss only when it reads the
//! clock. A leader that was refused, and whose term still holds by the clock, is a second leader at
//! the same time. The exit code is 1 if that is ever seen, if the observer shows an older leader
//! after a newer one, or if it shows another name than the one that wrote with the same token.

use std::{
    collections::BTreeMap,
    error::Error,
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{Read, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use leasehold::{Election, FencingToken, Leader, Leaders, LockClient, TermInfo, Ttl};
use leasehold_examples::start_self;
use tokio::{
    process::Child,
    task::JoinSet,
    time::{sleep, timeout},
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const CANDIDATES: usize = 4;
/// The time between two lines that a leader writes.
const STEP: Duration = Duration::from_millis(10);
/// The time for which the program lets a leader work.
const WORK: Duration = Duration::from_millis(300);
/// Only a failure of all candidates takes longer.
const LONGEST_VACANCY: Duration = Duration::from_secs(60);
/// The output of a candidate that sees another leader at the same time.
const TWO_LEADERS: &str = "two leaders";

/// Elects a leader among several processes, and shows who leads.
#[derive(Debug, Parser)]
#[command(name = "leader")]
struct Args {
    /// URL of the backend, which must keep records and whose feature must be compiled in [default:
    /// files in a temporary directory]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The folder of the journal; used by the program to start a candidate
    #[arg(long, hide = true)]
    place: Option<PathBuf>,
    /// The number of the candidate; used by the program to start one
    #[arg(long, hide = true, default_value_t = 0)]
    candidate: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.place {
        Some(place) => candidate(&args, place).await.map(|()| true),
        None => observe(&args).await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("leader: {error}");
            ExitCode::from(2)
        }
    }
}

/// The file that the leaders write. Each line is a fencing token and a name.
struct Journal(PathBuf);

impl Journal {
    /// Writes a line, unless a leader with a larger token has written before. Returns whether the
    /// line was written.
    fn write(&self, token: FencingToken, name: &str) -> Result<bool> {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).append(true).read(true).open(&self.0)?;
        // The check and the write are one step, as in a database.
        file.lock()?;
        let last = lines(&mut file)?.last().map(|(token, _)| *token);
        if last.is_some_and(|last| token.get() < last) {
            return Ok(false);
        }
        file.write_all(format!("{token} {name}\n").as_bytes())?;
        Ok(true)
    }

    /// Returns all lines.
    fn read(&self) -> Result<Vec<(u64, String)>> {
        lines(&mut File::open(&self.0)?)
    }
}

fn lines(file: &mut File) -> Result<Vec<(u64, String)>> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    text.lines()
        .map(|line| {
            let (token, name) = line.split_once(' ').ok_or("the journal is damaged")?;
            Ok((token.parse()?, name.to_owned()))
        })
        .collect()
}

/// Returns the election. Its name differs between concurrent runs on one server.
async fn election(args: &Args, place: &Path) -> Result<(LockClient, Election)> {
    let url = match &args.url {
        Some(url) => url.clone(),
        None => format!("file:{}", place.join("locks").display()),
    };
    let client = leasehold::connect(&url).await?;
    // After a leader was killed, nobody leads for this long, on most servers.
    let ttl = Ttl::from_secs(2)?.max(client.capabilities().min_ttl);
    let run = place.file_name().unwrap_or_default().to_string_lossy();
    let election = client.election(format!("{run}/leader")).with_ttl(ttl);
    Ok((client, election))
}

/// Campaigns, and works as the leader, until it is killed or asked to resign.
async fn candidate(args: &Args, place: &Path) -> Result<()> {
    let (client, election) = election(args, place).await?;
    let journal = Journal(place.join("journal"));
    let name = name(args.candidate);
    let resign = resignation(place, args.candidate);
    let work = async |term: TermInfo| match lead(&term, &journal, &name, &resign).await {
        Ok(true) => ControlFlow::Break(Ok(())),
        Ok(false) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(Err(error)),
    };
    // The work is dropped before another candidate leads. Then this one campaigns again.
    election.with_label(&*name).lead(&name, work).await??;
    client.close().await?;
    Ok(())
}

/// Writes to the journal for as long as this candidate leads. Returns `true` if it was asked to
/// resign, and `false` if its term was over.
async fn lead(term: &TermInfo, journal: &Journal, name: &str, resign: &Path) -> Result<bool> {
    let token = term.fencing_token().ok_or("the backend has no tokens")?;
    while !resign.exists() {
        if !journal.write(token, name)? {
            if term.is_held() {
                println!("{TWO_LEADERS}");
            }
            return Ok(false);
        }
        sleep(STEP).await;
    }
    Ok(true)
}

fn name(candidate: usize) -> String {
    format!("candidate {candidate}")
}

/// The path of a file that asks a candidate to resign.
fn resignation(place: &Path, candidate: usize) -> PathBuf {
    place.join(format!("resign-{candidate}"))
}

/// Starts the candidates, ends each of them once it leads, and checks what was seen.
async fn observe(args: &Args) -> Result<bool> {
    let place = tempfile::Builder::new().prefix("leader-").tempdir()?;
    let (client, election) = election(args, place.path()).await?;
    let mut leaders = election.observe();
    let mut contradictions = JoinSet::new();
    let mut running = BTreeMap::new();
    for candidate in 0..CANDIDATES {
        let child = start(place.path(), candidate, &mut contradictions)?;
        running.insert(name(candidate), (candidate, child));
    }
    let (mut seen, mut resigning, mut killed) = (Vec::new(), Vec::new(), 0);
    while !running.is_empty() {
        let leader = next(&mut leaders).await?;
        let name = String::from_utf8_lossy(&leader.value).into_owned();
        seen.push(leader);
        sleep(WORK).await;
        // A candidate that was paused for longer than its TTL may lead again.
        let Some((candidate, mut child)) = running.remove(&name) else {
            continue;
        };
        if candidate.is_multiple_of(2) {
            println!("{name} is killed");
            child.kill().await?;
            killed += 1;
        } else {
            println!("{name} is asked to resign");
            File::create(resignation(place.path(), candidate))?;
            resigning.push(child);
        }
    }
    for mut child in resigning {
        let ended = timeout(LONGEST_VACANCY, child.wait()).await;
        let status = ended.map_err(|_elapsed| "a candidate does not resign")??;
        if !status.success() {
            return Err(format!("a candidate has failed: {status}").into());
        }
    }
    client.close().await?;

    let journal = Journal(place.path().join("journal")).read()?;
    let mut is_contradicted = false;
    while let Some(found) = contradictions.join_next().await {
        is_contradicted |= found?;
    }
    println!(
        "{} leaders seen, {killed} of them killed, {} lines written",
        seen.len(),
        journal.len()
    );
    if is_contradicted {
        eprintln!("two candidates led at the same time");
    }
    Ok(!is_contradicted && is_consistent(&seen, &journal))
}

/// Waits until the observer shows the next leader.
async fn next(leaders: &mut Leaders) -> Result<Leader> {
    loop {
        let next = timeout(LONGEST_VACANCY, leaders.next()).await;
        match next.map_err(
            |_elapsed| "no candidate is seen to lead; do all of them share the backend?",
        )?? {
            Some(leader) => {
                let name = String::from_utf8_lossy(&leader.value);
                let token = leader.token.map_or(0, FencingToken::get);
                println!("{name} leads with the token {token}");
                return Ok(leader);
            }
            None => println!("nobody leads"),
        }
    }
}

/// Returns whether later leaders have larger tokens, and whether each of them is the one that wrote
/// with its token.
fn is_consistent(seen: &[Leader], journal: &[(u64, String)]) -> bool {
    let mut writers = BTreeMap::new();
    for (token, name) in journal {
        let writer = writers.entry(*token).or_insert(name);
        if *writer != name {
            eprintln!("{name} and {writer} have written with the token {token}");
            return false;
        }
    }
    let is_ordered = seen.is_sorted_by(|former, later| former.token < later.token);
    let is_writer = |leader: &Leader| {
        let writer = leader.token.and_then(|token| writers.get(&token.get()));
        writer.is_none_or(|writer| writer.as_bytes() == leader.value)
    };
    if !is_ordered || !seen.iter().all(is_writer) {
        eprintln!("the observer has shown {seen:?}, and {writers:?} have written");
        return false;
    }
    true
}

/// Starts a candidate: this program with further options. The task reads its output until it ends,
/// and returns whether it has seen another leader at the same time.
fn start(place: &Path, candidate: usize, contradictions: &mut JoinSet<bool>) -> Result<Child> {
    let own = ["--candidate", &candidate.to_string(), "--place"].map(OsString::from);
    let arguments = std::env::args_os().skip(1).chain(own);
    let (child, mut lines) = start_self(arguments.chain([place.into()]))?;
    contradictions.spawn(async move {
        let mut is_contradicted = false;
        while let Ok(Some(line)) = lines.next_line().await {
            is_contradicted |= line == TWO_LEADERS;
        }
        is_contradicted
    });
    Ok(child)
}
