//! [`FileLease`]: a lease of the file backend.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use leasehold_core::{
    Deadline, Error, ErrorKind, FencingToken, LossReason, Mode, Released, Result, Timestamp,
    backend::{AtomicDeadline, KeepAlive, Lease, RecordWrite, Request, async_trait},
};

use super::{
    error::{io_error, refused},
    locked_files::LockedFiles,
    record,
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
    /// Locked while the record is written, so that the lock is not released meanwhile.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// Whether a renewal or a write reported the loss before the deadline.
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
            writing: Arc::default(),
            lost_early: AtomicBool::new(false),
        }
    }

    fn locked(&self) -> MutexGuard<'_, Option<LockedFiles>> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports that another process may hold the lock.
    fn lose(&self) -> Error {
        self.lost_early.store(true, Ordering::Relaxed);
        self.request.loss_notifier().lost(LossReason::Replaced);
        refused(ErrorKind::Lost, "the lock file was removed or replaced")
    }

    /// Writes the record. Blocks until it is on disk.
    fn write(&self, write: &RecordWrite) -> Result<u64> {
        let lock = match &*self.locked() {
            Some(locked) => (locked.path.clone(), locked.id),
            None => return Err(refused(ErrorKind::Lost, "the lock was released")),
        };
        if self.lost_early.load(Ordering::Relaxed) {
            return Err(self.lose());
        }
        let written = record::write((&lock.0, lock.1), &self.request, self.token, write)?;
        let Some(mut written) = written else {
            return Err(self.lose());
        };
        if let Some(record) = written.record.take()
            && let Some(locked) = self.locked().as_mut()
        {
            locked
                .set_record(record)
                .map_err(|error| io_error("share with child processes", &lock.0, error))?;
        }
        written.sync()?;
        Ok(written.version)
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
            return Err(self.lose().with_operation("renew"));
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
        let _no_write = match self.writing.try_lock() {
            Ok(turn) => turn,
            Err(_written_now) => self.writing.lock().await,
        };
        let Some(mut locked) = self.locked().take() else {
            return Ok(Released::AlreadyLost);
        };
        locked.unlock_record();
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

    /// Replaces the file of the record, in one step and on disk, if the path still leads to the
    /// locked file.
    async fn write_record(self: Arc<Self>, write: RecordWrite) -> Result<u64> {
        let named = |error: Error| error.with_operation("write_record");
        if self.request.mode() != Mode::Exclusive {
            return Err(named(refused(
                ErrorKind::Unsupported,
                format!(
                    "`{}` is held as {}, and only an exclusive holder writes the record; lock it exclusively",
                    self.request.key(),
                    self.request.mode()
                ),
            )));
        }
        let turn = Arc::clone(&self.writing).lock_owned().await;
        let written = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            self.write(&write)
        });
        written
            .await
            .unwrap_or_else(|error| {
                let message = "the write of the record was not completed";
                Err(refused(ErrorKind::Indeterminate, message).with_source(error))
            })
            .map_err(named)
    }
}
