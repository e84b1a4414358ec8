use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use leasehold_core::{AllGuard, Error, FencingToken, LeaseInfo, LockClient, Mode, Result, Ttl};
use tokio::sync::mpsc;

use leasehold_testkit::history::{Op, Phase, Write};

use super::{
    client,
    event::{EventLog, now_ns},
    protocol::{Answer, Command, Numbered, Patience, Setup},
    register::Register,
    storm::Running,
};
use crate::{held::Held, peer, steps::connected};

/// Runs a worker process: connects, then executes commands until the test that controls it has
/// ended.
///
/// # Errors
/// The event log cannot be opened.
pub async fn serve(setup: Setup) -> crate::Result<()> {
    let log = Arc::new(EventLog::open(&setup.log, &setup.proc)?);
    let connected = match Ttl::from_millis(setup.ttl_ms) {
        Ok(ttl) => connected(|| client(&setup.url, ttl, &setup.proc)).await,
        Err(error) => Err(error),
    };
    let client = match connected {
        Ok(client) => client,
        Err(error) => {
            tell(0, failed(&error));
            return Ok(());
        }
    };
    let register = Register::at(&setup.register);
    let hand = Arc::new(Hand {
        client,
        log,
        register,
        proc: setup.proc.clone(),
        guards: Mutex::default(),
        together: Mutex::default(),
    });
    tell(0, Answer::Ready);
    let (heard, mut lines) = mpsc::unbounded_channel();
    std::thread::spawn(
        move || while peer::listen().is_some_and(|line| heard.send(line).is_ok()) {},
    );
    let mut storm = None;
    while let Some(line) = lines.recv().await {
        let Ok(Numbered { id, body }) = serde_json::from_str::<Numbered<Command>>(&line) else {
            tell(
                0,
                Answer::Failed {
                    kind: "Protocol".into(),
                    message: line,
                },
            );
            continue;
        };
        match body {
            Command::Storm(plan) => {
                storm = Some(Running::begin(
                    &hand.client,
                    &hand.log,
                    &hand.register,
                    &hand.proc,
                    &plan,
                ));
                tell(id, Answer::Storming);
            }
            Command::Calm => match storm.take() {
                Some(running) => {
                    tokio::spawn(async move { tell(id, running.end().await) });
                }
                None => tell(
                    id,
                    Answer::Failed {
                        kind: "Calm".into(),
                        message: "there is no storm".into(),
                    },
                ),
            },
            Command::Serve(replica) => {
                let (log, setup) = (Arc::clone(&hand.log), setup.clone());
                tokio::spawn(async move {
                    let Setup {
                        url, ttl_ms, proc, ..
                    } = setup;
                    match replica.serve(&url, ttl_ms, &proc, &log).await {
                        Ok(never) => match never {},
                        Err(error) => tell(id, failed(&error)),
                    }
                });
            }
            Command::Count => tell(id, storm.as_ref().map_or(Answer::Storming, Running::count)),
            other => {
                let hand = Arc::clone(&hand);
                tokio::spawn(async move { tell(id, hand.obey(other).await) });
            }
        }
    }
    Ok(())
}

/// The state that commands operate on.
#[derive(Debug)]
struct Hand {
    client: LockClient,
    log: Arc<EventLog>,
    register: Register,
    proc: String,
    guards: Mutex<HashMap<u32, (u64, Arc<Held>)>>,
    /// The guards of several keys.
    together: Mutex<Vec<AllGuard>>,
}

impl Hand {
    async fn obey(&self, command: Command) -> Answer {
        let answer = match command {
            Command::Lock {
                slot,
                key,
                patience,
            } => self.lock(slot, &key, Mode::Exclusive, patience).await,
            Command::Read {
                slot,
                key,
                patience,
            } => self.lock(slot, &key, Mode::Shared, patience).await,
            Command::Permit {
                slot,
                key,
                patience,
            } => {
                let only = Mode::Permit {
                    of: NonZeroU32::MIN,
                };
                self.lock(slot, &key, only, patience).await
            }
            Command::Campaign { slot, key, value } => {
                let campaign = async {
                    let term = self.client.election(key.as_str()).campaign(value).await?;
                    Ok(Some(Held::from(term)))
                };
                self.logged(slot, &key, campaign).await
            }
            Command::Proclaim { slot, value } => return self.proclaim(slot, &value).await,
            Command::LockAll { keys } => self.lock_all(&keys).await,
            Command::CheckAll => {
                let together = self.together.lock().unwrap_or_else(PoisonError::into_inner);
                let leases = together.iter().flat_map(|guard| guard.leases());
                return Answer::HeldKeys(leases.filter(|lease| lease.is_held()).count() as u64);
            }
            Command::Release { slot } => return self.release(slot).await,
            Command::Check { slot } => return self.check(slot),
            Command::Watch { slot } => return self.watch(slot).await,
            Command::Write {
                slot,
                value,
                fenced,
            } => return self.write(slot, value, fenced),
            Command::Storm(_) | Command::Calm | Command::Count | Command::Serve(_) => {
                return no_guard(0);
            }
        };
        answer.unwrap_or_else(|error| failed(&error))
    }

    async fn lock(&self, slot: u32, key: &str, mode: Mode, patience: Patience) -> Result<Answer> {
        self.logged(slot, key, self.locked(key, mode, patience))
            .await
    }

    /// Acquires, writes it to the log, and keeps the guard in `slot`.
    async fn logged(
        &self,
        slot: u32,
        key: &str,
        acquiring: impl Future<Output = Result<Option<Held>>>,
    ) -> Result<Answer> {
        let attempt = self.log.next_attempt();
        self.log
            .write(attempt, key, (Op::Acquire, Phase::Invoke), None, None);
        let locked = acquiring.await;
        let Ok(Some(guard)) = locked else {
            self.log
                .write(attempt, key, (Op::Acquire, Phase::Fail), None, None);
            return locked.map(|_refused| Answer::Refused);
        };
        let (token, deadline_ns) = terms(&guard);
        self.log.write(
            attempt,
            key,
            (Op::Acquire, Phase::Ok),
            token,
            Some(deadline_ns),
        );
        self.slots().insert(slot, (attempt, Arc::new(guard)));
        Ok(Answer::Granted { token, deadline_ns })
    }

    async fn lock_all(&self, keys: &[String]) -> Result<Answer> {
        let guard = self.client.all(keys).lock().await?;
        let last = guard.leases().last().and_then(LeaseInfo::fencing_token);
        let answer = Answer::Granted {
            token: last.map(FencingToken::get),
            deadline_ns: guard.deadline().moment().as_nanos(),
        };
        let mut together = self.together.lock().unwrap_or_else(PoisonError::into_inner);
        together.push(guard);
        Ok(answer)
    }

    async fn locked(&self, key: &str, mode: Mode, patience: Patience) -> Result<Option<Held>> {
        if let Mode::Permit { of } = mode {
            let lock = self.client.semaphore(key, of.get());
            let permit = match patience {
                Patience::Try => lock.try_acquire().await,
                Patience::Within(ms) => lock.acquire_timeout(Duration::from_millis(ms)).await,
                Patience::Forever => lock.acquire().await.map(Some),
            };
            return Ok(permit?.map(Held::from));
        }
        let lock = self.client.rwlock(key);
        let guard = match (mode == Mode::Shared, patience) {
            (false, Patience::Try) => lock.try_write().await,
            (false, Patience::Within(ms)) => lock.write_timeout(Duration::from_millis(ms)).await,
            (false, Patience::Forever) => lock.write().await.map(Some),
            (true, Patience::Try) => lock.try_read().await,
            (true, Patience::Within(ms)) => lock.read_timeout(Duration::from_millis(ms)).await,
            (true, Patience::Forever) => lock.read().await.map(Some),
        };
        Ok(guard?.map(Held::from))
    }

    async fn release(&self, slot: u32) -> Answer {
        let Some((attempt, guard)) = self.slots().remove(&slot) else {
            return no_guard(slot);
        };
        let key = guard.key().to_string();
        let (token, deadline_ns) = terms(&guard);
        self.log.write(
            attempt,
            &key,
            (Op::Release, Phase::Invoke),
            token,
            Some(deadline_ns),
        );
        let Some(guard) = Arc::into_inner(guard) else {
            return no_guard(slot);
        };
        let released = guard.release().await;
        let phase = if released.is_ok() {
            Phase::Ok
        } else {
            Phase::Info
        };
        self.log
            .write(attempt, &key, (Op::Release, phase), token, None);
        released.map_or_else(
            |error| failed(&error),
            |released| Answer::Released(format!("{released:?}")),
        )
    }

    async fn proclaim(&self, slot: u32, value: &str) -> Answer {
        let Some((_, guard)) = self.guard(slot) else {
            return no_guard(slot);
        };
        let Held::Term(term) = &*guard else {
            return no_guard(slot);
        };
        match term.proclaim(value).await {
            Ok(()) => Answer::Proclaimed,
            Err(error) => failed(&error),
        }
    }

    fn check(&self, slot: u32) -> Answer {
        let Some((attempt, guard)) = self.guard(slot) else {
            return no_guard(slot);
        };
        let (held, remaining) = (guard.is_held(), guard.remaining());
        let (token, deadline_ns) = terms(&guard);
        let phase = if held { Phase::Ok } else { Phase::Fail };
        self.log.write(
            attempt,
            &guard.key().to_string(),
            (Op::Check, phase),
            token,
            Some(deadline_ns),
        );
        Answer::Checked {
            held,
            remaining_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
        }
    }

    async fn watch(&self, slot: u32) -> Answer {
        let Some((_, guard)) = self.guard(slot) else {
            return no_guard(slot);
        };
        let watching = tokio::task::spawn_blocking(move || {
            let (mut held, mut too_late) = (0, 0);
            loop {
                let before = now_ns();
                if !guard.is_held() {
                    return Answer::Watched { held, too_late };
                }
                held += 1;
                // The deadline is read last: a renewal never moves a deadline that has passed.
                too_late += u64::from(before >= guard.deadline().moment().as_nanos());
            }
        });
        watching.await.unwrap_or_else(|_| no_guard(slot))
    }

    fn write(&self, slot: u32, value: u64, fenced: bool) -> Answer {
        let Some((_, guard)) = self.guard(slot) else {
            return no_guard(slot);
        };
        let token = guard
            .fencing_token()
            .map_or(0, leasehold_core::FencingToken::get);
        let write = Write {
            proc: self.proc.clone(),
            read: 0,
        };
        let accepted = if fenced {
            self.register.write(token, value, write)
        } else {
            self.register.write_unfenced(value, write).map(|()| true)
        };
        match accepted {
            Ok(accepted) => Answer::Wrote { accepted },
            Err(error) => Answer::Failed {
                kind: "Register".into(),
                message: error.to_string(),
            },
        }
    }

    fn guard(&self, slot: u32) -> Option<(u64, Arc<Held>)> {
        self.slots().get(&slot).cloned()
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<u32, (u64, Arc<Held>)>> {
        self.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns token and deadline in the format of events.
pub(super) fn terms(guard: &Held) -> (Option<u64>, u64) {
    (
        guard.fencing_token().map(leasehold_core::FencingToken::get),
        guard.deadline().moment().as_nanos(),
    )
}

fn failed(error: &Error) -> Answer {
    Answer::Failed {
        kind: format!("{:?}", error.kind()),
        message: error.to_string(),
    }
}

fn no_guard(slot: u32) -> Answer {
    Answer::Failed {
        kind: "Slot".into(),
        message: format!("there is no guard in slot {slot}"),
    }
}

fn tell(id: u64, body: Answer) {
    peer::tell(
        serde_json::to_string(&Numbered { id, body }).expect("an answer can always be encoded"),
    );
}
