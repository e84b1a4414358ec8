//! [`Grant`]: one granted lock. [`Issuer`]: the source of tokens and numbers.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use leasehold_core::{
    AcquisitionId, Clock, Error, ErrorKind, FencingToken, Result, Timestamp,
    backend::{AtomicDeadline, Request},
};

use super::error::ERRORS;

/// The floor of tokens outside of a quorum.
pub(super) const NO_FLOOR: FencingToken = FencingToken::new(0);

/// One granted lock, shared by its lease and its [`Holder`].
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) request: Request,
    pub(super) token: Option<FencingToken>,
    pub(super) deadline: AtomicDeadline,
    number: u64,
}

impl Grant {
    /// Returns the id of the acquisition and the number of the grant.
    pub(super) fn id(&self) -> (AcquisitionId, u64) {
        (self.request.owner(), self.number)
    }
}

/// A holder of a key, in its [`LockEntry`](super::lock_entry::LockEntry).
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) grant: Arc<Grant>,
    pub(super) expires: Timestamp,
    /// Cleared when the lock is revoked gracefully.
    pub(super) renewable: bool,
    /// The token of the grant, or the larger token that a quorum raised it to.
    pub(super) stored_token: Option<FencingToken>,
}

impl Holder {
    pub(super) fn new(grant: Arc<Grant>, expires: Timestamp) -> Self {
        let stored_token = grant.token;
        Self {
            grant,
            expires,
            renewable: true,
            stored_token,
        }
    }
}

/// The clock by which grants expire, and the counters of tokens and numbers.
#[derive(Debug)]
pub(super) struct Issuer {
    clock: Arc<dyn Clock>,
    /// One counter for all keys. It needs no entry for a key that is free, and its tokens grow for
    /// each key.
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
        // The holder's clock is read before the backend's clock, so the holder's deadline comes
        // first.
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

    /// Returns a number that is larger than every earlier one.
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
                .with_backend(ERRORS.backend())
            })
    }

    /// Returns the largest token of any key.
    pub(super) fn last(&self) -> FencingToken {
        FencingToken::new(self.last_token.load(Ordering::Relaxed))
    }

    /// Makes the next tokens of all keys larger than `token`.
    pub(super) fn raise(&self, token: FencingToken) {
        self.last_token.fetch_max(token.get(), Ordering::Relaxed);
    }
}
