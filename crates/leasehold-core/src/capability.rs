//! [`Capabilities`]: what a backend promises, as data.

use std::{fmt, time::Duration};

use crate::{
    clock::ClockDrift,
    error::{Error, ErrorKind, Result},
    mode::Mode,
    ttl::Ttl,
};

/// What a backend promises. Core checks requests against it, tests choose their cases by it, the
/// command prints it.
///
/// A new field may appear in any release: start from [`Capabilities::new`], which promises as
/// little as possible, and set what is true.
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
    /// The backend's name, as it stands in errors, traces and metrics: `redis`.
    pub backend: &'static str,
    /// Where it lives, without secrets: `redis://10.0.0.7:6379/0`.
    pub endpoint: String,
    /// Whether [`Mode::Exclusive`] works.
    pub exclusive: bool,
    /// Whether [`Mode::Shared`] works.
    pub shared: bool,
    /// Whether [`Mode::Permit`] works.
    pub permits: bool,
    /// Why it does not, if there is more to say than that.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub why_no_permits: Option<&'static str>,
    /// The shortest TTL.
    #[cfg_attr(feature = "serde", serde(rename = "min_ttl_ms"))]
    pub min_ttl: Ttl,
    /// The longest TTL.
    #[cfg_attr(feature = "serde", serde(rename = "max_ttl_ms"))]
    pub max_ttl: Ttl,
    /// What ends a grant whose holder has died.
    pub expiry: Expiry,
    /// How far holder's and backend's clocks may part.
    pub drift: ClockDrift,
    /// How far the promise of the fencing tokens reaches.
    pub fencing: Fencing,
    /// In what order waiters of different processes are served.
    pub fairness: Fairness,
    /// How waiters learn that the lock is free.
    #[cfg_attr(feature = "serde", serde(rename = "waiter_notification"))]
    pub waiter_notification: WaiterNotification,
    /// How a holder learns of a loss before its deadline.
    #[cfg_attr(feature = "serde", serde(rename = "loss_detection"))]
    pub loss_detection: LossDetection,
    /// What a restart of the backend does to the locks held.
    pub restart: Restart,
    /// Whether releases are ordered: once the first poll of
    /// [`Lease::release`](crate::Lease::release) has returned, every acquire that is started later
    /// on the same backend comes after it. Then the next local waiter may start when the release
    /// has been *sent*.
    #[cfg_attr(feature = "serde", serde(rename = "pipelined_release"))]
    pub pipelined_release: bool,
    /// Whether [`LockBackend::inspect`](crate::LockBackend::inspect) works: it lists the holders,
    /// and those who wait.
    pub inspect: bool,
    /// Whether [`LockBackend::revoke`](crate::LockBackend::revoke) works.
    pub revoke: bool,
    /// Whether these are what any server of this kind does, because a client that connects
    /// [lazily](crate::LazyBackend) has not reached its own yet. Then each promise is the weakest,
    /// and the range of TTLs is the widest. The connection replaces them, once.
    pub provisional: bool,
}

impl Capabilities {
    /// A backend of this name that does exclusive locks and promises nothing else.
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
            provisional: false,
        }
    }

    /// Whether the backend can be asked for this at all.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for the mode, [`ErrorKind::InvalidInput`] for the TTL; both name
    /// the backend and the remedy.
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
                    "a TTL of {ttl} is outside of what this backend can do; choose one from {} to {}",
                    self.min_ttl, self.max_ttl
                ),
            )
            .with_backend(self.backend));
        }
        Ok(())
    }
}

/// What ends a grant whose holder has died or fallen silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Expiry {
    /// The backend, when the TTL of this lock has passed.
    Server,
    /// The backend, when the TTL of the session that the lock belongs to has passed. A single lock
    /// of a living process is released by that process at its deadline.
    Session,
    /// The death of the process, at once; nothing else. A living process releases at its deadline;
    /// a stopped one does not.
    ProcessDeath,
}

/// How far the promise of [`FencingToken`](crate::FencingToken) reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Fencing {
    /// There are no tokens.
    None,
    /// A fail-over to a replica, or a crash of the server, may repeat tokens.
    BestEffort,
    /// Tokens grow until the backend forgets its data.
    #[cfg_attr(feature = "serde", serde(rename = "until_data_loss"))]
    UntilAmnesia,
    /// Tokens grow also when the backend forgets its data, as long as its wall clock is not set
    /// back as well.
    Clocked,
    /// Tokens grow, whatever the backend suffers.
    Durable,
}

/// In what order waiters of different processes are served. Within one process it is first come,
/// first served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Fairness {
    /// None: whoever asks first after a release. No process is starved by another's local waiters,
    /// which pause after a bounded number of turns.
    None,
    /// Mostly in order.
    BestEffort,
    /// First come, first served.
    Fifo,
}

/// How waiters learn that the lock is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum WaiterNotification {
    /// They are woken.
    Pushed,
    /// They ask again at this interval.
    #[cfg_attr(feature = "serde", serde(rename = "polled_every_ms"))]
    #[cfg_attr(feature = "serde", serde(with = "crate::serde_impls::millis"))]
    Polled(Duration),
}

/// How a holder learns of a loss before its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum LossDetection {
    /// It does not.
    Deadline,
    /// When it renews.
    Renewal,
    /// At once.
    Pushed,
}

/// What a restart of the backend does to the locks held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Restart {
    /// They stay.
    Keeps,
    /// They stay, except that a leader which was paused, deposed and goes on may free them: then
    /// two may hold until the old holder's next renewal.
    FailOverMayFree,
    /// They stay if the backend's persistence kept them, else they are free at once: two may hold.
    AsPersisted,
    /// They are free at once: a holder that was cut off and a new one may both hold until the old
    /// one's deadline.
    FreesAtOnce,
    /// Backend and holders are one process: they end together.
    EndsHolders,
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
            Self::UntilAmnesia => "grow until the backend forgets its data",
            Self::Clocked => {
                "grow also if the backend forgets its data, unless its wall clock is set back"
            }
            Self::Durable => "durable",
        })
    }
}

impl fmt::Display for Fairness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none between processes, but none starves",
            Self::BestEffort => "best effort",
            Self::Fifo => "first come, first served",
        })
    }
}

impl fmt::Display for WaiterNotification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pushed => f.write_str("pushed"),
            Self::Polled(interval) => write!(f, "polled each {interval:?}"),
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
            Self::FailOverMayFree => "keeps the locks, unless a leader was paused and goes on",
            Self::AsPersisted => "keeps what persistence kept",
            Self::FreesAtOnce => "frees the locks at once",
            Self::EndsHolders => "ends the holders too",
        })
    }
}
