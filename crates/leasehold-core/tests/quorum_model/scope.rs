//! The scope of an exploration, and the bug in the protocol.

/// A wrong variant of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The largest of the granted tokens is used without a write-back.
    NoWriteBack,
    /// A node accepts a token that is not larger than its own.
    NonStrictWriteBack,
    /// A node accepts such a token, but only if the writer holds its lock.
    NonStrictOwnWriteBack,
    /// A majority of the nodes that answered is sufficient.
    MajorityOfAnswered,
    /// A failed attempt does not release its nodes.
    NoReleaseOfPartialWins,
    /// A node that restarted and lost its data votes at once.
    VotesAfterDataLoss,
    /// The grace period is measured by a clock that may be set, so that it may end at any time.
    GraceBySetClock,
    /// A node waits for the grace period, but does not copy tokens.
    NoTokenCopy,
    /// A node copies tokens before the grace period instead of after it.
    TokenCopyBeforeGrace,
    /// A node that is readmitted copies the owners of tokens, too.
    OwnerCopied,
    /// A node is acquired again although the majority was interrupted.
    ReacquiredAfterABreak,
    /// A duplicate request sets the deadline of a node back, although a renewal has moved it.
    DuplicateShortens,
    /// The deadline is counted from the answer, not from the request.
    DeadlineFromAnswer,
}

/// The events that may happen, besides the protocol's own steps and the loss and delay of messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    /// Nodes and holders measure time at the same rate: a node keeps a lock until the holder's
    /// deadline has passed. Without clocks, any lock may expire at any time, and no deadline is
    /// known to have passed.
    pub(crate) clocks: bool,
    /// The floors that the grant of a node may have.
    pub(crate) floors: &'static [u8],
    /// The number of requests that may arrive twice.
    pub(crate) duplicates: u8,
    /// The number of attempts that may renew, and so acquire nodes again.
    pub(crate) renewals: u8,
    /// The number of nodes that may restart and lose their data.
    pub(crate) restarts: u8,
    /// The bug in the protocol, if any.
    pub(crate) bug: Option<Bug>,
}
