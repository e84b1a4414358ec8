//! [`Lease`]: one granted lock, as a backend implements it; [`ContainedLease`]: as core calls it.

use std::{
    fmt::Debug,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;

use crate::{
    backend::record::RecordWrite,
    clock::{Deadline, Timestamp},
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    panics::{Call, catch, contain},
};

/// A boxed future that can be sent between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One granted lock.
///
/// # For implementors
/// `release` and `renew` may overlap, and no order of their effects may leave the lock held.
/// Dropping the last `Arc` of a lease does nothing, because the client releases it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// use std::sync::Arc;
/// use leasehold_core::{LockKey, Released, backend::{LockBackend, Request}};
/// use leasehold_local::MemoryBackend;
///
/// let backend = Arc::new(MemoryBackend::new());
/// let lease = backend.acquire(Request::new(LockKey::new("item/42")?)).await?;
/// let before = lease.valid_until();
/// lease.clone().renew().await?;
/// assert!(lease.valid_until() >= before);
/// assert_eq!(lease.release().await?, Released::Freed);
/// # Ok(()) }
/// ```
#[async_trait]
pub trait Lease: Debug + Send + Sync + 'static {
    /// Returns the fencing token; `None` for permits and where the backend has no tokens.
    fn fencing_token(&self) -> Option<FencingToken>;

    /// Returns the deadline of this lease. It advances on every renewal, of the lease itself or of
    /// its session. Keep it in an [`AtomicDeadline`](crate::backend::AtomicDeadline).
    fn valid_until(&self) -> Deadline;

    /// Returns whether this lease is renewed by itself or with its session.
    fn keep_alive(&self) -> KeepAlive;

    /// Renews the lease for another TTL, counted from before the renewal is sent.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) is final. Any other error leaves the deadline
    /// where it was, and the client retries. [`ErrorKind::Revoked`](crate::ErrorKind::Revoked) says
    /// that the lock was gracefully revoked: it stays valid until the deadline and can be released.
    async fn renew(self: Arc<Self>) -> Result<()>;

    /// Releases the lock, if this lease still holds it. It is idempotent: after it returned
    /// [`Released::Freed`], every further call changes nothing and returns
    /// [`Released::AlreadyLost`].
    ///
    /// # Errors
    /// As the driver fails. The lock is then free at its deadline.
    async fn release(self: Arc<Self>) -> Result<Released>;

    /// Replaces or clears the record beside the lock, if this lease still holds the lock. Returns
    /// the version of the record after the write.
    ///
    /// The client calls it only for an exclusive lease, only if the capabilities have
    /// [records](crate::Capabilities::records), and not before the previous call on the same lease
    /// has ended. It may overlap `renew` and `release`.
    ///
    /// # What a write promises
    /// - **Holder**: it takes effect only while the grant of this lease holds the lock. The server
    ///   checks this in the same step. A write that was delayed anywhere until another holder was
    ///   granted the lock, or until it was free, has no effect. A gracefully revoked lock is held
    ///   until its deadline.
    /// - **Order**: if the stored record is by the same owner and its
    ///   [sequence](RecordWrite::sequence) is not smaller, nothing changes, and the result is the
    ///   stored version. So a repeated write counts once, and a late one undoes nothing.
    /// - **Version**: otherwise the version grows. It never starts again, neither after the record
    ///   was cleared nor with another holder.
    /// - **Succession**: when it has returned, every read that starts sees it or a later write; see
    ///   [`LockBackend::read_record`](crate::backend::LockBackend::read_record).
    /// - **Whole**: the value is stored unchanged and completely, up to
    ///   [`Record::MAX_LEN`](crate::Record::MAX_LEN) arbitrary bytes. It replaces value, owner,
    ///   sequence, token, label and time in one step.
    ///
    /// # Errors
    /// - [`ErrorKind::Lost`] if this lease no longer holds the lock. It is final: the client treats
    ///   the lease as lost, and this call wrote nothing.
    /// - [`ErrorKind::Conflict`] if the place of the record has a value of another program. It is
    ///   not overwritten.
    /// - [`ErrorKind::Unavailable`] if the write certainly had no effect, and
    ///   [`ErrorKind::Indeterminate`] if it may have had. The client repeats the same write.
    /// - [`ErrorKind::Unsupported`] by default, and for a lease that is not exclusive.
    async fn write_record(self: Arc<Self>, write: RecordWrite) -> Result<u64> {
        let _ = write;
        Err(Error::new(
            ErrorKind::Unsupported,
            "this backend keeps no records beside its locks; choose another backend",
        ))
    }
}

/// The way in which a lease is kept alive.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// use std::sync::Arc;
/// use leasehold_core::{LockKey, backend::{KeepAlive, LockBackend, Request}};
/// use leasehold_local::MemoryBackend;
///
/// let backend = Arc::new(MemoryBackend::new());
/// let lease = backend.acquire(Request::new(LockKey::new("item/42")?)).await?;
/// assert_eq!(lease.keep_alive(), KeepAlive::PerLease);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeepAlive {
    /// The lease is renewed by itself.
    PerLease,
    /// The lease is renewed with all leases of this session, by one renewal.
    Session(SessionId),
}

/// The identity of a session within a process.
///
/// ```
/// use leasehold_core::backend::{KeepAlive, SessionId};
///
/// let session = SessionId::new();
/// // Two leases of one session are renewed together.
/// assert_eq!(KeepAlive::Session(session), KeepAlive::Session(session));
/// assert_ne!(SessionId::new(), session);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(u64);

impl SessionId {
    /// Returns an identity that no other session has.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The outcome of a release.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::Released;
///
/// let guard = client.mutex("item/42").lock().await?;
/// match guard.release().await? {
///     Released::AlreadyLost => println!("another may have held it meanwhile"),
///     _ => println!("it was held until now"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The lock was held until now, and is free.
    Freed,
    /// The lock was no longer held: another acquisition may have held it since. The lock of another
    /// holder was not changed.
    AlreadyLost,
    /// Another guard of the same owner still holds the lock (re-entrancy).
    StillHeld,
}

/// A lease whose methods do not panic.
#[derive(Clone, Debug)]
pub(crate) struct ContainedLease(Arc<dyn Lease>);

impl ContainedLease {
    pub(crate) fn new(lease: Arc<dyn Lease>) -> Self {
        Self(lease)
    }

    /// Returns the fencing token and the way of renewal, which never change.
    pub(crate) fn facts(&self) -> Result<(Option<FencingToken>, KeepAlive)> {
        catch(|| (self.0.fencing_token(), self.0.keep_alive()))
    }

    /// Returns the deadline. If the lease panics, it counts as expired.
    pub(crate) fn valid_until(&self) -> Deadline {
        contain(|| self.0.valid_until()).unwrap_or(Deadline::at(Timestamp::from_nanos(0)))
    }

    /// Calls [`Lease::renew`].
    pub(crate) fn renew(&self) -> Call<()> {
        Call::of(|| Arc::clone(&self.0).renew())
    }

    /// Calls [`Lease::release`].
    pub(crate) fn release(&self) -> Call<Released> {
        Call::of(|| Arc::clone(&self.0).release())
    }

    /// Calls [`Lease::write_record`].
    pub(crate) fn write_record(&self, write: RecordWrite) -> Call<u64> {
        Call::of(|| Arc::clone(&self.0).write_record(write))
    }
}
