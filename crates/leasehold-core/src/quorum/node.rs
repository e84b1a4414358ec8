//! [`QuorumNode`]: what a voting node of a quorum does beyond the contract of every backend.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    backend::{attempt::Attempt, contract::LockBackend, lease::Released, request::Request},
    error::Result,
    fencing::FencingToken,
    quorum::eligibility::{Durability, Eligibility},
    ttl::Ttl,
};

/// A backend that can vote on fencing tokens as a node of a quorum, and that knows whether it may
/// have lost data.
///
/// A backend that is not a `QuorumNode` may still be a [plain member](super::QuorumMember::Plain)
/// of a quorum. Its locks count, but a quorum with such a member has no fencing tokens.
///
/// # For implementors
/// Beside the lock, the node keeps per key the pair [`NodeToken`](super::NodeToken), which never
/// expires. A wrapper implements this trait only if the backend that it wraps does, and forwards
/// every method.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// use std::sync::Arc;
/// use leasehold_core::quorum::QuorumNode;
/// use leasehold_local::MemoryBackend;
///
/// let node: Arc<dyn QuorumNode> = Arc::new(MemoryBackend::new());
/// let state = node.read_state(None).await?;
/// assert!(state.votes());
/// # Ok(()) }
/// ```
#[async_trait]
pub trait QuorumNode: LockBackend {
    /// Makes one attempt to acquire the lock at this node, if it meets the quorum's requirements.
    ///
    /// As [`try_acquire`](LockBackend::try_acquire), with three differences. A grant writes the
    /// key's next [`NodeToken`](super::NodeToken) by
    /// [`NodeToken::granted`](super::NodeToken::granted), and its lease has that token. An attempt
    /// by the acquisition that holds the lock already is granted again. A node that does not meet
    /// the [requirements](VoteRequirements) refuses and changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) if the requirements are not met;
    /// otherwise as the driver fails. Contention is [`Attempt::Contended`], not an error.
    async fn request_vote(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
    ) -> Result<Attempt>;

    /// Raises the key's token to `token`, for the acquisition that holds the lock by
    /// [`request_vote`](Self::request_vote).
    ///
    /// The node answers by [`NodeToken::accepts`](super::NodeToken::accepts): it accepts only while
    /// `request` still holds the lock and the stored token is smaller, or is this very token of
    /// this acquisition. Tokens that are granted later for the key are larger.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) if the requirements are not met;
    /// otherwise as the driver fails.
    async fn raise_token(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
        token: FencingToken,
    ) -> Result<TokenVote>;

    /// Releases what attempts of this request hold or are about to get: those whose first poll has
    /// returned. The registration of its waiter stays.
    ///
    /// # Errors
    /// Returns the driver's error. The locks then expire.
    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released>;

    /// Removes the registration of this [waiter](Request::waiting), and nothing that is held: the
    /// acquisition may hold the lock at this node by now. A node that keeps no list of waiters has
    /// nothing to do.
    ///
    /// # Errors
    /// Returns the driver's error. The registration then expires.
    async fn stop_waiting(self: Arc<Self>, _request: Request) -> Result<()> {
        Ok(())
    }

    /// Returns the state of the node, and adds to the time for which this incarnation has been
    /// watched.
    ///
    /// A node that may have lost the locks it granted does not vote until clients have watched it
    /// for the longest TTL. The node's own clock cannot measure this time, because an operator or
    /// NTP may set it. A client therefore measures, on a monotonic clock, for how long the node has
    /// stayed in the state that the client read last. The node adds that time unless another client
    /// has added some since, so that no time is counted twice. With `None`, the state is only read.
    ///
    /// # Errors
    /// Returns the driver's error.
    async fn read_state(self: Arc<Self>, watched: Option<Watched>) -> Result<NodeState>;

    /// Stores an epoch record: the incarnation that it names has lost no data. From now on the node
    /// votes on tokens, and every token that it grants exceeds [`EpochRecord::above`].
    ///
    /// The node compares and stores atomically: if its state differs from the state that was
    /// [read](Self::read_state), the call changes nothing. Of two concurrent calls, the second one
    /// fails. A slow client cannot record an epoch after which the node lost data.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) if the node has restarted,
    /// was wiped, or has a new epoch record since its state was read,
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if it should be durable and is
    /// not, and otherwise the driver's error.
    async fn record_epoch(self: Arc<Self>, record: EpochRecord) -> Result<()>;
}

/// The conditions under which a node may vote for an acquisition.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// use std::{sync::Arc, time::Duration};
/// use leasehold_core::{
///     FencingToken, LockKey,
///     backend::{Attempt, Request},
///     quorum::{QuorumNode, VoteRequirements},
/// };
/// use leasehold_local::MemoryBackend;
///
/// let requirements = VoteRequirements {
///     epoch_required: true,
///     largest_ttl: Duration::from_secs(60),
///     token_floor: FencingToken::new(100),
/// };
/// let request = Request::new(LockKey::new("item/42")?);
/// let node = Arc::new(MemoryBackend::new());
/// if let Attempt::Granted(lease) = node.request_vote(request, requirements).await? {
///     assert!(lease.fencing_token() > Some(requirements.token_floor));
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VoteRequirements {
    /// Whether the node must have a current epoch record. Otherwise any node that has been watched
    /// for long enough grants, and the quorum's tokens are best effort.
    pub epoch_required: bool,
    /// The longest TTL of any lock of this quorum. A node that restarted and may have lost grants
    /// waits that long.
    pub largest_ttl: Duration,
    /// The token of a grant is larger than this one. Zero is no bound.
    pub token_floor: FencingToken,
}

/// A node's answer to [`QuorumNode::raise_token`].
///
/// ```
/// use leasehold_core::{AcquisitionId, FencingToken, quorum::{NodeToken, TokenVote}};
///
/// let asked = NodeToken { token: FencingToken::new(7), owner: AcquisitionId::random() };
/// let holder = Some(asked.owner);
/// assert_eq!(NodeToken::accepts(None, holder, asked), TokenVote::Accepted);
/// // The acquisition no longer holds the lock.
/// assert_eq!(NodeToken::accepts(None, None, asked), TokenVote::Refused(None));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenVote {
    /// The key has the token that was asked for.
    Accepted,
    /// The key has this higher token. `None`: the acquisition no longer holds the lock.
    Refused(Option<FencingToken>),
}

/// The time for which a client has watched a node that did not change.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// use std::{sync::Arc, time::{Duration, Instant}};
/// use leasehold_core::quorum::{QuorumNode, Watched};
/// use leasehold_local::MemoryBackend;
///
/// let node = Arc::new(MemoryBackend::new());
/// let state = node.clone().read_state(None).await?;
/// let read = Instant::now();
/// tokio::time::sleep(Duration::from_millis(10)).await;
/// let watched = Watched {
///     version: state.version,
///     before: state.eligibility.watched_for,
///     duration: read.elapsed(),
/// };
/// node.read_state(Some(watched)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The version that was read.
    pub version: String,
    /// The value of [`Eligibility::watched_for`] that was read.
    pub before: Duration,
    /// The time since then on the client's clock, from the arrival of the answer until this is
    /// sent.
    pub duration: Duration,
}

/// The state of a node.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// use std::sync::Arc;
/// use leasehold_core::quorum::QuorumNode;
/// use leasehold_local::MemoryBackend;
///
/// let state = Arc::new(MemoryBackend::new()).read_state(None).await?;
/// if !state.votes() {
///     println!("the node restarted; its epoch record names {:?}", state.recorded);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// Identifies the incarnation of the node and the history of its data. It changes after a
    /// restart, and after the data was replaced by that of another server. Empty if the node does
    /// not report it.
    pub incarnation: String,
    /// Identifies the epoch record. It changes when a record is stored, or when the node was wiped
    /// and read.
    pub version: String,
    /// Whether the node may have lost data, and for how long it has been watched.
    pub eligibility: Eligibility,
    /// Whether the node is provisioned as [durable](EpochRecord::durable), and is.
    pub durable: bool,
    /// The incarnation that the epoch record names: this one, an earlier one, or one of another
    /// node whose data this node has. `None` if the node was never provisioned, or was wiped.
    pub recorded: Option<String>,
    /// The longest TTL in the epoch record.
    pub largest_ttl: Option<Ttl>,
    /// The largest token that the node has granted or accepted, as far as its data goes.
    pub highest_token: FencingToken,
    /// The node's wall clock as the time since 1970, if locks expire by that clock.
    pub wall_clock: Option<Duration>,
}

impl NodeState {
    /// Returns whether the node may vote on tokens now.
    #[must_use]
    pub fn votes(&self) -> bool {
        self.eligibility.durability == Durability::Confirmed
    }
}

/// An epoch record, which says that a node has lost no data in one incarnation.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// use std::sync::Arc;
/// use leasehold_core::{Ttl, quorum::{EpochRecord, QuorumNode}};
/// use leasehold_local::MemoryBackend;
///
/// let node = Arc::new(MemoryBackend::new());
/// let state = node.clone().read_state(None).await?;
/// let record = EpochRecord {
///     incarnation: state.incarnation,
///     version: state.version,
///     durable: false,
///     largest_ttl: Ttl::from_secs(60)?,
///     above: state.highest_token,
/// };
/// node.record_epoch(record).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochRecord {
    /// The incarnation that was read.
    pub incarnation: String,
    /// The version that was read.
    pub version: String,
    /// The node loses no token in a restart. A node rejects the record if its settings contradict
    /// that.
    pub durable: bool,
    /// The longest TTL that any lock of the quorum may have.
    pub largest_ttl: Ttl,
    /// All further tokens of the node exceed this one.
    pub above: FencingToken,
}
