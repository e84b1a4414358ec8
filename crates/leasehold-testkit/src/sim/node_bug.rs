//! [`NodeBug`]: a mistake of a simulated node.

/// A way for a node to be wrong, to see that a test finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeBug {
    /// It says that it accepted a write-back, and stores nothing: tokens are not written back.
    WriteBackLost,
    /// It accepts any write-back.
    WriteBackNotStrict,
    /// It votes after a restart in which it forgot everything.
    VotesAfterDataLoss,
    /// It releases without looking at the owner.
    ReleasesAnyOwner,
    /// A client counts its deadline from the answer.
    DeadlineFromAnswer,
    /// A client believes that a node which refused has granted.
    RefusalCounts,
    /// It measures its grace by its own clock, from its start.
    GraceByOwnClock,
    /// It adds the time for which a client has watched it although another client has added the
    /// same time.
    WatchedTwice,
    /// Whether it may vote is asked once per connection, and it is not asked again when it has
    /// restarted behind a proxy.
    VoteCheckedOncePerConnection,
    /// It votes after a restart because it is durable, also if it came back with older data.
    VotesWithOlderData,
}
