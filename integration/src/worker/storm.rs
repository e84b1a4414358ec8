use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold_core::{ErrorKind, LockClient, LockGuard};
use tokio::task::JoinSet;

use leasehold_testkit::history::{Op, Phase, Write};

use super::{
    event::EventLog,
    protocol::{Answer, Storm},
    register::Register,
    serve::terms,
};

/// The pause of a task after an error, so that a server that is down is not hammered.
const AFTER_ERROR: Duration = Duration::from_millis(20);

/// A storm under way.
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
        let tasks = (0..plan.tasks).map(|_| Arc::clone(&shared).rounds()).collect();
        Self { shared, tasks }
    }

    pub(super) fn count(&self) -> Answer {
        let Shared { granted, timed_out, errors, .. } = &*self.shared;
        let errors = errors.lock().unwrap_or_else(PoisonError::into_inner).clone().into_iter().collect();
        let (granted, timed_out) = (granted.load(Ordering::Relaxed), timed_out.load(Ordering::Relaxed));
        Answer::Storm { granted, timed_out, errors }
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
    async fn rounds(self: Arc<Self>) {
        while !self.over.load(Ordering::Relaxed) {
            self.round().await;
        }
    }

    async fn round(&self) {
        let (key, attempt) = (&self.plan.key, self.log.next_attempt());
        self.log.write(attempt, key, (Op::Acquire, Phase::Invoke), None, None);
        let within = Duration::from_millis(self.plan.within_ms);
        match self.client.mutex(key.as_str()).lock_within(within).await {
            Ok(guard) => self.granted(attempt, guard).await,
            Err(error) => {
                self.log.write(attempt, key, (Op::Acquire, Phase::Fail), None, None);
                if error.kind() == ErrorKind::TimedOut {
                    self.timed_out.fetch_add(1, Ordering::Relaxed);
                } else {
                    self.fault(&format!("{:?}", error.kind()));
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
    }

    async fn granted(&self, attempt: u64, guard: LockGuard) {
        let key = &self.plan.key;
        let (token, deadline) = terms(&guard);
        self.log.write(attempt, key, (Op::Acquire, Phase::Ok), token, Some(deadline));
        self.granted.fetch_add(1, Ordering::Relaxed);
        if self.plan.write {
            self.change(attempt, &guard).await;
        } else if self.plan.hold_us > 0 {
            tokio::time::sleep(Duration::from_micros(self.plan.hold_us)).await;
        }
        let (token, deadline) = terms(&guard);
        self.log.write(attempt, key, (Op::Release, Phase::Invoke), token, Some(deadline));
        let released = guard.release().await;
        let phase = if released.is_ok() { Phase::Ok } else { Phase::Info };
        self.log.write(attempt, key, (Op::Release, phase), token, None);
    }

    /// Reads the register, and writes one more, as a program that trusts its lock does.
    async fn change(&self, attempt: u64, guard: &LockGuard) {
        let (token, _) = terms(guard);
        let shown = token.unwrap_or(0);
        let Some(read) = self.blocking(move |register| register.read(shown)).await else {
            self.log.write(attempt, &self.plan.key, (Op::Write, Phase::Fail), token, None);
            return;
        };
        tokio::time::sleep(Duration::from_micros(self.plan.hold_us)).await;
        let (held, (_, deadline)) = (guard.is_held(), terms(guard));
        let phase = if held { Phase::Ok } else { Phase::Fail };
        self.log.write(attempt, &self.plan.key, (Op::Check, phase), token, Some(deadline));
        if !held {
            return;
        }
        let write = Write { proc: self.proc.clone(), read };
        let accepted = self.blocking(move |register| Ok(register.write(shown, read + 1, write)?.then_some(()))).await;
        let phase = if accepted.is_some() { Phase::Ok } else { Phase::Fail };
        self.log.write(attempt, &self.plan.key, (Op::Write, phase), token, None);
    }

    /// A paused process may hold the register's own lock: that must not stop this one's renewals.
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
        *self.errors.lock().unwrap_or_else(PoisonError::into_inner).entry(kind.to_owned()).or_default() += 1;
    }
}
