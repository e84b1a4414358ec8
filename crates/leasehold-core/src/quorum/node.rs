//! [`QuorumNode`]: what a voting node of a quorum does beyond the contract of every backend.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    backend::{Attempt, LockBackend, Released},
    error::Result,
    fencing::FencingToken,
    quorum::eligibility::{Membership, Memory},
    request::Request,
    ttl::Ttl,
};

/// A backend that can vote on fencing tokens as a node of a quorum, and that knows whether it may
/// have lost data.
///
/// A backend that is not a `QuorumNode` may still be a [plain member](super::QuorumMember::Plain)
/// of a quorum. Its locks count, but a quorum with such a member has no fencing tokens.
///
/// # For implementors
/// Beside the lock, the node keeps per key the pair [`Fence`](super::Fence), which never expires. A
/// wrapper implements this trait only if the backend that it wraps does, and forwards every method.
#[async_trait]
pub trait QuorumNode: LockBackend {
    /// Makes one attempt to acquire the lock at this node, on the quorum's terms.
    ///
    /// As [`try_acquire`](LockBackend::try_acquire), with three differences. A grant writes the
    /// key's next [`Fence`](super::Fence) by [`Fence::granted`](super::Fence::granted), and its
    /// lease has that token. An attempt by the acquisition that holds the lock already is granted
    /// again. A node that does not meet the [terms](Terms) refuses and changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) if the terms are not met;
    /// otherwise as the driver fails. Contention is [`Attempt::Contended`], not an error.
    async fn request_vote(self: Arc<Self>, request: Request, terms: Terms) -> Result<Attempt>;

    /// Raises the key's token to `token`, for the acquisition that holds the lock by
    /// [`request_vote`](Self::request_vote).
    ///
    /// The node answers by [`Fence::accepts`](super::Fence::accepts): it accepts only while
    /// `request` still holds the lock and the stored token is smaller, or is this very token of
    /// this acquisition. Tokens that are granted later for the key are larger.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) if the terms are not met;
    /// otherwise as the driver fails.
    async fn raise_token(
        self: Arc<Self>,
        request: Request,
        terms: Terms,
        token: FencingToken,
    ) -> Result<TokenVote>;

    /// Releases what attempts of this request hold or are about to get: those whose first poll has
    /// returned. The registration of its waiter stays.
    ///
    /// # Errors
    /// As the driver fails; what is held then expires.
    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released>;

    /// Removes the registration of this [waiter](Request::waiter), and nothing that is held: the
    /// acquisition may hold the lock at this node by now. A node that keeps no list of waiters has
    /// nothing to do.
    ///
    /// # Errors
    /// As the driver fails; the registration then expires.
    async fn stop_waiting(self: Arc<Self>, _request: Request) -> Result<()> {
        Ok(())
    }

    /// Returns what the node remembers, and adds to the time for which this run of it has been
    /// watched.
    ///
    /// A node that may have forgotten what it granted does not vote until clients have watched it
    /// for the longest TTL. Its own clock cannot tell that time, because an operator or NTP may set
    /// it. So a client measures, on a clock that nobody sets, for how long the node has stayed as
    /// the client recalled it last. The node adds that time if nobody else has added any since, so
    /// that no time is counted twice. `None` only asks.
    ///
    /// # Errors
    /// As the driver fails.
    async fn recall(self: Arc<Self>, watched: Option<Watched>) -> Result<Recollection>;

    /// Marks the run of the node that `attestation` names as one that has forgotten nothing: from
    /// now on it votes on tokens, and every token that it grants exceeds [`Attestation::above`]. In
    /// one step with seeing that the node is as it was [recalled](Self::recall): of two that attest
    /// the second changes nothing, and whoever takes his time vouches for nothing that was
    /// forgotten meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) if the node has restarted, was
    /// wiped or was attested since it was recalled;
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if it is to be durable and is not;
    /// otherwise as the driver fails.
    async fn attest(self: Arc<Self>, attestation: Attestation) -> Result<()>;
}

/// The conditions under which a node may vote for an acquisition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Whether the node's memory must be attested. Otherwise any node that has been watched for
    /// long enough grants, and the quorum's tokens are best effort.
    pub attested: bool,
    /// The longest TTL of any lock of this quorum. A node that restarted and may have lost grants
    /// waits that long.
    pub largest_ttl: Duration,
    /// The token of a grant is larger than this one. Zero is no bound.
    pub token_floor: FencingToken,
}

/// A node's answer to [`QuorumNode::raise_token`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenVote {
    /// The key has the token that was asked for.
    Accepted,
    /// The key has this higher token. `None`: the acquisition no longer holds the lock.
    Refused(Option<FencingToken>),
}

/// For how long a client has watched a node that stayed as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The version that was recalled.
    pub version: String,
    /// The time that was recalled as [`Membership::watched_for`].
    pub before: Duration,
    /// The time since then, on the client's clock: from when the answer came to when this is sent.
    pub duration: Duration,
}

/// What a node remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recollection {
    /// Names this run of the node and the history of its data: another one after a restart, and
    /// after the data was replaced by another server's. Empty if the node does not tell.
    pub run: String,
    /// Stands for what the node is marked with: another one once it was attested, or wiped and
    /// recalled.
    pub version: String,
    /// Its memory, and for how long it has been watched.
    pub membership: Membership,
    /// Whether it is provisioned as [durable](Attestation::durable), and is.
    pub durable: bool,
    /// The run that its mark names: this one, or an earlier one, or one of another node whose data
    /// this node has. `None`: it was never attested, or was wiped.
    pub marked: Option<String>,
    /// The longest TTL that the mark records.
    pub largest_ttl: Option<Ttl>,
    /// No token that this node ever granted or accepted, as far as it remembers, is larger.
    pub highest_token: FencingToken,
    /// The time of its wall clock since 1970, if locks expire by that clock.
    pub wall_clock: Option<Duration>,
}

impl Recollection {
    /// Whether it may vote on tokens now.
    #[must_use]
    pub fn votes(&self) -> bool {
        self.membership.memory == Memory::Attested
    }
}

/// What a node is marked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// The run that was recalled.
    pub run: String,
    /// The version that was recalled.
    pub version: String,
    /// The node loses no token in a restart. Refused if the node knows better.
    pub durable: bool,
    /// The longest TTL that any lock of the quorum may have.
    pub largest_ttl: Ttl,
    /// All its next tokens exceed this one.
    pub above: FencingToken,
}
