//! [`WaiterGuard`]: one waiter in a lock entry, removed when it is dropped.

use std::{sync::Arc, time::Duration};

use leasehold_core::{Result, backend::Request};

use super::{
    grant::Grant,
    lock_entry::{LockEntry, Waiter},
    state::State,
};

/// The registration of one waiter.
///
/// Dropping it removes the waiter from its entry and releases a grant that was made but not taken.
/// A cancellation, or a runtime that shuts down, therefore leaves neither a waiter nor a lock
/// behind.
#[derive(Debug)]
pub(super) struct WaiterGuard {
    state: Arc<State>,
    pub(super) waiter: Arc<Waiter>,
    taken: bool,
}

/// The state of a waiter in the queue.
pub(super) enum Progress {
    Granted(Arc<Grant>),
    /// Check again after this time, or when notified.
    Pending(Duration),
}

impl WaiterGuard {
    /// Appends a waiter to the queue.
    pub(super) fn in_queue(state: Arc<State>, entry: &mut LockEntry, request: Request) -> Self {
        let waiter = Arc::new(Waiter::new(request, &state.issuer));
        entry.queue.insert(waiter.number, Arc::clone(&waiter));
        Self {
            state,
            waiter,
            taken: false,
        }
    }

    /// Adds a watcher, which is outside of the queue. It is notified when a new attempt may
    /// succeed.
    pub(super) fn as_watcher(state: Arc<State>, entry: &mut LockEntry, request: Request) -> Self {
        let waiter = Arc::new(Waiter::new(request, &state.issuer));
        entry.watchers.insert(waiter.number, Arc::clone(&waiter));
        Self {
            state,
            waiter,
            taken: false,
        }
    }

    pub(super) fn progress(&mut self) -> Result<Progress> {
        if self.waiter.outcome.get().is_none() {
            let wait = self.with_entry(|entry| {
                entry.update(&self.state.issuer);
                let expiry = entry.holders.first_expiry()?;
                self.waiter.check_again_at(expiry);
                Some(expiry.since(self.state.issuer.now()))
            });
            if self.waiter.outcome.get().is_none() {
                // `update` grants the lock to the first waiter unless there is a holder. The other
                // waiters are notified when they become the first.
                return Ok(Progress::Pending(wait.unwrap_or(Duration::MAX)));
            }
        }
        match self.waiter.outcome.get() {
            Some(Ok(grant)) => {
                self.taken = true;
                Ok(Progress::Granted(Arc::clone(grant)))
            }
            Some(Err(error)) => Err(error.clone()),
            None => Ok(Progress::Pending(Duration::ZERO)),
        }
    }

    fn with_entry<R>(&self, work: impl FnOnce(&mut LockEntry) -> R) -> R {
        self.state.with_entry(&self.waiter.request, work)
    }
}

impl Drop for WaiterGuard {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        self.with_entry(|entry| {
            entry.queue.remove(&self.waiter.number);
            entry.watchers.remove(&self.waiter.number);
            if let Some(Ok(grant)) = self.waiter.outcome.get() {
                entry.holders.remove(grant);
            }
            entry.update(&self.state.issuer);
        });
    }
}
