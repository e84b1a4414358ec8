//! [`FileLease`]: a grant of the file backend.

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

/// A grant of the [`FileBackend`](super::FileBackend).
///
/// The kernel knows no deadline: the lock is held until it is released, its last [`Arc`] is
/// dropped, or the process ends.
#[derive(Debug)]
pub struct FileLease {
    request: Request,
    token: Option<FencingToken>,
    deadline: AtomicDeadline,
    hold: Mutex<Option<LockedFiles>>,
    /// A renewal has reported the loss before the deadline.
    lost_early: AtomicBool,
}

impl FileLease {
    pub(super) fn new(request: Request, sent: Timestamp, hold: LockedFiles) -> Self {
        let deadline = AtomicDeadline::new(request.deadline_from(sent));
        Self {
            token: hold.token,
            deadline,
            request,
            hold: Mutex::new(Some(hold)),
            lost_early: AtomicBool::new(false),
        }
    }

    fn hold(&self) -> MutexGuard<'_, Option<LockedFiles>> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Moves the deadline, if the path still leads to the file that is locked. If not, the lease is
    /// lost: programs that do not look for us, such as `flock(1)`, can lock the new file.
    async fn renew(self: Arc<Self>) -> Result<()> {
        let sent = self.request.now();
        let lost = |why| refused(ErrorKind::Lost, why).with_operation("renew");
        let hold = self.hold();
        let Some(hold) = hold.as_ref() else {
            return Err(lost("the lock was released"));
        };
        if !hold
            .is_in_place()
            .map_err(|error| io_error("read", &hold.path, error).with_operation("renew"))?
        {
            self.lost_early.store(true, Ordering::Relaxed);
            self.request.loss_notifier().lost(LossReason::Replaced);
            return Err(lost("the lock file was removed or replaced"));
        }
        if !self
            .deadline
            .advance(self.request.deadline_from(sent), self.request.now())
        {
            return Err(lost("its deadline came before the renewal"));
        }
        Ok(())
    }

    /// Unlocks the file and its shadow. After a loss that a renewal reported the shadow stays
    /// locked until the deadline: the holder may not have looked yet, and still takes the lock for
    /// its own.
    async fn release(self: Arc<Self>) -> Result<Released> {
        let Some(hold) = self.hold().take() else {
            return Ok(Released::AlreadyLost);
        };
        let path = hold.path.clone();
        // Past its deadline it is still ours: nobody else had it. A replaced file may have been
        // another's.
        let ours = hold.is_in_place().unwrap_or(false);
        let left = self.deadline.get().moment().since(self.request.now());
        if !ours && self.lost_early.load(Ordering::Relaxed) && !left.is_zero() {
            // Dropped with the runtime, it unlocks too.
            drop(tokio::spawn(async move {
                tokio::time::sleep(left).await;
                if let Err(error) = hold.free() {
                    tracing::debug!(path = %path.display(), %error, "a removed lock file could not be unlocked");
                }
            }));
            return Ok(Released::AlreadyLost);
        }
        hold.free()
            .map_err(|error| io_error("unlock", &path, error).with_operation("release"))?;
        Ok(if ours {
            Released::Freed
        } else {
            Released::AlreadyLost
        })
    }
}
