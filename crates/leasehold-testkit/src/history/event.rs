//! The records of a history: the steps of processes, and the accesses of a register.

/// The operation that a step belongs to.
///
/// See [`Event`] for an example.
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
    /// A check of the guard: `ok` if it is held, `fail` if it is lost.
    Check,
    /// A read and write of the register.
    Write,
    /// A kill of the process, recorded by the test that does it: `invoke` before the kill, `ok`
    /// when the process has ended.
    Kill,
}

/// The phase of an operation that a step records.
///
/// See [`Event`] for an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "lowercase")
)]
pub enum Phase {
    /// The operation is about to start.
    Invoke,
    /// The operation has succeeded.
    Ok,
    /// The operation has certainly had no effect, or its effect has ended.
    Fail,
    /// The outcome of the operation is unknown.
    Info,
}

/// One step of one process.
///
/// ```
/// use leasehold_testkit::history::{Event, Op, Phase, overlaps};
///
/// let grant = |proc: &str, t_ns, deadline| Event {
///     t_ns,
///     proc: proc.to_owned(),
///     attempt: 1,
///     key: "item/42".to_owned(),
///     op: Op::Acquire,
///     phase: Phase::Ok,
///     shared: false,
///     token: None,
///     deadline: Some(deadline),
/// };
/// assert!(overlaps(&[grant("a", 0, 10), grant("b", 10, 20)]).is_empty());
/// assert_eq!(overlaps(&[grant("a", 0, 10), grant("b", 5, 20)]).len(), 1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Event {
    /// The time in nanoseconds, on a clock that all processes share (on one host,
    /// `CLOCK_BOOTTIME`).
    pub t_ns: u64,
    /// The process.
    pub proc: String,
    /// The number of the acquisition within the process. Later steps with its lock have the same
    /// number.
    pub attempt: u64,
    /// The name of the lock.
    pub key: String,
    /// The operation.
    pub op: Op,
    /// The phase of the operation.
    pub phase: Phase,
    /// Whether the lock is shared. Shared holders do not exclude each other.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "std::ops::Not::not")
    )]
    pub shared: bool,
    /// The fencing token, from the grant on.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub token: Option<u64>,
    /// The deadline of the lock as of this step, on the same clock.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub deadline: Option<u64>,
}

/// An access that the register has accepted.
///
/// ```
/// use leasehold_testkit::history::{RegisterLine, Write, register};
///
/// let write = |token, read, value| RegisterLine {
///     token,
///     value,
///     write: Some(Write { proc: "a".to_owned(), read }),
/// };
/// assert!(register(&[write(3, 0, 1), write(5, 1, 2)]).is_empty());
/// assert_eq!(register(&[write(3, 0, 1), write(5, 0, 1)]).len(), 1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RegisterLine {
    /// The token of the access. The register then rejects smaller ones.
    pub token: u64,
    /// The value after the access.
    pub value: u64,
    /// The write, or `None` for a read.
    pub write: Option<Write>,
}

/// An accepted write.
///
/// ```
/// use leasehold_testkit::history::{RegisterLine, Write, register};
///
/// // Process `b` wrote without having read the value 1 that `a` wrote.
/// let write = |proc: &str, token, read| RegisterLine {
///     token,
///     value: token,
///     write: Some(Write { proc: proc.to_owned(), read }),
/// };
/// assert_eq!(register(&[write("a", 1, 0), write("b", 2, 0)]).len(), 1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Write {
    /// The process that wrote.
    pub proc: String,
    /// The value that the writer had read before.
    pub read: u64,
}
