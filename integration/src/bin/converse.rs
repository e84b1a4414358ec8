//! Calls every function of the library once on each given server, on one thread.
//!
//! `converse URL...` prints one line for each completed call, `panic` for each panic, and finally
//! the peak memory use. `converse --impatient URL` connects with a shorter timeout than the
//! library's and prints the result.

use std::{
    env,
    future::Future,
    io::Write,
    panic, process,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use leasehold::Ttl;
use tokio::{task::JoinSet, time::timeout};

/// Longer than the sum of all timeouts in the library: a call that is still pending then is stuck.
const TIMEOUT: Duration = Duration::from_secs(30);
const SHORT_TIMEOUT: Duration = Duration::from_millis(200);

static PANICS: AtomicUsize = AtomicUsize::new(0);

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // If the parent has exited, nobody reads the line.
    drop(writeln!(out, "{line}").and_then(|()| out.flush()));
}

/// Parses the number of kibibytes in a line of `/proc/self/status`, see proc(5).
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let value = status
        .lines()
        .find_map(|found| found.strip_prefix(line))
        .unwrap();
    value
        .trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

async fn ended<T>(
    talk: usize,
    call: &str,
    work: impl Future<Output = leasehold::Result<T>>,
) -> Option<T> {
    match timeout(TIMEOUT, work).await {
        Ok(Ok(done)) => {
            say(&format!("{talk} {call}: ok"));
            Some(done)
        }
        Ok(Err(error)) => {
            say(&format!(
                "{talk} {call}: {:?}: {}",
                error.kind(),
                error.to_string().escape_debug()
            ));
            None
        }
        Err(_elapsed) => {
            say(&format!("{talk} {call}: did not end"));
            None
        }
    }
}

async fn converse(talk: usize, url: String) {
    let ttl = Ttl::from_secs(4).unwrap();
    let connecting = leasehold::ConnectOptions::new().with_ttl(ttl).connect(&url);
    let Some(client) = ended(talk, "connect", connecting).await else {
        return;
    };
    let mutex = client.mutex(format!("hostile {talk}"));
    let guard = ended(talk, "try_lock", mutex.try_lock()).await.flatten();
    if let Some(guard) = &guard {
        ended(talk, "renew", guard.renew()).await;
    }
    ended(talk, "inspect", client.inspect(format!("hostile {talk}"))).await;
    drop(
        ended(
            talk,
            "lock_timeout",
            mutex.lock_timeout(Duration::from_millis(300)),
        )
        .await,
    );
    if let Some(guard) = guard {
        ended(talk, "release", guard.release()).await;
    }
    drop(
        ended(
            talk,
            "lock_timeout",
            mutex.lock_timeout(Duration::from_millis(300)),
        )
        .await,
    );
    ended(talk, "close", client.close()).await;
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        say(&format!("panic: {}", info.to_string().escape_debug()));
        default(info);
    }));
    let mut urls: Vec<String> = env::args().skip(1).collect();
    let impatient = urls.first().is_some_and(|first| first == "--impatient");
    let before = memory("VmRSS");
    if impatient {
        let url = urls.pop().expect("usage: converse --impatient URL");
        let connected = timeout(SHORT_TIMEOUT, leasehold::connect(&url)).await;
        say(&format!(
            "impatient: {}",
            if connected.is_ok() {
                "ended"
            } else {
                "gave up"
            }
        ));
    } else {
        let mut talks = JoinSet::new();
        for (talk, url) in urls.into_iter().enumerate() {
            talks.spawn(converse(talk, url));
        }
        while let Some(talked) = talks.join_next().await {
            if let Err(error) = talked {
                say(&format!("panic: reached the caller: {error}"));
            }
        }
    }
    say(&format!(
        "memory: {} KiB",
        memory("VmHWM").saturating_sub(before)
    ));
    // Exits without waiting for tasks that a server keeps busy.
    process::exit(0);
}
