//! [`QuorumNode`]: what a backend can do as a node of a quorum, beyond the contract of every backend.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    backend::Released,
    error::Result,
    fencing::FencingToken,
    quorum::eligibility::{Membership, Memory},
    request::Request,
    ttl::Ttl,
};

/// A node that can vote on fencing tokens, and that knows whether it may have forgotten something.
///
/// # For implementors
/// A request that carries [`Request::terms`] comes from a quorum. Beside the lock, the node keeps
/// per key the pair [`Fence`](super::Fence) that never expires; a grant writes one by
/// [`Fence::granted`](super::Fence::granted), and [`Lease::raise_token`](crate::Lease::raise_token)
/// answers by [`Fence::accepts`](super::Fence::accepts). An attempt by the owner that holds already
/// is granted again. Where the [terms](Terms) are not met the attempt fails with
/// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) and changes nothing.
#[async_trait]
pub trait QuorumNode: Send + Sync + 'static {
    /// Gives back what attempts of this request hold or are about to get: those whose first poll
    /// has returned. Its registration as a waiter stays.
    ///
    /// # Errors
    /// As the driver fails; what is held then expires.
    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released>;

    /// Takes the registration of this [waiter](Request::waiter) away, and nothing that anybody
    /// holds: the acquisition may hold this node by now. A node that keeps no lists of waiters has
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

/// What a quorum demands of a node that is to grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Its memory must be attested. Otherwise any node that has been watched for long enough
    /// grants, and the quorum's tokens are best effort.
    pub attested: bool,
    /// The longest TTL of any lock of this quorum: a node that restarted and may have forgotten
    /// waits that long.
    pub largest_ttl: Duration,
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
