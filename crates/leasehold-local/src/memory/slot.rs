//! [`Slot`]: the holders and the waiters of one key.

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
    backend::NAME,
    grant::{Grant, Issuer, NO_FLOOR},
    holders::Holders,
};

/// One who waits, in the queue or (for those who bring their own loop) as a watcher.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) request: Request,
    /// Its place in the order of those who wait.
    pub(super) number: u64,
    pub(super) called: Notify,
    pub(super) outcome: OnceLock<Result<Arc<Grant>>>,
    /// When the waiter looks again by itself, because a holder expires then. Written under the
    /// shard's lock.
    armed: AtomicU64,
}

impl Ticket {
    pub(super) fn new(request: Request, issuer: &Issuer) -> Self {
        let number = issuer.next_number();
        Self {
            request,
            number,
            called: Notify::new(),
            outcome: OnceLock::new(),
            armed: AtomicU64::new(u64::MAX),
        }
    }

    pub(super) fn arm(&self, at: Timestamp) {
        self.armed.store(at.as_nanos(), Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) holders: Holders,
    /// By their numbers.
    pub(super) queue: BTreeMap<u64, Arc<Ticket>>,
    /// Refused attempts whose callers wait for a wake-up. They are not granted anything; they come
    /// back.
    pub(super) watchers: BTreeMap<u64, Arc<Ticket>>,
    /// The largest token that was granted or stored here.
    pub(super) last_token: Option<FencingToken>,
}

impl Slot {
    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.queue.is_empty() && self.watchers.is_empty()
    }

    /// All who use one name must agree on the number of permits.
    pub(super) fn check(&self, request: &Request) -> Result<()> {
        let Mode::Permit { of } = request.mode() else {
            return Ok(());
        };
        // All who are here agree.
        let held = self.holders.any().map(|holder| &holder.grant.request);
        let queued = || self.queue.values().next().map(|ticket| &ticket.request);
        match held.or_else(queued).map(Request::mode) {
            Some(Mode::Permit { of: other }) if other != of => Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "`{}` is in use as a semaphore of {other} permits, and {of} were asked for; use one number for one name",
                    request.key()
                ),
            )
            .with_backend(NAME)),
            _ => Ok(()),
        }
    }

    /// Grants at once or not at all, with a token above `token_floor`. Nobody overtakes the queue,
    /// and no reader overtakes a writer that watches.
    pub(super) fn try_grant(
        &mut self,
        request: &Request,
        token_floor: FencingToken,
        issuer: &Issuer,
    ) -> Result<Option<Arc<Grant>>> {
        self.settle(issuer);
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

    /// Brings the slot up to date: drops what has expired, serves the queue in order, wakes the
    /// watchers that could get in, and sees that the head of the queue looks again when the first
    /// holder expires.
    pub(super) fn settle(&mut self, issuer: &Issuer) {
        if self.holders.is_empty() && self.queue.is_empty() && self.watchers.is_empty() {
            return;
        }
        self.holders.expire(issuer);
        while self
            .head()
            .is_some_and(|head| admits(&self.holders, head.request.mode()))
            && let Some((_, ticket)) = self.queue.pop_first()
        {
            let outcome = self.grant(&ticket.request, NO_FLOOR, issuer);
            // Nobody else sets it: a ticket is served where it leaves the queue.
            let served = ticket.outcome.set(outcome).is_ok();
            debug_assert!(served, "a ticket is served once");
            ticket.called.notify_one();
        }
        if let (Some(head), Some(expiry)) = (self.head(), self.holders.first_expiry())
            && head.armed.load(Ordering::Relaxed) > expiry.as_nanos()
        {
            head.called.notify_one();
        }
        for watcher in self.watchers.values() {
            if self.admits_newcomer(watcher.request.mode()) {
                watcher.called.notify_one();
            }
        }
    }

    fn head(&self) -> Option<&Arc<Ticket>> {
        self.queue.first_key_value().map(|(_, ticket)| ticket)
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
        // One who is not a reader holds alone.
        Mode::Shared => holders
            .any()
            .is_none_or(|holder| holder.grant.request.mode() == Mode::Shared),
        Mode::Permit { of } => holders.len() < usize::try_from(of.get()).unwrap_or(usize::MAX),
        // `Mode` may grow: alone is right for any.
        _ => holders.is_empty(),
    }
}
