//! Helpers shared by the tests.

use std::{
    path::PathBuf,
    sync::{Mutex, Once, PoisonError},
    time::{Duration, Instant},
};

use leasehold_core::{ErrorKind, LockClient, LockGuard, Ttl};
use leasehold_integration::{
    leftovers,
    server::RedisServer,
    worker::{Answer, Register, Setup, Worker, client},
};
use tempfile::TempDir;

/// The timeout of operations that must succeed, long enough for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Worker processes on one backend, their logs, and the register that they share.
#[derive(Debug)]
pub(crate) struct Stage {
    folder: TempDir,
    url: String,
    ttl_ms: u64,
}

impl Stage {
    pub(crate) fn on(url: &str, ttl_ms: u64) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            url: url.to_owned(),
            ttl_ms,
        }
    }

    /// Creates a stage on lock files in a folder of its own.
    pub(crate) fn on_files(ttl_ms: u64) -> Self {
        let mut stage = Self::on("", ttl_ms);
        let folder = stage.folder.path().join("locks");
        std::fs::create_dir(&folder).unwrap();
        stage.url = format!("file:{}", folder.display());
        stage
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns the folder of the lock files.
    pub(crate) fn locks(&self) -> PathBuf {
        self.folder.path().join("locks")
    }

    pub(crate) fn register(&self) -> Register {
        Register::at(&self.folder.path().join("register"))
    }

    pub(crate) fn worker(&self, proc: &str) -> Worker {
        self.worker_at(proc, &self.url)
    }

    /// Starts a worker that uses another route to the same backend.
    pub(crate) fn worker_at(&self, proc: &str, url: &str) -> Worker {
        self.try_worker_at(proc, url).unwrap()
    }

    /// Starts a worker like [`worker_at`](Self::worker_at), and returns an error if it cannot
    /// connect.
    pub(crate) fn try_worker_at(
        &self,
        proc: &str,
        url: &str,
    ) -> leasehold_integration::Result<Worker> {
        let setup = Setup {
            proc: proc.to_owned(),
            url: url.to_owned(),
            ttl_ms: self.ttl_ms,
            log: self.log(proc),
            register: self.folder.path().join("register"),
        };
        Worker::spawn(env!("CARGO_BIN_EXE_worker"), setup)
    }

    pub(crate) fn log(&self, proc: &str) -> PathBuf {
        self.folder.path().join(format!("{proc}.jsonl"))
    }
}

/// Panics of the crates under test, including those that a runtime catches.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Creates a client in this process.
pub(crate) async fn client_of(url: &str, ttl_ms: u64) -> LockClient {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // The library detects a runtime without a timer by catching this panic.
            let asks_for_timer = info.to_string().contains("timers are disabled");
            if !asks_for_timer
                && info
                    .location()
                    .is_some_and(|place| place.file().contains("crates/leasehold"))
            {
                PANICS
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(info.to_string());
            }
            default(info);
        }));
    });
    client(url, Ttl::from_millis(ttl_ms).unwrap(), "test")
        .await
        .unwrap()
}

/// Asserts that no task and no thread of the crates under test has panicked.
#[track_caller]
pub(crate) fn nothing_panicked() {
    let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(panics.is_empty(), "{panics:?}");
}

/// Returns the token of a guard.
#[track_caller]
pub(crate) fn token(guard: &LockGuard) -> u64 {
    guard
        .fencing_token()
        .expect("the exclusive guard has no token")
        .get()
}

/// Returns token and deadline of a grant.
#[track_caller]
pub(crate) fn granted(answer: Answer) -> (u64, u64) {
    match answer {
        Answer::Granted {
            token: Some(token),
            deadline_ns,
        } => (token, deadline_ns),
        other => panic!("not granted with a token: {other:?}"),
    }
}

/// Asserts that another process held the lock.
#[track_caller]
pub(crate) fn refused(answer: Answer) {
    match answer {
        Answer::Refused => {}
        other => panic!("not refused: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn is_held(answer: Answer) -> bool {
    match answer {
        Answer::Checked { held, .. } => held,
        other => panic!("no guard: {other:?}"),
    }
}

/// Returns whether this kind of error may follow a fault: the call may succeed later, or the lease
/// is lost.
pub(crate) fn is_a_fault(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Unavailable | ErrorKind::Indeterminate | ErrorKind::Lost
    )
}

/// Waits until `reached`, for at most `patience`.
#[track_caller]
pub(crate) fn until(what: &str, patience: Duration, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !reached() {
        assert!(Instant::now() < end, "not within {patience:?}: {what}");
        std::thread::sleep(millis(5));
    }
}

/// Asserts that within `patience` no lock and no waiter is left on this server.
#[track_caller]
pub(crate) fn nothing_left(server: &RedisServer, patience: Duration) {
    leftovers::nothing_left(patience, || leftovers::redis(server)).unwrap();
}
