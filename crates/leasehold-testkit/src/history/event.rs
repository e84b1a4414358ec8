//! What a history is made of: the steps of processes, and what a resource took.

/// What a step is a step of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "lowercase")
)]
pub enum Op {
    /// An acquisition, exclusive unless [`Event::shared`] is set.
    Acquire,
    /// A release.
    Release,
    /// A look at the guard: `ok` if it is held, `fail` if it is lost.
    Check,
    /// A read and write of the register.
    Write,
    /// The process is killed: `invoke` before, `ok` when it is dead, both written by the test that
    /// does it.
    Kill,
}

/// Where in its operation a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "lowercase")
)]
pub enum Phase {
    /// It is about to start.
    Invoke,
    /// It has succeeded.
    Ok,
    /// It has certainly not happened, or no longer holds.
    Fail,
    /// Its outcome is not known.
    Info,
}

/// One step of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Event {
    /// When, on a clock that all processes share (on one host, `CLOCK_BOOTTIME`).
    pub t_ns: u64,
    /// Which process.
    pub proc: String,
    /// Which acquisition of it, with all that follows from it.
    pub attempt: u64,
    /// Which lock.
    pub key: String,
    /// What.
    pub op: Op,
    /// How far.
    pub phase: Phase,
    /// Whether the acquisition is a reader's: readers may hold the lock together.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "std::ops::Not::not")
    )]
    pub shared: bool,
    /// The fencing token, once there is one.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub token: Option<u64>,
    /// Until when the process believed in the lock at this step, on the same clock.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub deadline: Option<u64>,
}

/// What the register has taken, a line each: the history that the checker reads.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RegisterLine {
    /// The largest token that has been shown.
    pub token: u64,
    /// The value from here on.
    pub value: u64,
    /// What this write did; `None` for a read that showed a larger token.
    pub write: Option<Write>,
}

/// An accepted write.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Write {
    /// Who wrote.
    pub proc: String,
    /// The value that the writer had read before.
    pub read: u64,
}
