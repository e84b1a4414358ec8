//! [`LockGuard`] and [`SemaphorePermit`], which own a lease, and [`LeaseInfo`], a view of one.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    backend::lease::Released,
    clock::Deadline,
    error::Result,
    fencing::FencingToken,
    key::LockKey,
    lease::{
        held_lease::{Facts, HeldLease, lost_error, released_error},
        release::OwnedLease,
    },
    lock::run::guard_run_methods,
    mode::Mode,
    signal::LossReason,
    ttl::Ttl,
};

/// A guard that holds a mutex, a read lock or a write lock until a deadline. Renewals advance the
/// deadline.
///
/// # Release
/// Dropping the guard releases the lock in the background. The drop never blocks or panics, even
/// outside of a runtime, during a panic, or while the runtime shuts down. After the client's
/// runtime has ended, only locks in memory and files are released; any other lock expires after its
/// TTL. A panic in the backend, in a metrics recorder or in a tracing subscriber does not prevent
/// the release. To wait until the lock is free, call [`release`](Self::release).
///
/// # Guaranteed
/// While [`is_held`](Self::is_held) returns `true`, the backend has granted the lock to no other
/// holder, within the limits of its [capabilities](crate::Capabilities) and of the maximum
/// [clock drift](crate::ClockDrift).
///
/// # Not guaranteed
/// A write that starts while the lock is held may arrive after it was lost. Only the resource can
/// refuse late writes, by comparing [fencing tokens](FencingToken). No clock detects that a virtual
/// machine was paused and restored.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::Released;
///
/// let guard = client.mutex("item/42").lock().await?;
/// let token = guard.fencing_token().expect("memory has tokens");
/// let info = guard.info(); // for other tasks
/// assert_eq!(guard.release().await?, Released::Freed);
/// assert!(!info.is_held() && info.fencing_token() == Some(token));
/// # Ok(()) }
/// ```
#[must_use = "dropping the guard releases the lock; bind it to a name, not `_`"]
pub struct LockGuard(OwnedLease);

impl LockGuard {
    /// Returns the fencing token to pass to the resource. `None` only if the backend has no tokens.
    #[must_use]
    pub fn fencing_token(&self) -> Option<FencingToken> {
        self.0.held().token()
    }

    /// Replaces the record beside the lock, in one step with the check of the server that this
    /// guard still holds the lock. Returns the version of the record.
    ///
    /// Anyone may read the record by [`LockClient::record`](crate::LockClient::record), and the
    /// next holder sees this write or a later one. The record outlives the lock. It is kept without
    /// a limit of time, so lock names should not be made for one use each.
    ///
    /// ```
    /// # use leasehold_local::MemoryBackend;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
    /// # use leasehold_core::LockClient;
    /// # let client = LockClient::new(MemoryBackend::new());
    /// let guard = client.mutex("import").lock().await?;
    /// let page = match client.record("import").await? {
    ///     Some(record) => record.value[0],
    ///     None => 0,
    /// };
    /// // Import the page here.
    /// guard.write_record([page + 1]).await?;
    /// # assert_eq!(client.record("import").await?.unwrap().value, [1]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Guaranteed
    /// - A write that takes effect does so while this guard holds the lock. A write that is delayed
    ///   on the way until the lock was lost changes nothing.
    /// - Writes of one holder take effect in the order of the calls. They are made one at a time,
    ///   also those of several views and re-entrant guards.
    ///
    /// # Errors
    /// - [`ErrorKind::Lost`](crate::ErrorKind::Lost) if the lock is no longer held. This call wrote
    ///   nothing. If the backend detects the loss, the guard is lost as well.
    /// - [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) if the value is longer than
    ///   [`Record::MAX_LEN`](crate::Record::MAX_LEN). Nothing was sent.
    /// - [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the backend keeps no records,
    ///   or if this is the guard of a read lock. Nothing was sent.
    /// - [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if another program has written the
    ///   place of the record. It was not changed.
    /// - [`ErrorKind::Indeterminate`](crate::ErrorKind::Indeterminate) if no answer came: the
    ///   record may be written. After this error and after
    ///   [`Unavailable`](crate::ErrorKind::Unavailable), the same call may be repeated. A
    ///   repetition with the same value counts as one write.
    ///
    /// # Cancel safety
    /// The record may or may not be written.
    pub async fn write_record(&self, value: impl AsRef<[u8]>) -> Result<u64> {
        self.0.held().write_record(Some(value.as_ref())).await
    }

    /// Clears the record beside the lock, as [`write_record`](Self::write_record) writes it. The
    /// version continues to grow. Returns the version.
    ///
    /// # Errors
    /// As [`write_record`](Self::write_record).
    ///
    /// # Cancel safety
    /// The record may or may not be cleared.
    pub async fn clear_record(&self) -> Result<u64> {
        self.0.held().write_record(None).await
    }
}

/// A guard that holds a permit of a [`Semaphore`](crate::Semaphore) until a deadline. Renewals
/// advance the deadline.
///
/// It behaves like a [`LockGuard`] but has no fencing token, because a semaphore has several valid
/// holders. Dropping it releases the permit in the background.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let permit = client.semaphore("gpu", 2).acquire().await?;
/// assert!(permit.is_held());
/// permit.release().await?;
/// # Ok(()) }
/// ```
#[must_use = "dropping the permit releases it; bind it to a name, not `_`"]
pub struct SemaphorePermit(OwnedLease);

/// The methods that guards and permits share.
macro_rules! guard_methods {
    ($guard:ident) => {
        impl $guard {
            pub(crate) fn new(lease: OwnedLease) -> Self {
                Self(lease)
            }

            fn into_leases(self) -> [OwnedLease; 1] {
                [self.0]
            }

            /// Returns the key.
            #[must_use]
            pub fn key(&self) -> &LockKey {
                self.0.held().request.key()
            }

            /// Returns how the key is held.
            #[must_use]
            pub fn mode(&self) -> Mode {
                self.0.held().request.mode()
            }

            /// Returns the TTL: how long the lease is valid after each renewal.
            #[must_use]
            pub fn ttl(&self) -> Ttl {
                self.0.held().request.ttl()
            }

            /// Returns the current deadline on the client's clock. After it the lease must be
            /// treated as lost.
            #[must_use]
            pub fn deadline(&self) -> Deadline {
                self.0.held().deadline()
            }

            /// Returns the time until the deadline; zero if the lease is no longer held.
            #[must_use]
            pub fn remaining(&self) -> Duration {
                self.0.held().remaining()
            }

            /// Returns whether the lease is held. Reads the clock: the lease is held if it is not
            /// lost and its deadline has not passed.
            #[must_use]
            pub fn is_held(&self) -> bool {
                self.0.held().is_held()
            }

            /// Returns why the lease was lost, if it was.
            #[must_use]
            pub fn loss(&self) -> Option<LossReason> {
                self.0.held().loss()
            }

            /// Completes when the lease is lost: at the deadline at the latest, or as soon as the
            /// backend reports it. Never completes while the lease is held.
            ///
            /// # Cancel safety
            /// Safe.
            pub async fn lost(&self) -> LossReason {
                or_never(self.0.held().ended().await).await
            }

            /// Returns a token that is cancelled when the lease is lost.
            #[must_use]
            pub fn cancellation_token(&self) -> CancellationToken {
                self.0.held().cancellation_token()
            }

            /// Returns a view of the lease for other tasks.
            #[must_use]
            pub fn info(&self) -> LeaseInfo {
                LeaseInfo::of(self.0.held())
            }

            /// Renews the lease for another TTL, counted from now. Only needed with
            /// [`Renewal::Manual`](crate::Renewal::Manual).
            ///
            /// # Errors
            /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) is final. After any other error the
            /// deadline is unchanged. [`ErrorKind::Revoked`](crate::ErrorKind::Revoked) means that
            /// no renewal will succeed; release the lock before its deadline.
            ///
            /// # Cancel safety
            /// The renewal may or may not have happened; the lease stays valid either way.
            pub async fn renew(&self) -> Result<()> {
                self.0.held().renew().await
            }

            guard_run_methods!(LeaseInfo);

            /// Releases the lease and returns whether it was still held. [`Released::AlreadyLost`]
            /// means that another holder may have acquired the lock before the work was done.
            ///
            /// # Errors
            /// The error of the backend. The release is then retried in the background until the
            /// lease expires.
            ///
            /// # Cancel safety
            /// Safe: if the future is dropped, the release continues in the background.
            pub async fn release(self) -> Result<Released> {
                self.0.release().await
            }
        }

        impl fmt::Debug for $guard {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($guard))
                    .field("key", self.key())
                    .field("mode", &self.mode())
                    .field("token", &self.0.held().token())
                    .field("remaining", &self.remaining())
                    .finish_non_exhaustive()
            }
        }
    };
}
guard_methods!(LockGuard);
guard_methods!(SemaphorePermit);

impl LockGuard {
    pub(crate) fn held(&self) -> &Arc<HeldLease> {
        self.0.held()
    }
}

/// A view of a lease, for tasks that do not own it.
///
/// It is cheap to clone, and keeps neither the lock nor the connection alive.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let guard = client.mutex("item/42").lock().await?;
/// let info = guard.info();
/// drop(guard);
/// assert!(!info.is_held());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct LeaseInfo {
    held: Weak<HeldLease>,
    facts: Arc<Facts>,
}

impl LeaseInfo {
    pub(crate) fn of(held: &Arc<HeldLease>) -> Self {
        Self {
            held: Arc::downgrade(held),
            facts: Arc::clone(held.facts()),
        }
    }

    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &LockKey {
        self.facts.request.key()
    }

    /// Returns how the key is held.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.facts.request.mode()
    }

    /// Returns the TTL: how long the lease is valid after each renewal.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        self.facts.request.ttl()
    }

    /// Returns the fencing token to pass to the resource. `None` for permits, and if the backend
    /// has no tokens.
    #[must_use]
    pub fn fencing_token(&self) -> Option<FencingToken> {
        self.facts.token
    }

    /// Returns the current deadline on the client's clock. After it the lease must be treated as
    /// lost.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.held
            .upgrade()
            .map_or_else(|| self.facts.last_deadline(), |held| held.deadline())
    }

    /// Returns the time until the deadline; zero if the lease is no longer held.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.held
            .upgrade()
            .map(|held| held.remaining())
            .unwrap_or_default()
    }

    /// Returns whether the lease is held. Reads the clock: the lease is held if it is neither lost
    /// nor released and its deadline has not passed.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.upgrade().is_some_and(|held| held.is_held())
    }

    /// Returns why the lease was lost, if it was.
    #[must_use]
    pub fn loss(&self) -> Option<LossReason> {
        match self.held.upgrade() {
            Some(held) => held.loss(),
            None => self.facts.request.signal().loss(),
        }
    }

    /// Completes when the lease is lost: at the deadline at the latest, or as soon as the backend
    /// reports it. Never completes while the lease is held, nor after it was released.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) -> LossReason {
        or_never(match self.held.upgrade() {
            Some(held) => held.ended().await,
            None => self.facts.request.signal().loss(),
        })
        .await
    }

    /// Returns a token that is cancelled when the lease is lost.
    #[must_use]
    pub fn cancellation_token(&self) -> CancellationToken {
        if let Some(held) = self.held.upgrade() {
            return held.cancellation_token();
        }
        let token = CancellationToken::new();
        if self.loss().is_some() {
            token.cancel();
        }
        token
    }

    /// Replaces the record beside the lock, as
    /// [`LockGuard::write_record`](crate::LockGuard::write_record) does. Returns its version.
    ///
    /// # Errors
    /// As [`LockGuard::write_record`](crate::LockGuard::write_record), and
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a permit.
    ///
    /// # Cancel safety
    /// The record may or may not be written.
    pub async fn write_record(&self, value: impl AsRef<[u8]>) -> Result<u64> {
        self.holder()?.write_record(Some(value.as_ref())).await
    }

    /// Clears the record beside the lock, as
    /// [`LockGuard::clear_record`](crate::LockGuard::clear_record) does. Returns its version.
    ///
    /// # Errors
    /// As [`write_record`](Self::write_record).
    ///
    /// # Cancel safety
    /// The record may or may not be cleared.
    pub async fn clear_record(&self) -> Result<u64> {
        self.holder()?.write_record(None).await
    }

    /// Returns the lease, or the error of an operation after its end.
    fn holder(&self) -> Result<Arc<HeldLease>> {
        self.held.upgrade().ok_or_else(|| match self.loss() {
            Some(reason) => lost_error(self.key(), reason),
            None => released_error(self.key()),
        })
    }
}

impl fmt::Debug for LeaseInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseInfo")
            .field("key", self.key())
            .field("mode", &self.mode())
            .field("token", &self.fencing_token())
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}

/// Waits forever if the lease ended without a loss.
async fn or_never(loss: Option<LossReason>) -> LossReason {
    match loss {
        Some(reason) => reason,
        None => std::future::pending().await,
    }
}
