//! One turn: from the question whether something is due to the record of its end.

use std::{
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::{sleep, timeout};

use crate::{
    backend::record::RecordRead,
    client::acquire::{acquire, acquire_for},
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    lock::guard::{LeaseInfo, LockGuard},
    once::{
        decide::{Asked, Decision, Outcome, Rest, decide, finish},
        format,
        handle::Once,
        occurrence::OccurrenceId,
        state::{State, clipped},
        turn::{Run, Turn},
        unix_millis::UnixMillis,
    },
    telemetry,
};

/// The time until a read or a write of the record is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The state in the record, and the time at which it was read.
pub(super) struct Reading {
    pub(super) state: Option<State>,
    /// The server's time, or this host's if the server has no clock.
    pub(super) now: UnixMillis,
}

/// The outcome of a turn.
pub(super) struct Turned<T, E> {
    pub(super) turn: Turn<T, E>,
    /// The time of the last reading.
    pub(super) now: UnixMillis,
}

/// A claim that the server has confirmed.
struct Claim {
    /// The first entry is the claimed occurrence.
    state: State,
    /// The time of the reading, and when the client had asked for it.
    now: UnixMillis,
    asked_at: Timestamp,
}

/// The end of the wait for the lock.
enum StoodBy {
    Granted(LockGuard),
    /// Nothing is left to do.
    Over,
    Busy,
}

impl Once {
    /// Runs `work` if there is something to run.
    pub(super) async fn turn<F, Fut, T, E>(
        &self,
        occurrence: Option<&OccurrenceId>,
        work: F,
    ) -> Result<Turned<T, E>>
    where
        F: FnOnce(Run) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: Display,
    {
        self.policies.validate()?;
        let asked = Asked {
            occurrence,
            schedule: self.schedule.as_deref(),
            policies: &self.policies,
        };
        loop {
            // Most replicas find that there is nothing to do. They take no lock.
            let Reading { state, now } = self.read().await?;
            if let Decision::Rest(rest, None) = self.decide(state.as_ref(), now, asked)? {
                match self.near(&rest, now) {
                    Some(pause) => sleep(pause).await,
                    None => {
                        let turn = rest.into();
                        return Ok(Turned { turn, now });
                    }
                }
                continue;
            }
            let guard = match self.stand_by(asked).await? {
                StoodBy::Granted(guard) => guard,
                StoodBy::Over => continue,
                StoodBy::Busy => {
                    let turn = Turn::Busy;
                    return Ok(Turned { turn, now });
                }
            };
            if let Some(claim) = self.claim(&guard, asked).await? {
                let turned = self.work(guard, claim, asked, work).await;
                let outcome = turned.as_ref().map(|turned| match turned.turn {
                    Turn::Overtime => telemetry::OVERTIME,
                    Turn::Failed(_) => telemetry::FAILED,
                    _ => telemetry::RAN,
                });
                telemetry::run_ended(&self.client.0.context, outcome);
                return turned;
            }
            // The decision is read again, without the lock.
            drop(guard.release().await);
        }
    }

    /// Reads the record and the time.
    pub(super) async fn read(&self) -> Result<Reading> {
        let mut read = RecordRead::new(self.spec.key.clone()?);
        read.clock = true;
        let reading = self.client.read_record(read).await?;
        let state = reading
            .record
            .map(|record| format::parse(&record.value).map_err(|error| self.about(&error)))
            .transpose()?;
        let now = UnixMillis::of(reading.now.unwrap_or_else(SystemTime::now));
        Ok(Reading { state, now })
    }

    fn decide(&self, state: Option<&State>, now: UnixMillis, asked: Asked<'_>) -> Result<Decision> {
        decide(state, now, asked).map_err(|error| self.about(&error))
    }

    /// Adds the key to an error about the record.
    fn about(&self, error: &Error) -> Error {
        let key = self.spec.key.as_ref().map(ToString::to_string);
        Error::new(
            error.kind(),
            format!("`{}`: {}", key.unwrap_or_default(), error.message()),
        )
        .with_backend(self.client.capabilities().backend)
    }

    /// Returns how long to wait for an occurrence that is near.
    fn near(&self, rest: &Rest, now: UnixMillis) -> Option<Duration> {
        match rest {
            Rest::NotDue(Some(next)) => {
                Some(next.since(now)).filter(|wait| *wait <= self.policies.early)
            }
            _ => None,
        }
    }

    /// Waits for the lock. Leaves the queue as soon as there is nothing left to do, so that an
    /// occurrence costs each other replica a place in the queue but no grant.
    async fn stand_by(&self, asked: Asked<'_>) -> Result<StoodBy> {
        let client = &self.client.0;
        let acquiring = async {
            match self.wait {
                None => acquire(client, &self.spec).await.map(Some),
                Some(limit) => acquire_for(client, &self.spec, limit).await,
            }
        };
        tokio::select! {
            biased;
            granted = acquiring => Ok(match granted? {
                Some(lease) => StoodBy::Granted(LockGuard::new(lease)),
                None => StoodBy::Busy,
            }),
            over = self.until_over(asked) => over.map(|()| StoodBy::Over),
        }
    }

    /// Waits until there is nothing left to do.
    async fn until_over(&self, asked: Asked<'_>) -> Result<()> {
        let mut watch = self.client.watch(&self.spec.key.clone()?);
        loop {
            watch.next().await?;
            match self.read().await {
                Ok(Reading { state, now }) => {
                    let decision = self.decide(state.as_ref(), now, asked)?;
                    if let Decision::Rest(_, None) = decision {
                        return Ok(());
                    }
                }
                // The lock may be granted all the same.
                Err(error) if error.is_retryable() => sleep(RETRY_PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Decides under the lock, and writes what that changed. Returns the claim, if there is one,
    /// after the server has confirmed it.
    async fn claim(&self, guard: &LockGuard, asked: Asked<'_>) -> Result<Option<Claim>> {
        let lease = guard.info();
        let request = &guard.held().request;
        let (asked_at, Reading { state, now }) = loop {
            let asked_at = request.now();
            match self.read().await {
                Err(error) if error.is_retryable() && lease.is_held() => sleep(RETRY_PAUSE).await,
                reading => break (asked_at, reading?),
            }
        };
        match self.decide(state.as_ref(), now, asked)? {
            Decision::Claim(mut state) => {
                let entry = &mut state.runs[0];
                entry.by = clipped(request.label()).unwrap_or_default();
                entry.token = lease.fencing_token();
                write(&lease, &state).await?;
                Ok(Some(Claim {
                    state,
                    now,
                    asked_at,
                }))
            }
            Decision::Rest(_, changed) => {
                if let Some(state) = changed {
                    write(&lease, &state).await?;
                }
                Ok(None)
            }
        }
    }

    /// Runs the work and records its end, before the lock can be granted to another holder.
    async fn work<F, Fut, T, E>(
        &self,
        guard: LockGuard,
        claim: Claim,
        asked: Asked<'_>,
        work: F,
    ) -> Result<Turned<T, E>>
    where
        F: FnOnce(Run) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: Display,
    {
        let lease = guard.info();
        let clock = Arc::clone(&self.spec.context.clock);
        let run = Run::new(&claim.state.runs[0], lease.clone());
        let noted = run.clone();
        let began = claim.now;
        let is_complete = AtomicBool::new(false);
        let working = Box::pin(async {
            // Boxed, because a timeout would take the size of the work again.
            let working = Box::pin(work(run));
            let result = match self.policies.at_most {
                Some(limit) => timeout(limit, working).await.ok(),
                None => Some(working.await),
            };
            is_complete.store(true, Ordering::Relaxed);
            let (outcome, error) = match &result {
                Some(Ok(_)) => (Outcome::Ok, None),
                Some(Err(error)) => (Outcome::Failed, Some(error.to_string())),
                None => (Outcome::Overtime, None),
            };
            let now = claim.now.after(clock.now().since(claim.asked_at));
            let note = noted.noted().or(error);
            let state = finish(claim.state, now, outcome, note.as_deref(), asked);
            write(&lease, &state).await.map(|()| result)
        });
        let turn = match guard.run_with(|_| working).await {
            Ok(Ok(Some(Ok(value)))) => Turn::Ran(value),
            Ok(Ok(Some(Err(error)))) => Turn::Failed(error),
            Ok(Ok(None)) => Turn::Overtime,
            Ok(Err(source)) => return Err(self.unrecorded(source)),
            Err(source) if is_complete.load(Ordering::Relaxed) => {
                return Err(self.unrecorded(source));
            }
            Err(lost) => return Err(lost),
        };
        Ok(Turned { turn, now: began })
    }

    /// Returns the error of work that is complete but whose end is not recorded.
    fn unrecorded(&self, source: Error) -> Error {
        let key = self.spec.key.as_ref().map(ToString::to_string);
        Error::new(
            ErrorKind::Indeterminate,
            format!(
                "the work of `{}` has ended, but its end is not known to be recorded, so that it may run again: {}",
                key.unwrap_or_default(),
                source.message()
            ),
        )
        .with_backend(self.client.capabilities().backend)
        .with_source(source)
    }
}

/// Writes the record, again and again while the lease is held, until the server has answered.
async fn write(lease: &LeaseInfo, state: &State) -> Result<()> {
    let text = format::write(state);
    loop {
        match lease.write_record(&text).await {
            Err(error) if error.is_retryable() && lease.is_held() => sleep(RETRY_PAUSE).await,
            written => return written.map(|_| ()),
        }
    }
}
