//! [`Term`]: a guard of the leadership; [`TermInfo`]: a view of it.

use std::{fmt, ops::Deref};

use crate::{
    backend::lease::Released,
    error::Result,
    lease::release::OwnedLease,
    lock::{guard::LeaseInfo, run::guard_run_methods},
};

/// A guard that holds the leadership of an election until a deadline. Renewals advance the
/// deadline.
///
/// The guard dereferences to a [`TermInfo`], which reads the state of the lease and proclaims
/// values. Dropping the guard resigns in the background, as a dropped
/// [`LockGuard`](crate::LockGuard) releases its lock. Its guarantees hold for the leadership.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::Released;
///
/// let term = client.election("scheduler").campaign("starting").await?;
/// assert!(term.is_held() && term.fencing_token().is_some());
/// term.proclaim("ready").await?;
/// assert_eq!(term.resign().await?, Released::Freed);
/// # Ok(()) }
/// ```
#[must_use = "dropping the guard resigns; bind it to a name, not `_`"]
pub struct Term {
    lease: OwnedLease,
    info: TermInfo,
}

impl Term {
    pub(super) fn new(lease: OwnedLease) -> Self {
        Self {
            info: TermInfo(LeaseInfo::of(lease.held())),
            lease,
        }
    }

    fn into_leases(self) -> [OwnedLease; 1] {
        [self.lease]
    }

    /// Returns a view of the term for other tasks.
    #[must_use]
    pub fn info(&self) -> TermInfo {
        self.info.clone()
    }

    /// Renews the lease for another TTL, as [`LockGuard::renew`](crate::LockGuard::renew) does.
    /// Only needed with [`Renewal::Manual`](crate::Renewal::Manual).
    ///
    /// # Errors
    /// As [`LockGuard::renew`](crate::LockGuard::renew).
    ///
    /// # Cancel safety
    /// The renewal may or may not have happened; the lease stays valid either way.
    pub async fn renew(&self) -> Result<()> {
        self.lease.held().renew().await
    }

    guard_run_methods!(TermInfo);

    /// Ends the term, and returns whether it was still held. [`Released::AlreadyLost`] means that
    /// another candidate may have led before the work was done.
    ///
    /// # Errors
    /// The error of the backend. The release is then retried in the background until the lease
    /// expires.
    ///
    /// # Cancel safety
    /// Safe: if the future is dropped, the release continues in the background.
    pub async fn resign(self) -> Result<Released> {
        self.lease.release().await
    }
}

impl Deref for Term {
    type Target = TermInfo;

    fn deref(&self) -> &TermInfo {
        &self.info
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Term")
            .field("lease", &self.info.0)
            .finish_non_exhaustive()
    }
}

/// A view of a term, for tasks that do not own it.
///
/// It dereferences to the [`LeaseInfo`] of the lock, with the fencing token, the deadline and the
/// loss. It is cheap to clone, and keeps neither the leadership nor the connection alive. A
/// [record](LeaseInfo::write_record) that is written through it is the value of the leader, which
/// cannot be cleared.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let term = client.election("scheduler").campaign("10.0.0.7").await?;
/// let info = term.info();
/// tokio::spawn(async move { info.proclaim("10.0.0.7, ready").await }).await.unwrap()?;
/// # let leader = client.election("scheduler").leader().await?.unwrap();
/// # assert_eq!(leader.value, b"10.0.0.7, ready");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct TermInfo(LeaseInfo);

impl TermInfo {
    /// Replaces the value of the leader, in one step with the check of the server that this term
    /// still holds.
    ///
    /// # Guaranteed
    /// - A value that is shown was proclaimed by the leader of that time. A call that is delayed on
    ///   the way until the term was lost changes nothing.
    /// - The values of one term are shown in the order of the calls.
    ///
    /// # Errors
    /// As [`LockGuard::write_record`](crate::LockGuard::write_record): among them
    /// [`Lost`](crate::ErrorKind::Lost) if the term has ended, and
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if the backend keeps no records.
    ///
    /// # Cancel safety
    /// The value may or may not be replaced.
    pub async fn proclaim(&self, value: impl AsRef<[u8]>) -> Result<()> {
        self.0.write_record(value).await.map(|_| ())
    }
}

impl Deref for TermInfo {
    type Target = LeaseInfo;

    fn deref(&self) -> &LeaseInfo {
        &self.0
    }
}

impl fmt::Debug for TermInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TermInfo").field(&self.0).finish()
    }
}
