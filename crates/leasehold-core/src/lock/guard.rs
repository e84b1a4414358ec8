//! [`LockGuard`] and [`SemaphorePermit`], which own a lease, and [`LeaseInfo`], which looks at one.

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
        held_lease::{Facts, HeldLease},
        owned_lease::OwnedLease,
    },
    lock::run::guard_run_methods,
    mode::Mode,
    signal::LossReason,
    ttl::Ttl,
};

/// A guard of a mutex, a read lock or a write lock: the right to it until a deadline, which
/// renewals move.
///
/// Dropping it releases the lock in the background. That never blocks or panics, wherever it
/// happens: outside of a runtime, during a panic, while the runtime shuts down; in the worst case
/// the lock expires. After the client's runtime has ended, only memory and files are released; any
/// other lock expires after its TTL. To know that it is free, [`release`](Self::release) it. A
/// panic in the backend, in a metrics recorder or in a tracing subscriber does not prevent the
/// release.
///
/// # Guaranteed
/// While [`is_held`](Self::is_held) returns `true`, the backend has granted the lock to nobody
/// else, as far as its [capabilities](crate::Capabilities) and the clocks'
/// [drift](crate::ClockDrift) go.
///
/// # Not guaranteed
/// A write that starts while the lock is held may end when it is not. Only the resource can refuse
/// what comes late, by the [fencing token](FencingToken). A virtual machine that is paused and
/// restored is seen by no clock.
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
    /// Returns the token to show to the resource; `None` only where the backend has no tokens.
    #[must_use]
    pub fn fencing_token(&self) -> Option<FencingToken> {
        self.0.hold().token()
    }
}

/// A permit of a [`Semaphore`](crate::Semaphore), until a deadline, which renewals move.
///
/// It does what a [`LockGuard`] does, and has no fencing token: several holders are valid at a
/// time. Dropping it returns the permit in the background.
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
#[must_use = "dropping the permit returns it; bind it to a name, not `_`"]
pub struct SemaphorePermit(OwnedLease);

/// The methods that guards and permits share.
macro_rules! guard_methods {
    ($guard:ident) => {
        impl $guard {
            pub(crate) fn new(lease: OwnedLease) -> Self {
                Self(lease)
            }

            pub(crate) fn into_lease(self) -> OwnedLease {
                self.0
            }

            /// Returns the key.
            #[must_use]
            pub fn key(&self) -> &LockKey {
                self.0.hold().request.key()
            }

            /// Returns how the key is held.
            #[must_use]
            pub fn mode(&self) -> Mode {
                self.0.hold().request.mode()
            }

            /// Returns how long each renewal lasts.
            #[must_use]
            pub fn ttl(&self) -> Ttl {
                self.0.hold().request.ttl()
            }

            /// Returns the current deadline, on the client's clock. Past it the lease must be
            /// treated as lost.
            #[must_use]
            pub fn deadline(&self) -> Deadline {
                self.0.hold().deadline()
            }

            /// Returns the time until the deadline; zero if the lease is no longer held.
            #[must_use]
            pub fn remaining(&self) -> Duration {
                self.0.hold().remaining()
            }

            /// Returns whether the lease is held: it is not lost, and a clock that is read now has
            /// not reached the deadline.
            #[must_use]
            pub fn is_held(&self) -> bool {
                self.0.hold().is_held()
            }

            /// Returns why the lease was lost, if it was.
            #[must_use]
            pub fn loss(&self) -> Option<LossReason> {
                self.0.hold().loss()
            }

            /// Completes when the lease is lost: at the deadline at the latest, or as soon as the
            /// backend reports it. Never completes while the lease is held.
            ///
            /// # Cancel safety
            /// Safe.
            pub async fn lost(&self) -> LossReason {
                or_never(self.0.hold().ended().await).await
            }

            /// Returns a token that is cancelled when the lease is lost.
            #[must_use]
            pub fn cancellation_token(&self) -> CancellationToken {
                self.0.hold().cancellation_token()
            }

            /// Returns a view of the lease for other tasks.
            #[must_use]
            pub fn info(&self) -> LeaseInfo {
                LeaseInfo::of(self.0.hold())
            }

            /// Renews for another TTL, counted from now. Automatic renewal needs no help; this is
            /// for [`Renewal::Manual`](crate::Renewal::Manual).
            ///
            /// # Errors
            /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) is final. After any other error the
            /// deadline is where it was.
            ///
            /// # Cancel safety
            /// The renewal may or may not have happened; the lease stays valid either way.
            pub async fn renew(&self) -> Result<()> {
                self.0.hold().renew().await
            }

            guard_run_methods!();

            /// Releases the lease and returns whether it was still held. [`Released::AlreadyLost`]
            /// means that another may have held it before the work was done.
            ///
            /// # Errors
            /// As the backend fails. The release is then tried again in the background until the
            /// lease expires.
            ///
            /// # Cancel safety
            /// Safe: a dropped release goes on in the background.
            pub async fn release(self) -> Result<Released> {
                self.0.release().await
            }
        }

        impl fmt::Debug for $guard {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($guard))
                    .field("key", self.key())
                    .field("mode", &self.mode())
                    .field("token", &self.0.hold().token())
                    .field("remaining", &self.remaining())
                    .finish_non_exhaustive()
            }
        }
    };
}
guard_methods!(LockGuard);
guard_methods!(SemaphorePermit);

impl LockGuard {
    pub(crate) fn hold(&self) -> &Arc<HeldLease> {
        self.0.hold()
    }
}

/// A view of a lease, for tasks that do not own it. Cheap to clone; it keeps neither the lock nor
/// the connection.
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
    hold: Weak<HeldLease>,
    facts: Arc<Facts>,
}

impl LeaseInfo {
    pub(crate) fn of(hold: &Arc<HeldLease>) -> Self {
        Self {
            hold: Arc::downgrade(hold),
            facts: Arc::clone(hold.facts()),
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

    /// Returns how long each renewal lasts.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        self.facts.request.ttl()
    }

    /// Returns the token to show to the resource. `None` for permits, and where the backend has no
    /// tokens.
    #[must_use]
    pub fn fencing_token(&self) -> Option<FencingToken> {
        self.facts.token
    }

    /// Returns the current deadline, on the client's clock. Past it the lease must be treated as
    /// lost.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.hold
            .upgrade()
            .map_or_else(|| self.facts.last_deadline(), |hold| hold.deadline())
    }

    /// Returns the time until the deadline; zero if the lease is no longer held.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.hold
            .upgrade()
            .map(|hold| hold.remaining())
            .unwrap_or_default()
    }

    /// Returns whether the lease is held: it is neither lost nor released, and a clock that is read
    /// now has not reached the deadline.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.hold.upgrade().is_some_and(|hold| hold.is_held())
    }

    /// Returns why the lease was lost, if it was.
    #[must_use]
    pub fn loss(&self) -> Option<LossReason> {
        match self.hold.upgrade() {
            Some(hold) => hold.loss(),
            None => self.facts.request.signal().loss(),
        }
    }

    /// Completes when the lease is lost: at the deadline at the latest, or as soon as the backend
    /// reports it. Never completes while the lease is held, nor after it was released.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) -> LossReason {
        or_never(match self.hold.upgrade() {
            Some(hold) => hold.ended().await,
            None => self.facts.request.signal().loss(),
        })
        .await
    }

    /// Returns a token that is cancelled when the lease is lost.
    #[must_use]
    pub fn cancellation_token(&self) -> CancellationToken {
        if let Some(hold) = self.hold.upgrade() {
            return hold.cancellation_token();
        }
        let token = CancellationToken::new();
        if self.loss().is_some() {
            token.cancel();
        }
        token
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

/// Waits for ever if the lease ended without a loss.
async fn or_never(loss: Option<LossReason>) -> LossReason {
    match loss {
        Some(reason) => reason,
        None => std::future::pending().await,
    }
}
