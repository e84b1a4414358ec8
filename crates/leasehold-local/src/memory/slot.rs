//! [`Slot`]: the holders and the waiters of one key.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use leasehold_core::{Error, ErrorKind, FencingToken, Mode, Moment, OwnerId, Request, Result};
use tokio::sync::Notify;

use super::{
    backend::NAME,
    grant::{Grant, Issuer},
};

#[derive(Debug)]
pub(super) struct Holder {
    pub(super) grant: Arc<Grant>,
    pub(super) expires: Moment,
    /// Cleared when the lock is broken gently.
    pub(super) renewable: bool,
    /// The grant's token, or the higher one that a quorum raised it to.
    pub(super) stored_token: Option<FencingToken>,
}

/// One who waits, in the queue or (for those who bring their own loop) as a watcher.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) request: Request,
    pub(super) called: Notify,
    pub(super) outcome: OnceLock<Result<Arc<Grant>>>,
    /// When the waiter looks again by itself, because a holder expires then. Written under the shard's lock.
    armed: AtomicU64,
}

impl Ticket {
    pub(super) fn new(request: Request) -> Self {
        Self { request, called: Notify::new(), outcome: OnceLock::new(), armed: AtomicU64::new(u64::MAX) }
    }

    pub(super) fn arm(&self, at: Moment) {
        self.armed.store(at.as_nanos(), Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) holders: Vec<Holder>,
    pub(super) queue: VecDeque<Arc<Ticket>>,
    /// Refused attempts whose callers wait for a wake-up. They are not granted anything; they come back.
    pub(super) watchers: Vec<Arc<Ticket>>,
}

impl Slot {
    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.queue.is_empty() && self.watchers.is_empty()
    }

    /// All who use one name must agree on the number of permits.
    pub(super) fn check(&self, request: &Request) -> Result<()> {
        let Mode::Permit { of } = request.mode() else { return Ok(()) };
        let held = self.holders.iter().map(|holder| &holder.grant.request);
        let queued = self.queue.iter().map(|ticket| &ticket.request);
        match held.chain(queued).next().map(Request::mode) {
            Some(Mode::Permit { of: other }) if other != of => Err(Error::new(
                ErrorKind::Mismatch,
                format!(
                    "`{}` is in use as a semaphore of {other} permits, and {of} were asked for; use one number for one name",
                    request.key()
                ),
            )
            .with_backend(NAME)),
            _ => Ok(()),
        }
    }

    /// Grants at once, or says no. Nobody overtakes the queue, and no reader overtakes a writer that watches.
    pub(super) fn try_grant(&mut self, request: &Request, issuer: &Issuer) -> Result<Option<Arc<Grant>>> {
        self.settle(issuer);
        self.check(request)?;
        if !self.admits_newcomer(request.mode()) {
            return Ok(None);
        }
        let holder = issuer.grant(request)?;
        let grant = Arc::clone(&holder.grant);
        self.holders.push(holder);
        Ok(Some(grant))
    }

    /// Brings the slot up to date: drops what has expired, serves the queue in order, wakes the watchers that could get
    /// in, and sees that the head of the queue looks again when the first holder expires.
    pub(super) fn settle(&mut self, issuer: &Issuer) {
        if self.holders.is_empty() && self.queue.is_empty() && self.watchers.is_empty() {
            return;
        }
        let now = issuer.now();
        self.holders.retain(|holder| holder.expires > now);
        while self.queue.front().is_some_and(|head| admits(&self.holders, head.request.mode()))
            && let Some(ticket) = self.queue.pop_front()
        {
            let outcome = issuer.grant(&ticket.request).map(|holder| {
                let grant = Arc::clone(&holder.grant);
                self.holders.push(holder);
                grant
            });
            // Nobody else sets it: a ticket is served where it leaves the queue.
            let served = ticket.outcome.set(outcome).is_ok();
            debug_assert!(served, "a ticket is served once");
            ticket.called.notify_one();
        }
        if let (Some(head), Some(expiry)) = (self.queue.front(), self.first_expiry())
            && head.armed.load(Ordering::Relaxed) > expiry.as_nanos()
        {
            head.called.notify_one();
        }
        for watcher in &self.watchers {
            if self.admits_newcomer(watcher.request.mode()) {
                watcher.called.notify_one();
            }
        }
    }

    pub(super) fn first_expiry(&self) -> Option<Moment> {
        self.holders.iter().map(|holder| holder.expires).min()
    }

    pub(super) fn holder_mut(&mut self, grant: &Arc<Grant>) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|holder| Arc::ptr_eq(&holder.grant, grant))
    }

    /// Whether it was there.
    pub(super) fn remove_holder(&mut self, grant: &Arc<Grant>) -> bool {
        let at = self.holders.iter().position(|holder| Arc::ptr_eq(&holder.grant, grant));
        at.map(|at| self.holders.remove(at)).is_some()
    }

    /// Whether it was there.
    pub(super) fn remove_owner(&mut self, owner: OwnerId) -> bool {
        let at = self.holders.iter().position(|holder| holder.grant.request.owner() == owner);
        at.map(|at| self.holders.remove(at)).is_some()
    }

    fn admits_newcomer(&self, mode: Mode) -> bool {
        let overtakes_a_writer =
            || mode == Mode::Shared && self.watchers.iter().any(|watcher| watcher.request.mode() == Mode::Exclusive);
        self.queue.is_empty() && admits(&self.holders, mode) && !overtakes_a_writer()
    }
}

fn admits(holders: &[Holder], mode: Mode) -> bool {
    match mode {
        Mode::Shared => holders.iter().all(|holder| holder.grant.request.mode() == Mode::Shared),
        Mode::Permit { of } => holders.len() < usize::try_from(of.get()).unwrap_or(usize::MAX),
        // `Mode` may grow: alone is right for any.
        _ => holders.is_empty(),
    }
}
