//! [`Capabilities`]: the promises of a backend, as data.

use std::{fmt, time::Duration};

use crate::{
    clock::ClockDrift,
    error::{Error, ErrorKind, Result},
    mode::Mode,
    ttl::Ttl,
};

/// The promises of a backend. The client checks requests against them, tests select their cases by
/// them, and the command prints them.
///
/// A new field may be added in any release. Start from [`Capabilities::new`], which promises as
/// little as possible, and set the fields that are true.
///
/// ```
/// use leasehold_core::{Capabilities, Fencing};
///
/// let mut capabilities = Capabilities::new("sled");
/// capabilities.shared = true;
/// capabilities.fencing = Fencing::Durable;
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Capabilities {
    /// The backend's name in errors, traces and metrics, such as `redis`.
    pub backend: &'static str,
    /// The address of the server without secrets, such as `redis://10.0.0.7:6379/0`.
    pub endpoint: String,
    /// Whether [`Mode::Exclusive`] is supported.
    pub exclusive: bool,
    /// Whether [`Mode::Shared`] is supported.
    pub shared: bool,
    /// Whether [`Mode::Permit`] is supported.
    pub permits: bool,
    /// The reason why permits are not supported, if there is a particular one.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub why_no_permits: Option<&'static str>,
    /// The shortest supported TTL.
    #[cfg_attr(feature = "serde", serde(rename = "min_ttl_ms"))]
    pub min_ttl: Ttl,
    /// The longest supported TTL.
    #[cfg_attr(feature = "serde", serde(rename = "max_ttl_ms"))]
    pub max_ttl: Ttl,
    /// How the lock of a dead holder is freed.
    pub expiry: Expiry,
    /// The maximum drift between the clocks of a holder and the backend.
    pub drift: ClockDrift,
    /// The faults in spite of which fencing tokens grow.
    pub fencing: Fencing,
    /// The order in which waiters of different processes are served.
    pub fairness: Fairness,
    /// How waiters learn that a lock is free.
    pub waiter_notification: WaiterNotification,
    /// How a holder learns of a loss before its deadline.
    #[cfg_attr(feature = "serde", serde(rename = "loss_detection"))]
    pub loss_detection: LossDetection,
    /// The effect of a restart of the backend on held locks.
    pub restart: Restart,
    /// Whether releases are ordered. If so, every acquisition that starts after the first poll of
    /// [`Lease::release`](crate::backend::Lease::release) on the same backend takes effect after
    /// that release. The next local waiter can then start as soon as the release has been *sent*.
    #[cfg_attr(feature = "serde", serde(rename = "pipelined_release"))]
    pub pipelined_release: bool,
    /// Whether [`LockBackend::inspect`](crate::backend::LockBackend::inspect) is supported. It
    /// lists holders and waiters.
    pub inspect: bool,
    /// Whether [`LockBackend::revoke`](crate::backend::LockBackend::revoke) is supported.
    pub revoke: bool,
    /// The faults that the [records](crate::Record) beside locks survive.
    pub records: Records,
    /// The reason why records are not supported, if there is a particular one.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub why_no_records: Option<&'static str>,
    /// Whether the backend stores the [proposal](crate::backend::Request::proposal) of a candidate
    /// of an election with its acquisition, as other clients of the same server do. If so:
    /// - [`write_record`](crate::backend::Lease::write_record) on the lease of such a request
    ///   replaces the proposal, and leaves the record as it is;
    /// - a read of the record [while held](crate::backend::RecordRead::while_held) returns the
    ///   proposal of the candidate that holds the lock, and the record of any other holder.
    ///
    /// Such a backend also keeps [records](Self::records). Otherwise the client writes the proposal
    /// into the record, once the lock is granted.
    pub proposals: bool,
    /// Whether these capabilities hold for any server of this kind, because a client that connects
    /// [lazily](crate::backend::LazyBackend) has not reached its server yet. Each promise is then
    /// the weakest, and the range of TTLs is the widest. The first connection replaces them.
    pub provisional: bool,
}

impl Capabilities {
    /// Creates the capabilities of a backend that supports exclusive locks and promises nothing
    /// else.
    #[must_use]
    pub fn new(backend: &'static str) -> Self {
        Self {
            backend,
            endpoint: String::from(backend),
            exclusive: true,
            shared: false,
            permits: false,
            why_no_permits: None,
            min_ttl: Ttl::MIN,
            max_ttl: Ttl::MAX,
            expiry: Expiry::Server,
            drift: ClockDrift::DEFAULT,
            fencing: Fencing::None,
            fairness: Fairness::None,
            waiter_notification: WaiterNotification::Polled(Duration::from_millis(100)),
            loss_detection: LossDetection::Deadline,
            restart: Restart::FreesAtOnce,
            pipelined_release: false,
            inspect: false,
            revoke: false,
            records: Records::None,
            why_no_records: None,
            proposals: false,
            provisional: false,
        }
    }

    /// Checks that the backend supports this mode and this TTL.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Unsupported`] for the mode and [`ErrorKind::InvalidInput`] for the TTL.
    /// The message names the backend and the remedy.
    pub fn check(&self, mode: Mode, ttl: Ttl) -> Result<()> {
        let supported = match mode {
            Mode::Exclusive => self.exclusive,
            Mode::Shared => self.shared,
            Mode::Permit { .. } => self.permits,
        };
        if !supported {
            let message = match self.why_no_permits.filter(|_| mode.is_permit()) {
                Some(why) => format!("this backend has no permits: {why}"),
                None => format!("this backend has no {mode} locks; choose another backend"),
            };
            return Err(Error::new(ErrorKind::Unsupported, message).with_backend(self.backend));
        }
        if ttl < self.min_ttl || ttl > self.max_ttl {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "a TTL of {ttl} is outside the range of this backend; choose one from {} to {}",
                    self.min_ttl, self.max_ttl
                ),
            )
            .with_backend(self.backend));
        }
        Ok(())
    }

    /// Checks that the backend keeps records beside its locks.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Unsupported`]. The message names the backend, the reason and the
    /// remedy.
    pub fn check_records(&self) -> Result<()> {
        if self.records > Records::None {
            return Ok(());
        }
        let message = match self.why_no_records {
            Some(why) => format!("this backend keeps no records beside its locks: {why}"),
            None => String::from(
                "this backend keeps no records beside its locks; choose another backend",
            ),
        };
        Err(Error::new(ErrorKind::Unsupported, message).with_backend(self.backend))
    }
}

/// The event that frees the lock of a holder which has died or stopped responding.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let client = leasehold_core::LockClient::new(MemoryBackend::new());
/// use leasehold_core::Expiry;
///
/// if client.capabilities().expiry == Expiry::ProcessDeath {
///     println!("a stopped process keeps its locks");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Expiry {
    /// The backend frees the lock when its TTL has passed.
    Server,
    /// The backend frees the lock when the TTL of its session has passed. A running process
    /// releases a single lock at its deadline.
    Session,
    /// The lock is freed at once when the process dies, and not earlier. A running process releases
    /// it at its deadline, but a stopped process does not.
    ProcessDeath,
}

/// The faults in spite of which [`FencingToken`](crate::FencingToken)s grow.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let client = leasehold_core::LockClient::new(MemoryBackend::new());
/// use leasehold_core::Fencing;
///
/// if client.capabilities().fencing < Fencing::Durable {
///     println!("tokens may repeat: {}", client.capabilities().fencing);
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Fencing {
    /// The backend grants no tokens.
    None,
    /// Tokens may repeat after a fail-over to a replica or a crash of the server.
    BestEffort,
    /// Tokens grow until the backend loses its data.
    #[cfg_attr(feature = "serde", serde(rename = "until_data_loss"))]
    UntilDataLoss,
    /// Tokens grow even if the backend loses its data, unless its wall clock is set back as well.
    Clocked,
    /// Tokens always grow.
    Durable,
}

/// The order in which waiters of different processes are served. Waiters of one process are served
/// first come, first served.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let client = leasehold_core::LockClient::new(MemoryBackend::new());
/// use leasehold_core::Fairness;
///
/// if client.capabilities().fairness != Fairness::Fifo {
///     println!("waiters of other processes may be served first");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Fairness {
    /// No order: the first request after a release wins. A process does not starve, because the
    /// local waiters of other processes yield after a bounded number of grants.
    None,
    /// Mostly first come, first served.
    BestEffort,
    /// First come, first served.
    Fifo,
}

/// The way in which waiters learn that a lock is free.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let client = leasehold_core::LockClient::new(MemoryBackend::new());
/// use leasehold_core::WaiterNotification;
///
/// if let WaiterNotification::Polled(interval) = client.capabilities().waiter_notification {
///     println!("a waiter may be served up to {interval:?} after a release");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum WaiterNotification {
    /// The backend notifies them.
    Pushed,
    /// They poll at this interval.
    #[cfg_attr(feature = "serde", serde(rename = "polled_every_ms"))]
    #[cfg_attr(feature = "serde", serde(with = "crate::serde_impls::millis"))]
    Polled(Duration),
}

/// The way in which a holder learns of a loss before its deadline.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let client = leasehold_core::LockClient::new(MemoryBackend::new());
/// use leasehold_core::LossDetection;
///
/// if client.capabilities().loss_detection == LossDetection::Deadline {
///     println!("a holder learns of a loss at its deadline only");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum LossDetection {
    /// At the deadline only.
    Deadline,
    /// At the next renewal.
    Renewal,
    /// At once, by a notification.
    Pushed,
}

/// The effect of a restart of the backend on held locks.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let client = leasehold_core::LockClient::new(MemoryBackend::new());
/// use leasehold_core::Restart;
///
/// if client.capabilities().restart == Restart::FreesAtOnce {
///     println!("check fencing tokens: a restart may lead to two holders");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Restart {
    /// The locks are kept.
    Keeps,
    /// The locks are kept, except that a deposed leader that was paused and resumes may free them.
    /// Two holders are then possible until the old holder's next renewal.
    FailOverMayFree,
    /// The locks are kept if they were persisted. Otherwise they are free at once, so that two
    /// holders are possible.
    AsPersisted,
    /// The locks are free at once. Two holders are then possible until the deadline of the old,
    /// disconnected holder.
    FreesAtOnce,
    /// The backend and the holders are one process and end together.
    EndsHolders,
}

/// The faults that the [records](crate::Record) beside locks survive.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let client = leasehold_core::LockClient::new(MemoryBackend::new());
/// use leasehold_core::Records;
///
/// if client.capabilities().records < Records::Durable {
///     println!("records may be lost: {}", client.capabilities().records);
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Records {
    /// The backend keeps no records.
    None,
    /// Records are kept until the backend loses its data. A crash of the server or a fail-over to a
    /// replica may lose the last writes.
    UntilDataLoss,
    /// A record that was written is kept over restarts and fail-overs.
    Durable,
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "by the server, per lock",
            Self::Session => "by the server, per session",
            Self::ProcessDeath => "when the process dies",
        })
    }
}

impl fmt::Display for Fencing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::BestEffort => "best effort: a fail-over or a crash may repeat tokens",
            Self::UntilDataLoss => "grow until the backend loses its data",
            Self::Clocked => {
                "grow even if the backend loses its data, unless its wall clock is set back"
            }
            Self::Durable => "durable",
        })
    }
}

impl fmt::Display for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::UntilDataLoss => "kept until the backend loses its data",
            Self::Durable => "durable",
        })
    }
}

impl fmt::Display for Fairness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none between processes, but no process starves",
            Self::BestEffort => "best effort",
            Self::Fifo => "first come, first served",
        })
    }
}

impl fmt::Display for WaiterNotification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pushed => f.write_str("pushed"),
            Self::Polled(interval) => write!(f, "polled every {interval:?}"),
        }
    }
}

impl fmt::Display for LossDetection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deadline => "at the deadline",
            Self::Renewal => "at the next renewal",
            Self::Pushed => "pushed",
        })
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keeps => "keeps the locks",
            Self::FailOverMayFree => "keeps the locks, unless a leader was paused and resumes",
            Self::AsPersisted => "keeps the locks that were persisted",
            Self::FreesAtOnce => "frees the locks at once",
            Self::EndsHolders => "ends the holders too",
        })
    }
}
