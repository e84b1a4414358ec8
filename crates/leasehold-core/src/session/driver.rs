//! The arguments and results of a driver: [`SessionClock`], [`Opened`], [`Owned`].

use crate::{
    backend::request::Request,
    clock::{Deadline, Timestamp},
    ttl::Ttl,
};

/// A newly opened session.
///
/// ```
/// use leasehold_core::{Deadline, Timestamp, session::Opened};
///
/// let deadline = Deadline::at(Timestamp::from_nanos(10_000_000_000));
/// let opened = Opened { handle: 4711, deadline };
/// assert_eq!(opened.handle, 4711);
/// ```
#[derive(Debug)]
pub struct Opened<H> {
    /// The driver's handle of the session.
    pub handle: H,
    /// The deadline until which the session lives unless it is renewed.
    pub deadline: Deadline,
}

/// The entries that the server lists for a session.
///
/// ```
/// use leasehold_core::session::Owned;
///
/// let owned = Owned { claims: vec!["item/42/0", "item/43/0"], revoked: vec!["item/43/0"] };
/// assert!(owned.revoked.iter().all(|claim| owned.claims.contains(claim)));
/// ```
#[derive(Debug)]
pub struct Owned<C> {
    /// All entries.
    pub claims: Vec<C>,
    /// The entries that an operator has gracefully revoked. Their locks are valid until the current
    /// deadline, which no longer moves.
    pub revoked: Vec<C>,
}

impl<C> Default for Owned<C> {
    fn default() -> Self {
        Self {
            claims: Vec::new(),
            revoked: Vec::new(),
        }
    }
}

/// The TTL of a session, with the clock and drift from which its deadlines are computed.
///
/// Both come from the request that opened the session. All clients of one backend must therefore
/// use the same clock.
///
/// See [`SessionDriver`](super::SessionDriver) for an example.
#[derive(Clone, Debug)]
pub struct SessionClock(Request);

impl SessionClock {
    pub(super) fn of(request: &Request) -> Self {
        // This request has a signal of its own, because the session outlives the request.
        Self(Request::in_context(
            request.key().clone(),
            request.mode(),
            request.ttl(),
            request.context(),
        ))
    }

    /// Returns the TTL.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        self.0.ttl()
    }

    /// Returns the label of the client that opened the session.
    #[must_use]
    pub fn label(&self) -> &str {
        self.0.label()
    }

    /// Returns the current time. Read it before the first byte of a renewal is sent.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// Returns the deadline of a session of this TTL that was opened or renewed at `sent`.
    #[must_use]
    pub fn deadline_from(&self, sent: Timestamp) -> Deadline {
        self.0.deadline_from(sent)
    }
}
