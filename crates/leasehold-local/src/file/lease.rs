//! [`FileLease`]: a lease of the file backend.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use leasehold_core::{
    Deadline, ErrorKind, FencingToken, LossReason, Released, Result, Timestamp,
    backend::{AtomicDeadline, KeepAlive, Lease, Request, async_trait},
};

use super::{
    error::{io_error, refused},
    locked_files::LockedFiles,
};

/// A lease of the [`FileBackend`](super::FileBackend).
///
/// The kernel has no deadline for file locks: the lock is held until it is released, its last
/// [`Arc`] is dropped, or the process ends.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_local::Result<()> {
/// use std::sync::Arc;
/// use leasehold_core::{LockKey, Released, backend::{LockBackend, Request}};
/// use leasehold_local::FileBackend;
///
/// # let folder = tempfile::tempdir().unwrap();
/// let backend = Arc::new(FileBackend::open(folder.path())?);
/// let lease = backend.acquire(Request::new(LockKey::new("item/42")?)).await?;
/// assert_eq!(lease.release().await?, Released::Freed);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct FileLease {
    request: Request,
    token: Option<FencingToken>,
    deadline: AtomicDeadline,
    locked: Mutex<Option<LockedFiles>>,
    /// Whether a renewal reported the loss before the deadline.
    lost_early: AtomicBool,
}

impl FileLease {
    pub(super) fn new(request: Request, sent: Timestamp, locked: LockedFiles) -> Self {
        let deadline = AtomicDeadline::new(request.deadline_from(sent));
        Self {
            token: locked.token,
            deadline,
            request,
            locked: Mutex::new(Some(locked)),
            lost_early: AtomicBool::new(false),
        }
    }

    fn locked(&self) -> MutexGuard<'_, Option<LockedFiles>> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Lease for FileLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        self.token
    }

    fn valid_until(&self) -> Deadline {
        self.deadline.get()
    }

    fn keep_alive(&self) -> KeepAlive {
        KeepAlive::PerLease
    }

    /// Moves the deadline if the path still leads to the locked file.
    ///
    /// Otherwise the lease is lost, because programs that use no shadows, such as `flock(1)`, can
    /// lock the new file.
    async fn renew(self: Arc<Self>) -> Result<()> {
        let sent = self.request.now();
        let lost = |why| refused(ErrorKind::Lost, why).with_operation("renew");
        let locked = self.locked();
        let Some(locked) = locked.as_ref() else {
            return Err(lost("the lock was released"));
        };
        if !locked
            .is_in_place()
            .map_err(|error| io_error("read", &locked.path, error).with_operation("renew"))?
        {
            self.lost_early.store(true, Ordering::Relaxed);
            self.request.loss_notifier().lost(LossReason::Replaced);
            return Err(lost("the lock file was removed or replaced"));
        }
        if !self
            .deadline
            .advance(self.request.deadline_from(sent), self.request.now())
        {
            return Err(lost("the deadline passed before the renewal"));
        }
        Ok(())
    }

    /// Unlocks the file and its shadow.
    ///
    /// After a loss that a renewal reported, the shadow stays locked until the deadline: the holder
    /// may not have seen the loss yet, and considers the lock held.
    async fn release(self: Arc<Self>) -> Result<Released> {
        let Some(locked) = self.locked().take() else {
            return Ok(Released::AlreadyLost);
        };
        let path = locked.path.clone();
        // After its deadline the lock is still held, because no other process could get it. If the
        // file was replaced, another process may have got the lock.
        let in_place = locked.is_in_place().unwrap_or(false);
        let remaining = self.deadline.get().moment().since(self.request.now());
        if !in_place && self.lost_early.load(Ordering::Relaxed) && !remaining.is_zero() {
            // If the runtime drops this task, the drop unlocks the file too.
            drop(tokio::spawn(async move {
                tokio::time::sleep(remaining).await;
                if let Err(error) = locked.unlock() {
                    tracing::debug!(path = %path.display(), %error, "a removed lock file could not be unlocked");
                }
            }));
            return Ok(Released::AlreadyLost);
        }
        locked
            .unlock()
            .map_err(|error| io_error("unlock", &path, error).with_operation("release"))?;
        Ok(if in_place {
            Released::Freed
        } else {
            Released::AlreadyLost
        })
    }
}
