//! [`NodeBug`]: a bug of a simulated node.

/// A bug of a node or its client, which a simulation must find.
///
/// ```
/// use leasehold_testkit::sim::{NodeBug, SimClock, SimNode};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let node = SimNode::new(SimClock::new());
/// node.set_bug(Some(NodeBug::VotesAfterDataLoss));
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeBug {
    /// The node accepts a write-back but does not store the token.
    WriteBackLost,
    /// The node accepts a write-back of any token.
    WriteBackNotStrict,
    /// The node votes after a restart in which it lost all data.
    VotesAfterDataLoss,
    /// The node releases a lock for any owner.
    ReleasesAnyOwner,
    /// The client counts its deadline from the reply.
    DeadlineFromAnswer,
    /// The client counts a refusal as a grant.
    RefusalCounts,
    /// The node measures its grace period by its own clock, from its start.
    GraceByOwnClock,
    /// The node counts the same time of observation twice if two clients report it.
    WatchedTwice,
    /// The client checks the node's right to vote only once per connection, and so not after a
    /// restart behind a proxy.
    VoteCheckedOncePerConnection,
    /// A durable node votes after a restart, even if it has restarted with older data.
    VotesWithOlderData,
}
