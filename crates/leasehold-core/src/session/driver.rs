//! [`SessionDriver`]: what a backend brings.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use async_trait::async_trait;

use crate::{
    clock::{Deadline, Timestamp},
    error::Result,
    request::Request,
    session::Session,
    ttl::Ttl,
};

/// How a backend opens, renews and closes the sessions that its locks live in.
///
/// # For implementors
/// Every call ends: give input and output a time-out well below the TTL. No future of yours is
/// dropped half-way, unless its runtime shuts down.
#[async_trait]
pub trait SessionDriver: Debug + Send + Sync + 'static {
    /// What a session is spoken to through: a lease id, a connection.
    type Handle: Debug + Send + Sync + 'static;

    /// What one acquisition has on the server: an etcd key, a node's uuid, an advisory lock. Where
    /// the server adds something that the client learns later (a sequence number), leave it out of
    /// `Eq` and `Hash`.
    type Claim: Clone + Debug + Eq + Hash + Send + Sync + 'static;

    /// Returns the total [weight](Self::weight) of claims at which a session is full. Further
    /// claims go to another session of the same TTL.
    fn capacity(&self) -> usize {
        usize::MAX
    }

    /// Returns what `claim` counts for in the [capacity](Self::capacity) of its session. The
    /// default is 1.
    ///
    /// A server that lists what a session owns in one message bounds the bytes of that message:
    /// there, the weight is the size of the claim's name.
    fn weight(&self, _claim: &Self::Claim) -> usize {
        1
    }

    /// How many sessions there may be at a time. One that is idle is closed for one that is needed;
    /// if none is, opening one is left to the driver, who says that there are too many.
    fn max_sessions(&self) -> usize {
        usize::MAX
    }

    /// Opens a session. Read [`SessionTime::now`] *before* the first byte leaves.
    ///
    /// # Errors
    /// As the driver fails; what may have been opened is then closed or expires.
    async fn open(&self, time: &SessionTime) -> Result<Opened<Self::Handle>>;

    /// The session that was opened through this handle. For drivers that may find out by themselves
    /// that it is over: they [end](Session::end) it *before* the server can free what it owns.
    fn started(&self, _session: &Arc<Session<Self>>)
    where
        Self: Sized,
    {
    }

    /// Renews the session and says until when it now lives: never later than what the server has
    /// *proved*.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the server knows no such session: final. Any
    /// other error leaves the deadline where it was.
    async fn renew(&self, handle: &Self::Handle, time: &SessionTime) -> Result<Deadline>;

    /// What the server says that this session owns.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the session is over; otherwise as the driver
    /// fails, and it is asked again at the next renewal. If it fails for a whole TTL, renewals no
    /// longer move the session's deadline.
    async fn owned(&self, handle: &Self::Handle) -> Result<Owned<Self::Claim>>;

    /// Removes what no guard and no request of ours owns.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the session is over; otherwise as the driver
    /// fails, and it is tried again at the next renewal. If it fails for a whole TTL, renewals no
    /// longer move the session's deadline.
    async fn disown(&self, handle: &Self::Handle, orphans: Vec<Self::Claim>) -> Result<()>;

    /// Ends the session, and with it all that it owns. Best effort: what is not closed expires.
    ///
    /// # Errors
    /// As the driver fails.
    async fn close(&self, handle: &Self::Handle) -> Result<()>;
}

/// A session that was just opened.
#[derive(Debug)]
pub struct Opened<H> {
    /// How to speak to it.
    pub handle: H,
    /// Until when it lives unless it is renewed.
    pub deadline: Deadline,
}

/// What the server says that a session owns.
#[derive(Debug)]
pub struct Owned<C> {
    /// All of it.
    pub claims: Vec<C>,
    /// Those of it that an operator has broken gently: they are believed in until the deadline that
    /// stands, and no longer.
    pub broken: Vec<C>,
}

impl<C> Default for Owned<C> {
    fn default() -> Self {
        Self {
            claims: Vec::new(),
            broken: Vec::new(),
        }
    }
}

/// The TTL of a session, and the clock and drift that its deadlines are computed with: those of the
/// request that it was opened for. All clients of one backend must use the same clock.
#[derive(Clone, Debug)]
pub struct SessionTime(Request);

impl SessionTime {
    pub(super) fn of(request: &Request) -> Self {
        // A signal of its own: the session outlives the request.
        Self(Request::in_context(
            request.key().clone(),
            request.mode(),
            request.ttl(),
            request.context(),
        ))
    }

    /// The TTL.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        self.0.ttl()
    }

    /// Who opened it, for people.
    #[must_use]
    pub fn label(&self) -> &str {
        self.0.label()
    }

    /// The present. Read it before the first byte of a renewal leaves.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// When a session of this TTL that was opened or renewed at `sent` must be believed over.
    #[must_use]
    pub fn deadline_from(&self, sent: Timestamp) -> Deadline {
        self.0.deadline_from(sent)
    }
}
