//! A replica of work that runs once per occurrence. Its host's clock may be wrong.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use leasehold_core::{
    Capabilities, FencingToken, HolderRef, Inspection, LockClient, LockKey, Pong, Result,
    Revocation, RevokeOutcome, Ttl, async_trait,
    backend::{Attempt, Lease, LockBackend, RecordRead, RecordReading, Request},
    once::{Every, Missed, Occurrence, Once, Retry, Run},
};
use leasehold_testkit::history::{Op, Phase};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::event::EventLog;
use crate::steps::{connected, millis};

/// One in this many runs takes up to [`LONG_RUN`], so that faults probably hit it. All other runs
/// take up to [`SHORT_RUN`].
const LONG_IN: u32 = 3;
const LONG_RUN: Duration = Duration::from_millis(400);
const SHORT_RUN: Duration = Duration::from_millis(10);
/// The interval at which a run logs its deadline.
const CHECK_EVERY: Duration = Duration::from_millis(20);
/// No occurrence is abandoned because its runners crash.
const CRASHES: u32 = 10_000;
/// The most missed occurrences that are made up for, where they are.
const MADE_UP_FOR: u32 = 1_000;

/// The work of a replica, under one name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Replica {
    /// The name of the work.
    pub key: String,
    /// The period of its schedule.
    pub period_ms: u64,
    /// Whether missed occurrences run late. Otherwise they are skipped, as they are by default.
    pub make_up: bool,
    /// How far the clock of this replica's host is ahead of the true time, or behind it.
    pub skew_ms: i64,
}

impl Replica {
    /// Returns the handle of this work.
    ///
    /// # Errors
    /// The period is invalid.
    pub fn once(&self, client: &LockClient) -> Result<Once> {
        let once = client
            .once(self.key.as_str())
            .with_schedule(Every::new(millis(self.period_ms))?)
            .with_history(100)
            .with_retry(Retry {
                crashes: CRASHES,
                ..Retry::never()
            });
        Ok(if self.make_up {
            once.with_missed(Missed::All { limit: MADE_UP_FOR })
        } else {
            once
        })
    }

    /// Connects to the backend at `url`, and runs the work for as long as the future is polled.
    /// Each run logs its begin and its end, as an acquisition and a release of `KEY@INSTANT`.
    ///
    /// # Errors
    /// As [`Once::serve`].
    pub async fn serve(
        &self,
        url: &str,
        ttl_ms: u64,
        label: &str,
        log: &Arc<EventLog>,
    ) -> Result<Infallible> {
        let ttl = Ttl::from_millis(ttl_ms)?;
        let backend = connected(|| leasehold::backend::connect(url)).await?;
        let skewed = Skewed {
            backend,
            skew_ms: self.skew_ms,
        };
        let client = LockClient::builder(skewed)
            .with_ttl(ttl)
            .with_label(label)
            .build();
        let work = |run: Run| work(run, self.key.clone(), Arc::clone(log));
        self.once(&client)?.serve_with(work).await
    }
}

/// Logs its begin, takes some time, and logs its end. If it is cancelled, it logs that the lock is
/// lost.
async fn work(run: Run, key: String, log: Arc<EventLog>) -> std::result::Result<(), Infallible> {
    let key = match run.occurrence() {
        Occurrence::At(at) => format!("{key}@{}", unix_ms(*at)),
        other => format!("{key}@{other:?}"),
    };
    let mut logged = Logged {
        attempt: log.next_attempt(),
        log,
        key,
        run,
        has_ended: false,
    };
    logged.write(Op::Acquire, Phase::Ok);
    let longest = if rand::rng().random_ratio(1, LONG_IN) {
        LONG_RUN
    } else {
        SHORT_RUN
    };
    let mut left = rand::rng().random_range(Duration::ZERO..longest);
    while !left.is_zero() {
        let pause = left.min(CHECK_EVERY);
        tokio::time::sleep(pause).await;
        left -= pause;
        logged.write(Op::Check, Phase::Ok);
    }
    logged.write(Op::Release, Phase::Invoke);
    logged.has_ended = true;
    Ok(())
}

/// A run, and the log of its steps.
struct Logged {
    attempt: u64,
    log: Arc<EventLog>,
    key: String,
    run: Run,
    has_ended: bool,
}

impl Logged {
    fn write(&self, op: Op, phase: Phase) {
        let lease = self.run.lease();
        let token = lease.fencing_token().map(FencingToken::get);
        let deadline = lease.deadline().moment().as_nanos();
        self.log
            .write(self.attempt, &self.key, (op, phase), token, Some(deadline));
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        if !self.has_ended {
            self.write(Op::Check, Phase::Fail);
        }
    }
}

/// Returns the number of milliseconds since 1970.
///
/// # Panics
/// The instant is before 1970 or centuries ahead.
#[must_use]
pub fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// A backend on a host whose wall clock is wrong. The clock counts where the server has none.
#[derive(Debug)]
struct Skewed {
    backend: Arc<dyn LockBackend>,
    skew_ms: i64,
}

impl std::fmt::Display for Skewed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.backend.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl LockBackend for Skewed {
    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        Arc::clone(&self.backend).try_acquire(request).await
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        Arc::clone(&self.backend).acquire(request).await
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        self.backend.inspect(key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        self.backend.revoke(holder, revocation).await
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        let asks_for_the_time = read.clock;
        let mut reading = Arc::clone(&self.backend).read_record(read).await?;
        if asks_for_the_time && reading.now.is_none() {
            let (now, skew) = (SystemTime::now(), millis(self.skew_ms.unsigned_abs()));
            reading.now = Some(if self.skew_ms < 0 {
                now - skew
            } else {
                now + skew
            });
        }
        Ok(reading)
    }

    async fn ping(&self) -> Result<Pong> {
        self.backend.ping().await
    }

    async fn close(&self) -> Result<()> {
        self.backend.close().await
    }
}
