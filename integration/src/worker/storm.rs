use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::pending,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold_core::{Error, ErrorKind, LockClient, Released};
use rand::RngExt;
use tokio::task::JoinSet;

use leasehold_testkit::history::{Op, Phase, Write};

use super::{
    event::EventLog,
    protocol::{Answer, Storm},
    register::Register,
    serve::terms,
};
use crate::held::Held;

/// The delay of a task after an error, so that a failing server is not overloaded.
const AFTER_ERROR: Duration = Duration::from_millis(20);

/// The interval at which a task with a long hold checks its guard.
const LONG_HOLD_CHECK: Duration = Duration::from_millis(20);

fn one_in(n: u32) -> bool {
    n > 0 && rand::rng().random_ratio(1, n)
}

/// Runs a storm for as long as the future is polled.
pub async fn storm(
    client: &LockClient,
    log: &Arc<EventLog>,
    register: &Register,
    proc: &str,
    plan: &Storm,
) -> Infallible {
    let _running = Running::begin(client, log, register, proc, plan);
    pending().await
}

/// A running storm.
#[derive(Debug)]
pub(super) struct Running {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    client: LockClient,
    log: Arc<EventLog>,
    register: Register,
    proc: String,
    plan: Storm,
    over: AtomicBool,
    granted: AtomicU64,
    timed_out: AtomicU64,
    errors: Mutex<BTreeMap<String, u64>>,
}

impl Running {
    pub(super) fn begin(
        client: &LockClient,
        log: &Arc<EventLog>,
        register: &Register,
        proc: &str,
        plan: &Storm,
    ) -> Self {
        let shared = Arc::new(Shared {
            client: client.clone(),
            log: Arc::clone(log),
            register: register.clone(),
            proc: proc.to_owned(),
            plan: plan.clone(),
            over: AtomicBool::new(false),
            granted: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            errors: Mutex::default(),
        });
        let tasks = (0..plan.tasks)
            .map(|task| Arc::clone(&shared).rounds(task < plan.readers))
            .collect();
        Self { shared, tasks }
    }

    pub(super) fn count(&self) -> Answer {
        let Shared {
            granted,
            timed_out,
            errors,
            ..
        } = &*self.shared;
        let errors = errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .into_iter()
            .collect();
        let (granted, timed_out) = (
            granted.load(Ordering::Relaxed),
            timed_out.load(Ordering::Relaxed),
        );
        Answer::Storm {
            granted,
            timed_out,
            errors,
        }
    }

    pub(super) async fn end(mut self) -> Answer {
        self.shared.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            if ended.is_err() {
                self.shared.fault("Panic");
            }
        }
        self.count()
    }
}

impl Shared {
    async fn rounds(self: Arc<Self>, shared: bool) {
        while !self.over.load(Ordering::Relaxed) {
            self.round(shared).await;
        }
    }

    async fn round(&self, shared: bool) {
        let (key, attempt) = (&self.plan.key, self.log.next_attempt());
        self.write(shared, attempt, (Op::Acquire, Phase::Invoke), None, None);
        let within = Duration::from_millis(self.plan.within_ms);
        let lock = self.client.rwlock(key.as_str());
        let acquisition = async {
            Ok(if self.plan.election {
                let election = self.client.election(key.as_str());
                let term = election.campaign_timeout(&self.proc, within).await?;
                term.map(Held::from)
            } else if shared {
                lock.read_timeout(within).await?.map(Held::from)
            } else {
                lock.write_timeout(within).await?.map(Held::from)
            })
        };
        let acquired = if one_in(self.plan.drop_in) {
            let dropped_after = Duration::from_micros(rand::rng().random_range(0..20_000));
            tokio::time::timeout(dropped_after, acquisition).await.ok()
        } else {
            Some(acquisition.await)
        };
        match acquired {
            Some(Ok(Some(guard))) => self.granted(shared, attempt, guard).await,
            Some(Ok(None)) => {
                self.write(shared, attempt, (Op::Acquire, Phase::Fail), None, None);
                self.timed_out.fetch_add(1, Ordering::Relaxed);
            }
            None => self.write(shared, attempt, (Op::Acquire, Phase::Info), None, None),
            Some(Err::<_, Error>(error)) => {
                self.write(shared, attempt, (Op::Acquire, Phase::Fail), None, None);
                if !error.is_retryable() && error.kind() != ErrorKind::Lost {
                    eprintln!("{}: {error}", self.proc);
                }
                self.fault(&format!("{:?}", error.kind()));
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }

    async fn granted(&self, shared: bool, attempt: u64, guard: Held) {
        let (token, deadline) = terms(&guard);
        self.write(
            shared,
            attempt,
            (Op::Acquire, Phase::Ok),
            token,
            Some(deadline),
        );
        self.granted.fetch_add(1, Ordering::Relaxed);
        if one_in(self.plan.long_in) {
            self.hold_long(shared, attempt, &guard).await;
        } else if self.plan.write && !shared {
            self.change(attempt, &guard).await;
        } else if self.plan.hold_us > 0 {
            tokio::time::sleep(Duration::from_micros(self.plan.hold_us)).await;
        }
        let (token, deadline) = terms(&guard);
        self.write(
            shared,
            attempt,
            (Op::Release, Phase::Invoke),
            token,
            Some(deadline),
        );
        let phase = match guard.release().await {
            Ok(Released::Freed) => Phase::Ok,
            Ok(_) => Phase::Fail,
            Err(_) => Phase::Info,
        };
        self.write(shared, attempt, (Op::Release, phase), token, None);
    }

    /// Holds until the lock is lost, or for one and a half TTLs, and repeatedly logs its deadline.
    async fn hold_long(&self, shared: bool, attempt: u64, guard: &Held) {
        let (ttl, mut held) = (guard.ttl().as_duration(), Duration::ZERO);
        while held < ttl * 3 / 2 && !self.over.load(Ordering::Relaxed) {
            tokio::time::sleep(LONG_HOLD_CHECK).await;
            held += LONG_HOLD_CHECK;
            // The deadline is read first: a renewal never moves one that has passed.
            let (token, deadline) = terms(guard);
            if !guard.is_held() {
                self.write(shared, attempt, (Op::Check, Phase::Fail), token, None);
                return;
            }
            self.write(
                shared,
                attempt,
                (Op::Check, Phase::Ok),
                token,
                Some(deadline),
            );
        }
    }

    fn write(
        &self,
        shared: bool,
        attempt: u64,
        step: (Op, Phase),
        token: Option<u64>,
        deadline: Option<u64>,
    ) {
        self.log
            .write_as(shared, attempt, &self.plan.key, step, token, deadline);
    }

    /// Reads the register and writes the next value, as a program that trusts its lock does.
    async fn change(&self, attempt: u64, guard: &Held) {
        let (token, _) = terms(guard);
        let shown = token.unwrap_or(0);
        let Some(read) = self.blocking(move |register| register.read(shown)).await else {
            self.log.write(
                attempt,
                &self.plan.key,
                (Op::Write, Phase::Fail),
                token,
                None,
            );
            return;
        };
        tokio::time::sleep(Duration::from_micros(self.plan.hold_us)).await;
        let (held, (_, deadline)) = (guard.is_held(), terms(guard));
        let phase = if held { Phase::Ok } else { Phase::Fail };
        self.log.write(
            attempt,
            &self.plan.key,
            (Op::Check, phase),
            token,
            Some(deadline),
        );
        if !held {
            return;
        }
        let write = Write {
            proc: self.proc.clone(),
            read,
        };
        let accepted = self
            .blocking(move |register| Ok(register.write(shown, read + 1, write)?.then_some(())))
            .await;
        let phase = if accepted.is_some() {
            Phase::Ok
        } else {
            Phase::Fail
        };
        self.log
            .write(attempt, &self.plan.key, (Op::Write, phase), token, None);
    }

    /// Runs `work` on a blocking thread. A paused process may hold the register's file lock, which
    /// must not delay this process's renewals.
    async fn blocking<T: Send + 'static>(
        &self,
        access: impl FnOnce(&Register) -> std::io::Result<Option<T>> + Send + 'static,
    ) -> Option<T> {
        let register = self.register.clone();
        match tokio::task::spawn_blocking(move || access(&register)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => {
                self.fault("Register");
                None
            }
        }
    }

    fn fault(&self, kind: &str) {
        *self
            .errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(kind.to_owned())
            .or_default() += 1;
    }
}
