//! [`Grant`]: what a lease and its slot share; [`Issuer`], which makes them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use leasehold_core::{
    AcquisitionId, Clock, Error, ErrorKind, FencingToken, Result, Timestamp,
    backend::{AtomicDeadline, Request},
};

use super::{backend::NAME, holders::Holder};

/// Tokens outside of a quorum have no lower bound but the last one.
pub(super) const NO_FLOOR: FencingToken = FencingToken::new(0);

/// One grant. What may change about it, except for its deadline, is in the slot's [`Holder`].
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) request: Request,
    pub(super) token: Option<FencingToken>,
    pub(super) deadline: AtomicDeadline,
    number: u64,
}

impl Grant {
    /// Whose it is, and its number.
    pub(super) fn id(&self) -> (AcquisitionId, u64) {
        (self.request.owner(), self.number)
    }
}

/// The clock that grants expire by, and the counters of their tokens, of grants and of tickets.
#[derive(Debug)]
pub(super) struct Issuer {
    clock: Arc<dyn Clock>,
    /// One for all keys: it never has to be kept for a key that nobody holds, and still only grows
    /// for each.
    last_token: AtomicU64,
    last_number: AtomicU64,
}

impl Issuer {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            last_token: AtomicU64::new(0),
            last_number: AtomicU64::new(0),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(super) fn grant(&self, request: &Request, token_floor: FencingToken) -> Result<Holder> {
        let token = if request.mode().is_permit() {
            None
        } else {
            Some(self.next_token(token_floor)?)
        };
        // The holder's clock is read before the one that the grant expires by: so it stops
        // believing first.
        let deadline = AtomicDeadline::new(request.deadline_from(request.now()));
        let expires = self.now() + request.ttl().as_duration();
        let grant = Arc::new(Grant {
            request: request.clone(),
            token,
            deadline,
            number: self.next_number(),
        });
        Ok(Holder::new(grant, expires))
    }

    /// Numbers grow.
    pub(super) fn next_number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed)
    }

    fn next_token(&self, floor: FencingToken) -> Result<FencingToken> {
        let floor = floor.get();
        self.last_token
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                last.max(floor).checked_add(1)
            })
            .map(|last| FencingToken::new(last.max(floor) + 1))
            .map_err(|_| {
                Error::new(
                    ErrorKind::InvalidInput,
                    format!("no fencing token is left above the floor {floor}"),
                )
                .with_backend(NAME)
            })
    }

    /// The largest token of any key.
    pub(super) fn last(&self) -> FencingToken {
        FencingToken::new(self.last_token.load(Ordering::Relaxed))
    }

    /// Lets the next tokens of all keys exceed this one.
    pub(super) fn raise(&self, token: FencingToken) {
        self.last_token.fetch_max(token.get(), Ordering::Relaxed);
    }
}
