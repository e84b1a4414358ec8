//! Steps that several cases share.

use std::{
    env,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use leasehold_core::{ErrorKind, LockClient, LockGuard};
use leasehold_integration::{
    held::Held,
    leftovers,
    worker::{Answer, Command, Patience, Register, Setup, Worker},
};
use tempfile::TempDir;

use crate::fixture::Fixture;

/// The timeout of operations that must succeed, long enough for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A mode of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Writer,
    Reader,
    /// The only permit.
    Permit,
}

impl Mode {
    /// Returns the modes that the backend of this client has.
    pub(crate) fn all(client: &LockClient) -> Vec<Self> {
        let permits = client.capabilities().permits.then_some(Self::Permit);
        [Self::Writer, Self::Reader]
            .into_iter()
            .chain(permits)
            .collect()
    }

    /// Returns a mode that excludes this one.
    pub(crate) fn rival(self) -> Self {
        match self {
            Self::Writer | Self::Reader => Self::Writer,
            Self::Permit => Self::Permit,
        }
    }

    /// Returns the command that makes a worker acquire the lock `k` into slot 0.
    pub(crate) fn command(self, patience: Patience) -> Command {
        let (slot, key) = (0, "k".to_owned());
        match self {
            Self::Writer => Command::Lock {
                slot,
                key,
                patience,
            },
            Self::Reader => Command::Read {
                slot,
                key,
                patience,
            },
            Self::Permit => Command::Permit {
                slot,
                key,
                patience,
            },
        }
    }

    pub(crate) async fn lock(self, client: &LockClient, key: &str) -> leasehold_core::Result<Held> {
        Ok(match self {
            Self::Writer => client.rwlock(key).write().await?.into(),
            Self::Reader => client.rwlock(key).read().await?.into(),
            Self::Permit => client.semaphore(key, 1).acquire().await?.into(),
        })
    }

    pub(crate) async fn lock_timeout(
        self,
        client: &LockClient,
        key: &str,
        limit: Duration,
    ) -> leasehold_core::Result<Option<Held>> {
        Ok(match self {
            Self::Writer => client
                .rwlock(key)
                .write_timeout(limit)
                .await?
                .map(Held::from),
            Self::Reader => client
                .rwlock(key)
                .read_timeout(limit)
                .await?
                .map(Held::from),
            Self::Permit => client
                .semaphore(key, 1)
                .acquire_timeout(limit)
                .await?
                .map(Held::from),
        })
    }
}

/// Worker processes on one backend, their logs, and the register that they share.
#[derive(Debug)]
pub(crate) struct Stage {
    folder: TempDir,
    url: String,
    ttl_ms: u64,
}

impl Stage {
    pub(crate) fn on(fixture: &dyn Fixture) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            folder,
            url: fixture.url(),
            ttl_ms: fixture.ttl_ms(),
        }
    }

    pub(crate) fn worker(&self, proc: &str) -> Worker {
        let setup = Setup {
            proc: proc.to_owned(),
            url: self.url.clone(),
            ttl_ms: self.ttl_ms,
            log: self.log(proc),
            register: self.folder.path().join("register"),
        };
        Worker::spawn(env!("CARGO_BIN_EXE_worker"), setup).unwrap()
    }

    pub(crate) fn log(&self, proc: &str) -> PathBuf {
        self.folder.path().join(format!("{proc}.jsonl"))
    }

    pub(crate) fn register(&self) -> Register {
        Register::at(&self.folder.path().join("register"))
    }
}

/// Returns token and deadline of a grant. A permit has the token 0.
#[track_caller]
pub(crate) fn granted(answer: Answer) -> (u64, u64) {
    match answer {
        Answer::Granted { token, deadline_ns } => (token.unwrap_or(0), deadline_ns),
        other => panic!("not granted: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn is_held(answer: Answer) -> bool {
    match answer {
        Answer::Checked { held, .. } => held,
        other => panic!("no guard: {other:?}"),
    }
}

/// Returns the token of a guard.
#[track_caller]
pub(crate) fn token(guard: &LockGuard) -> u64 {
    guard
        .fencing_token()
        .expect("the exclusive guard has no token")
        .get()
}

/// Returns whether this kind of error may follow a fault: the call may succeed later, or the lease
/// is lost.
pub(crate) fn is_a_fault(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Unavailable | ErrorKind::Indeterminate | ErrorKind::Lost
    )
}

/// Waits for something that only a hang prevents.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// Acquires a lock, and retries after each fault.
pub(crate) async fn locked(client: &LockClient, key: &str) -> LockGuard {
    let locking = async {
        loop {
            match client.mutex(key).lock().await {
                Ok(guard) => return guard,
                Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
            }
            tokio::time::sleep(millis(20)).await;
        }
    };
    soon("the lock is granted", locking).await
}

/// Waits until `count` waiters of the lock `k` are registered.
pub(crate) async fn until_waiting(client: &LockClient, count: usize) {
    let registered = async {
        while client
            .inspect("k")
            .await
            .is_ok_and(|seen| seen.waiters.len() < count)
        {
            tokio::time::sleep(millis(10)).await;
        }
    };
    soon(&format!("{count} wait"), registered).await;
}

/// Waits until no lock is held or waited for.
#[track_caller]
pub(crate) fn nothing_left(fixture: &dyn Fixture) {
    leftovers::nothing_left(PATIENCE, || fixture.leftovers()).unwrap();
}

/// Waits until `reached`.
#[track_caller]
pub(crate) fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(millis(5));
    }
}

/// Returns the seed of a randomized case, and prints it.
pub(crate) fn seed() -> u64 {
    let seed = env::var("LEASEHOLD_SEED").ok();
    let seed = seed.map(|seed| seed.parse().expect("LEASEHOLD_SEED must be a number"));
    let seed = seed.unwrap_or_else(rand::random);
    println!("LEASEHOLD_SEED={seed}");
    seed
}

/// Panics of the crates under test, including those that a runtime catches.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Records the panics of the crates under test from now on.
pub(crate) fn record_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info
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
}

/// Returns the panics of the crates under test so far.
pub(crate) fn panics() -> Vec<String> {
    PANICS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}
