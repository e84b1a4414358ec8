//! [`LockEntry`]: the holders and the waiters of one key.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use leasehold_core::{Error, ErrorKind, FencingToken, Mode, Result, Timestamp, backend::Request};
use tokio::sync::Notify;

use super::{
    error::ERRORS,
    grant::{Grant, Issuer, NO_FLOOR},
    holders::Holders,
};

/// A waiter of one key: in the queue, or outside of it as a watcher.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) request: Request,
    /// The position in the order of arrival.
    pub(super) number: u64,
    pub(super) notify: Notify,
    pub(super) outcome: OnceLock<Result<Arc<Grant>>>,
    /// The time at which the waiter checks again on its own, because a holder expires then. Written
    /// under the lock of the shard.
    next_check: AtomicU64,
}

impl Waiter {
    pub(super) fn new(request: Request, issuer: &Issuer) -> Self {
        let number = issuer.next_number();
        Self {
            request,
            number,
            notify: Notify::new(),
            outcome: OnceLock::new(),
            next_check: AtomicU64::new(u64::MAX),
        }
    }

    pub(super) fn check_again_at(&self, at: Timestamp) {
        self.next_check.store(at.as_nanos(), Ordering::Relaxed);
    }
}

/// The holders of one key and its waiters.
#[derive(Debug, Default)]
pub(super) struct LockEntry {
    pub(super) holders: Holders,
    /// Waiters by their numbers.
    pub(super) queue: BTreeMap<u64, Arc<Waiter>>,
    /// Callers whose attempt was refused and that will make another one. The entry notifies them,
    /// but never grants to them.
    pub(super) watchers: BTreeMap<u64, Arc<Waiter>>,
    /// The largest token that was granted or stored for this key.
    pub(super) last_token: Option<FencingToken>,
}

impl LockEntry {
    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.queue.is_empty() && self.watchers.is_empty()
    }

    /// Returns an error if a semaphore of this name is in use with another number of permits.
    pub(super) fn check(&self, request: &Request) -> Result<()> {
        let Mode::Permit { of } = request.mode() else {
            return Ok(());
        };
        let held = self.holders.any().map(|holder| &holder.grant.request);
        let queued = || self.queue.values().next().map(|waiter| &waiter.request);
        match held.or_else(queued).map(Request::mode) {
            Some(Mode::Permit { of: other }) if other != of => Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "`{}` is in use as a semaphore of {other} permits, but {of} were requested; \
                     use the same number for every semaphore of this name",
                    request.key()
                ),
            )
            .with_backend(ERRORS.backend())),
            _ => Ok(()),
        }
    }

    /// Grants the lock now, with a token above `token_floor`, or returns `None`. No request
    /// overtakes the queue, and no reader overtakes a writer that is a watcher.
    pub(super) fn try_grant(
        &mut self,
        request: &Request,
        token_floor: FencingToken,
        issuer: &Issuer,
    ) -> Result<Option<Arc<Grant>>> {
        self.update(issuer);
        self.check(request)?;
        if !self.admits_newcomer(request.mode()) {
            return Ok(None);
        }
        self.grant(request, token_floor, issuer).map(Some)
    }

    fn grant(
        &mut self,
        request: &Request,
        token_floor: FencingToken,
        issuer: &Issuer,
    ) -> Result<Arc<Grant>> {
        let holder = issuer.grant(request, token_floor)?;
        let grant = Arc::clone(&holder.grant);
        self.last_token = self.last_token.max(grant.token);
        self.holders.add(holder);
        Ok(grant)
    }

    /// Updates the entry to the present time.
    ///
    /// It removes expired holders, grants to the queue in order, and notifies the watchers that
    /// could get the lock. The first waiter of the queue is notified if its next check is later
    /// than the next expiry.
    pub(super) fn update(&mut self, issuer: &Issuer) {
        if self.holders.is_empty() && self.queue.is_empty() && self.watchers.is_empty() {
            return;
        }
        self.holders.expire(issuer);
        while self
            .head()
            .is_some_and(|head| admits(&self.holders, head.request.mode()))
            && let Some((_, waiter)) = self.queue.pop_first()
        {
            let outcome = self.grant(&waiter.request, NO_FLOOR, issuer);
            // A waiter leaves the queue when it is served, so its outcome is set once.
            let is_first = waiter.outcome.set(outcome).is_ok();
            debug_assert!(is_first, "a waiter is granted the lock once");
            waiter.notify.notify_one();
        }
        if let (Some(head), Some(expiry)) = (self.head(), self.holders.first_expiry())
            && head.next_check.load(Ordering::Relaxed) > expiry.as_nanos()
        {
            head.notify.notify_one();
        }
        for watcher in self.watchers.values() {
            if self.admits_newcomer(watcher.request.mode()) {
                watcher.notify.notify_one();
            }
        }
    }

    fn head(&self) -> Option<&Arc<Waiter>> {
        self.queue.first_key_value().map(|(_, waiter)| waiter)
    }

    fn admits_newcomer(&self, mode: Mode) -> bool {
        let overtakes_a_writer = || {
            mode == Mode::Shared
                && self
                    .watchers
                    .values()
                    .any(|watcher| watcher.request.mode() == Mode::Exclusive)
        };
        self.queue.is_empty() && admits(&self.holders, mode) && !overtakes_a_writer()
    }
}

fn admits(holders: &Holders, mode: Mode) -> bool {
    match mode {
        // A holder of any other mode is the only holder.
        Mode::Shared => holders
            .any()
            .is_none_or(|holder| holder.grant.request.mode() == Mode::Shared),
        Mode::Permit { of } => holders.len() < usize::try_from(of.get()).unwrap_or(usize::MAX),
        // `Mode` is non-exhaustive. An unknown mode is treated as exclusive.
        _ => holders.is_empty(),
    }
}
