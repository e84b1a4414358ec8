//! [`Job`]: an operation of one acquisition, which the session of the acquisition carries out.

use leasehold_core::Result;

use crate::keys::{AdvisoryKey, PermitKeys};

/// The identity of one acquisition in one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AcquisitionKey {
    /// The key of the lock, or of the semaphore.
    pub(crate) key: AdvisoryKey,
    pub(crate) number: u64,
}

impl AcquisitionKey {
    /// Returns the identity under which the session holds the revocation marker of `key`.
    pub(crate) fn of_revocation(key: AdvisoryKey) -> Self {
        Self {
            key,
            number: u64::MAX,
        }
    }
}

/// The markers of one waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaiterMarkers {
    /// The key of the lock, or of the semaphore.
    pub(crate) key: AdvisoryKey,
    /// The marker of every waiter.
    pub(crate) waits: i64,
    /// The second marker of a writer, to which readers yield.
    pub(crate) writer: Option<i64>,
}

impl WaiterMarkers {
    /// Returns the one or two markers.
    pub(crate) fn each(&self) -> impl Iterator<Item = i64> + use<> {
        std::iter::once(self.waits).chain(self.writer)
    }
}

/// The keys of the lock or of the semaphore that an acquisition requests.
#[derive(Clone, Debug)]
pub(crate) enum LockRequest {
    Exclusive(AdvisoryKey),
    Shared(AdvisoryKey),
    Permit(PermitKeys),
}

/// One attempt to acquire.
#[derive(Clone, Debug)]
pub(crate) struct AcquireJob {
    pub(crate) acquisition: AcquisitionKey,
    pub(crate) lock_request: LockRequest,
    /// The markers to set, if the acquisition waits.
    pub(crate) markers: Option<WaiterMarkers>,
    /// Whether the attempt is refused while another session waits.
    pub(crate) yielding: bool,
}

/// An operation on a session.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    Acquire(AcquireJob),
    Release {
        acquisition: AcquisitionKey,
        key: AdvisoryKey,
        /// The key of the semaphore, if a permit is released.
        semaphore: Option<AdvisoryKey>,
    },
    /// Clears the markers that are no longer needed.
    Cleanup,
}

/// The result of a job.
#[derive(Debug)]
pub(crate) enum JobResult {
    Granted {
        key: AdvisoryKey,
        token: Option<i64>,
    },
    Refused {
        /// Whether the markers of the waiter are set.
        marked: bool,
    },
    /// Whether the lock was held.
    Released(bool),
    CleanedUp,
}

pub(crate) type Answer = Result<JobResult>;

impl LockRequest {
    /// Returns the key of the lock, or of the semaphore.
    pub(crate) fn key(&self) -> AdvisoryKey {
        match self {
            Self::Exclusive(key) | Self::Shared(key) => *key,
            Self::Permit(permit_keys) => permit_keys.key(),
        }
    }

    /// Returns the key of the semaphore, if a permit is requested.
    pub(crate) fn semaphore(&self) -> Option<AdvisoryKey> {
        matches!(self, Self::Permit(_)).then(|| self.key())
    }

    /// Returns the markers of a waiter.
    pub(crate) fn markers(&self) -> WaiterMarkers {
        let key = self.key();
        WaiterMarkers {
            key,
            waits: key.waiter_marker(),
            writer: matches!(self, Self::Exclusive(_)).then(|| key.writer_marker()),
        }
    }
}

impl Job {
    /// Returns the name of the operation in errors.
    pub(crate) fn operation(&self) -> &'static str {
        match self {
            Self::Acquire(_) => "acquire",
            Self::Release { .. } => "release",
            Self::Cleanup => "clean up",
        }
    }
}
