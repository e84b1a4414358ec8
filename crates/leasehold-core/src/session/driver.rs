//! [`SessionDriver`]: the trait that a session backend implements.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use async_trait::async_trait;

use crate::{
    backend::request::Request,
    clock::{Deadline, Timestamp},
    error::Result,
    session::Session,
    ttl::Ttl,
};

/// Opens, renews and closes the sessions of a backend.
///
/// # For implementors
/// Every call must end: give all input and output a timeout well below the TTL. No future of the
/// driver is dropped before it completes, unless its runtime shuts down.
#[async_trait]
pub trait SessionDriver: Debug + Send + Sync + 'static {
    /// The driver's handle of a session, such as a lease id or a connection.
    type Handle: Debug + Send + Sync + 'static;

    /// The server's entry for one acquisition: an etcd key, the UUID of a ZooKeeper node, an
    /// advisory lock. If the server adds a part that the client learns later, such as a sequence
    /// number, leave that part out of `Eq` and `Hash`.
    type Claim: Clone + Debug + Eq + Hash + Send + Sync + 'static;

    /// Returns the total [weight](Self::weight) of claims at which a session is full. Further
    /// claims go to another session of the same TTL.
    fn capacity(&self) -> usize {
        usize::MAX
    }

    /// Returns how much of its session's [capacity](Self::capacity) `claim` uses. The default is 1.
    ///
    /// A server that lists the entries of a session in one message bounds the size of that message.
    /// For such a server the weight is the length of the claim's name.
    fn weight(&self, _claim: &Self::Claim) -> usize {
        1
    }

    /// Returns the maximum number of sessions. An idle session is closed to make room for a new
    /// one. If none is idle, [`open`](Self::open) is called, and the driver reports that there are
    /// too many.
    fn max_sessions(&self) -> usize {
        usize::MAX
    }

    /// Opens a session. Read [`SessionClock::now`] *before* the first byte is sent.
    ///
    /// # Errors
    /// Returns the driver's error. A session that may have been opened is then closed or expires.
    async fn open(&self, time: &SessionClock) -> Result<Opened<Self::Handle>>;

    /// Receives the session that was opened through this handle. A driver that may detect the end
    /// of the session by itself calls [`Session::end`] *before* the server can free the session's
    /// locks.
    fn started(&self, _session: &Arc<Session<Self>>)
    where
        Self: Sized,
    {
    }

    /// Renews the session and returns its new deadline, which must not be later than the server has
    /// *proved*.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the server does not know the session,
    /// which is final. Any other error leaves the deadline unchanged.
    async fn renew(&self, handle: &Self::Handle, time: &SessionClock) -> Result<Deadline>;

    /// Returns the entries that the server lists for this session.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the session has ended. Any other
    /// error is retried at the next renewal. If it fails for a whole TTL, renewals no longer move
    /// the session's deadline.
    async fn list_owned(&self, handle: &Self::Handle) -> Result<Owned<Self::Claim>>;

    /// Removes entries that no guard and no request of this process owns.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the session has ended. Any other
    /// error is retried at the next renewal. If it fails for a whole TTL, renewals no longer move
    /// the session's deadline.
    async fn delete_orphans(&self, handle: &Self::Handle, orphans: Vec<Self::Claim>) -> Result<()>;

    /// Ends the session and all locks in it. Best effort: a session that is not closed expires.
    ///
    /// # Errors
    /// Returns the driver's error.
    async fn close(&self, handle: &Self::Handle) -> Result<()>;
}

/// A newly opened session.
#[derive(Debug)]
pub struct Opened<H> {
    /// The driver's handle of the session.
    pub handle: H,
    /// The deadline until which the session lives unless it is renewed.
    pub deadline: Deadline,
}

/// The entries that the server lists for a session.
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
