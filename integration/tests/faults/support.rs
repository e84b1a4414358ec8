//! Steps that several cases share.

use std::{
    env,
    time::{Duration, Instant},
};

use leasehold_core::{LockClient, LockGuard};
use leasehold_integration::{
    held::Held,
    leftovers,
    steps::{is_a_fault, millis},
    worker::{Answer, Command, Patience},
};

use crate::fixture::Fixture;

/// The timeout of operations that must succeed, long enough for a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

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

/// Returns token and deadline of a grant. A permit has the token 0.
#[track_caller]
pub(crate) fn granted(answer: Answer) -> (u64, u64) {
    match answer {
        Answer::Granted { token, deadline_ns } => (token.unwrap_or(0), deadline_ns),
        other => panic!("not granted: {other:?}"),
    }
}

/// Waits for something that only a hang prevents.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(SOON, future).await;
    done.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"))
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
    leftovers::nothing_left(SOON, || fixture.leftovers()).unwrap();
}

/// Waits until `reached`.
#[track_caller]
pub(crate) fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !reached() {
        assert!(Instant::now() < end, "not within {SOON:?}: {what}");
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
