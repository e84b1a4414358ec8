//! A client that locks, checks its guard, writes and releases. It records each step before it acts
//! on it.

use std::{rc::Rc, sync::Arc, time::Duration};

use leasehold_core::{Clock, LockClient, LockGuard, Ttl, backend::LockBackend};
use leasehold_testkit::{
    history::{Event, Op, Phase},
    sim::{SimBackend, SimClock},
};

use crate::world::{KEY, Shared, TTL};

pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) links: Vec<Arc<SimBackend>>,
    pub(crate) locks: LockClient,
    pub(crate) shared: Rc<Shared>,
}

impl Client {
    pub(crate) fn new(
        name: String,
        clock: Arc<SimClock>,
        links: Vec<Arc<SimBackend>>,
        quorum: Arc<dyn LockBackend>,
        shared: &Rc<Shared>,
    ) -> Self {
        let ttl = Ttl::new(TTL).unwrap();
        let locks = LockClient::builder(quorum)
            .with_ttl(ttl)
            .with_clock(Arc::clone(&clock) as Arc<dyn Clock>)
            .build();
        Self {
            name,
            clock,
            links,
            locks,
            shared: Rc::clone(shared),
        }
    }

    /// Acquires and releases the lock repeatedly until the faults are over.
    pub(crate) async fn work(&self) {
        while !self.shared.is_over() {
            tokio::time::sleep(self.shared.between(0..60)).await;
            let within = self.shared.between(0..1500);
            let attempt = self.shared.next_attempt();
            self.note(attempt, (Op::Acquire, Phase::Invoke), None);
            match self.locks.mutex(KEY).lock_timeout(within).await {
                Ok(Some(guard)) => {
                    // Records a loss at once, even while the client is busy.
                    let view = guard.info();
                    let lost = async {
                        view.lost().await;
                        self.note(attempt, (Op::Check, Phase::Fail), None);
                        std::future::pending::<()>().await;
                    };
                    tokio::select! {
                        biased;
                        () = lost => {}
                        () = self.hold(attempt, guard) => {}
                    }
                }
                Ok(None) | Err(_) => self.note(attempt, (Op::Acquire, Phase::Info), None),
            }
        }
    }

    async fn hold(&self, attempt: u64, guard: LockGuard) {
        self.note(attempt, (Op::Acquire, Phase::Ok), Some(&guard));
        // Some locks are held for longer than the TTL, so that they are renewed.
        let checks = if self.shared.one_in(4) { 12 } else { 1 };
        for _ in 0..checks {
            if !guard.is_held() {
                self.note(attempt, (Op::Check, Phase::Fail), Some(&guard));
                break;
            }
            self.note(attempt, (Op::Check, Phase::Ok), Some(&guard));
            self.change(&guard).await;
            tokio::time::sleep(self.shared.between(1..120)).await;
        }
        self.note(attempt, (Op::Release, Phase::Invoke), Some(&guard));
        if self.shared.one_in(3) {
            drop(guard);
        } else {
            let phase = if guard.release().await.is_ok() {
                Phase::Ok
            } else {
                Phase::Info
            };
            self.note(attempt, (Op::Release, phase), None);
        }
    }

    /// Reads and writes the register. Some accesses are so slow that only the token protects the
    /// register.
    async fn change(&self, guard: &LockGuard) {
        let Some(token) = guard.fencing_token().map(leasehold_core::FencingToken::get) else {
            return;
        };
        let Some(read) = self.shared.register.borrow_mut().read(token) else {
            return;
        };
        let pause = if self.shared.one_in(10) {
            self.shared.between(0..3000)
        } else {
            self.shared.between(0..3)
        };
        tokio::time::sleep(pause).await;
        self.shared
            .register
            .borrow_mut()
            .write(token, &self.name, read);
    }

    /// Acquires and releases the lock once after the faults. Retries errors, because the client may
    /// still consider some nodes unavailable.
    pub(crate) async fn acquires_within(&self, limit: Duration) -> Result<(), String> {
        let attempt = self.shared.next_attempt();
        self.note(attempt, (Op::Acquire, Phase::Invoke), None);
        let end = tokio::time::Instant::now() + limit;
        let guard = loop {
            match self
                .locks
                .mutex(KEY)
                .lock_timeout(end - tokio::time::Instant::now())
                .await
            {
                Ok(Some(guard)) => break guard,
                refused if tokio::time::Instant::now() >= end => {
                    return Err(format!(
                        "no leftovers: {} was not granted the lock within {limit:?} after the faults: {refused:?}",
                        self.name
                    ));
                }
                Ok(None) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.note(attempt, (Op::Acquire, Phase::Ok), Some(&guard));
        self.note(attempt, (Op::Release, Phase::Invoke), Some(&guard));
        let released = guard.release().await;
        released.map(drop).map_err(|error| {
            format!(
                "no leftovers: {} cannot release after the faults: {error}",
                self.name
            )
        })
    }

    fn note(&self, attempt: u64, (op, phase): (Op, Phase), guard: Option<&LockGuard>) {
        let deadline = guard.map(|guard| self.clock.true_time_of(guard.deadline().moment()));
        let token = guard
            .and_then(LockGuard::fencing_token)
            .map(leasehold_core::FencingToken::get);
        let event = Event {
            t_ns: self.clock.true_time(),
            proc: self.name.clone(),
            attempt,
            key: KEY.to_owned(),
            op,
            phase,
            shared: false,
            token,
            deadline,
        };
        self.shared.events.borrow_mut().push(event);
    }
}
