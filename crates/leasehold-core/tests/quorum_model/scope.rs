//! What may happen in an exploration, and what is wrong with the protocol in it.

/// A way to get the protocol wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The largest of the granted tokens is taken without being written back.
    NoWriteBack,
    /// A node accepts a token that is not smaller than its own.
    NonStrictWriteBack,
    /// So it does, but only if it holds the lock for the writer.
    NonStrictOwnWriteBack,
    /// A majority of the nodes that answered is enough.
    MajorityOfAnswered,
    /// An attempt that did not win keeps what it got.
    NoReleaseOfPartialWins,
    /// A node that restarted without its memory votes at once.
    AmnesiacVotes,
    /// It measures the wait by a clock that may be set, so that it may end at any time.
    GraceBySetClock,
    /// It waits for locks to expire, but does not copy tokens.
    NoRejoin,
    /// It copies tokens first, and waits then.
    RejoinBeforeGrace,
    /// A node that rejoins copies whose the token was, too.
    OwnerCopied,
    /// A node is taken back although no majority was held in between.
    HealedAfterABreak,
    /// A node that holds for a request takes its deadline when it comes again, although a renewal
    /// has moved it since.
    DuplicateShortens,
    /// A grant is believed in for a TTL from its answer, not from its request.
    DeadlineFromAnswer,
}

/// What may happen. The protocol's own steps and the loss and lateness of messages always may.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    /// Nodes and holders measure time alike: a node keeps a lock until the holder's deadline has
    /// passed. Without: any lock may expire at any time, and no deadline is ever known to have
    /// passed.
    pub(crate) clocks: bool,
    /// Each node's grant may have any of these as its floor.
    pub(crate) floors: &'static [u8],
    /// How many requests may arrive twice.
    pub(crate) duplicates: u8,
    /// How many attempts may renew, and so heal nodes that do not hold for them.
    pub(crate) renewals: u8,
    /// How many nodes may restart without memory.
    pub(crate) restarts: u8,
    /// What is wrong.
    pub(crate) bug: Option<Bug>,
}
