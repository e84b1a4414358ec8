//! [`FileBackend`]: locks between the processes of one host.

use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use leasehold_core::{
    Capabilities, ClockDrift, ErrorKind, Expiry, Fairness, Fencing, HolderRef, Inspection, LockKey,
    LossDetection, Mode, Pong, Records, Restart, Result, Revocation, RevokeOutcome, Timestamp,
    WaiterNotification,
    backend::{
        Attempt, Contention, Lease, LockBackend, RecordRead, RecordReading, Request, async_trait,
        support::RetryBudget,
    },
};

use super::{
    access, admin,
    config::FileConfig,
    directory,
    error::{NAME, io_error, refused},
    lease::FileLease,
    lock_dir::LockDir,
    locked_files::LockedFiles,
    pending_lock::PendingLock,
    record,
};

/// The longest time that a yielding request waits for other waiters.
const YIELD_RETRY: Duration = Duration::from_millis(50);
/// The interval at which it checks for other waiters.
const YIELD_STEP: Duration = Duration::from_millis(5);

/// A backend for locks between the processes of one host, by the kernel's file locks (`flock(2)`).
///
/// - An exclusive or shared lock on a key is a lock on the file that [`path_of`](Self::path_of)
///   returns, so programs that use `flock(1)` on this file take part. Permits have files of their
///   own.
/// - The kernel frees the locks of a killed process at once. There is no other expiry: a *stopped*
///   process keeps its locks.
/// - inotify notifies waiters when a holder closes the file. They also poll slowly.
/// - No reader overtakes a waiting writer of any process that uses this crate. A stopped waiter
///   keeps readers out.
/// - Every user who may write the directory can use its locks, whatever the umask of the user who
///   created the files. A lock file that can only be read can be locked. A lock file is never
///   written.
/// - Fencing tokens are stored in a file beside the lock file. They never fall below the wall clock
///   in microseconds.
/// - On Linux, the removal of a lock file or of its directory while the lock is held admits no
///   second holder among the processes of one user that use this crate and share `/dev/shm`. The
///   backend does not notice an older copy of a directory that is restored while its locks are
///   held.
/// - The record of a lock is a file beside the lock file, which each write replaces in one step.
///   A write is on disk (`fsync`) before it returns.
/// - Locks cannot be revoked: only the kernel and the holder can end a file lock.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use leasehold_core::{LockKey, Released, backend::{Attempt, LockBackend, Request}};
/// use leasehold_local::FileBackend;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> leasehold_core::Result<()> {
/// # let dir = tempfile::tempdir().expect("a temporary directory");
/// # let dir = dir.path();
/// let backend = Arc::new(FileBackend::open(dir)?);
/// let request = Request::new(LockKey::new("nightly-report")?);
/// let Attempt::Granted(lease) = backend.clone().try_acquire(request.clone()).await? else {
///     panic!("the lock is free");
/// };
/// assert!(matches!(backend.try_acquire(request).await?, Attempt::Contended(_)));
/// assert_eq!(lease.release().await?, Released::Freed);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FileBackend {
    dir: Arc<LockDir>,
}

impl FileBackend {
    /// Opens the backend on a directory, which is created if it is missing.
    ///
    /// # Errors
    /// Returns [`ErrorKind::InvalidInput`] if the path is not a directory, [`ErrorKind::Denied`] if
    /// the directory cannot be written or if other users can change it
    /// ([`FileConfig::with_shared`]), and [`ErrorKind::Unsupported`] if it is on a network file
    /// system.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(dir, FileConfig::new())
    }

    /// Opens the backend on a directory with options.
    ///
    /// # Errors
    /// Returns the errors of [`open`](Self::open).
    pub fn open_with(dir: impl AsRef<Path>, config: FileConfig) -> Result<Self> {
        let dir =
            LockDir::open(dir.as_ref(), config).map_err(|error| error.with_operation("open"))?;
        Ok(Self { dir: Arc::new(dir) })
    }

    /// Returns the default directory: `/var/lib/leasehold` for root, and `.local/state/leasehold`
    /// in the home directory of every other user.
    ///
    /// It depends on the effective user alone. The home directory is that of the user database;
    /// `HOME` and `XDG_STATE_HOME` are not read, so a cron job, a service and a shell of one user
    /// find the same locks. [`open`](Self::open) creates the directory with mode 0700. A service
    /// that may not write it, as with `ProtectHome=` or `ProtectSystem=strict` of systemd, gets an
    /// error from `open`.
    ///
    /// # Errors
    /// Returns [`ErrorKind::InvalidInput`] if the user has no home directory. Open a named
    /// directory then.
    pub fn default_dir() -> Result<PathBuf> {
        directory::default_dir()
    }

    /// Returns the canonical path of the directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the file whose lock is the lock on `key`, for `flock(1)` and other programs.
    ///
    /// Lower-case letters, digits, `_`, `-` and a `.` that is not first stand for themselves. Every
    /// other byte is encoded as `%` and two hexadecimal digits, and `.lock` follows: `item/42` is
    /// `item%2f42.lock`. Longer names are split into directories. The mapping never changes.
    #[must_use]
    pub fn path_of(&self, key: &LockKey) -> PathBuf {
        self.dir.file(key, ".lock")
    }

    async fn grant(
        &self,
        request: Request,
        sent: Timestamp,
        mut locked: LockedFiles,
    ) -> Result<Arc<dyn Lease>> {
        if self.dir.config.sync && request.mode() == Mode::Exclusive {
            let path = self.dir.token_file(request.key());
            let flushed = path.clone();
            let flush = move || {
                match access::open_existing(&flushed) {
                    // The directory was removed. The next renewal reports it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    file => file?.sync_data()?,
                }
                flushed
                    .parent()
                    .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
            };
            let done = tokio::task::spawn_blocking(flush)
                .await
                .map_err(io::Error::other)
                .and_then(|done| done);
            done.map_err(|error| io_error("flush", &path, error))?;
        }
        if self.dir.config.inherited_by_children {
            // This is the last step, because child processes keep a lock that is dropped without a
            // release.
            locked.let_inherit().map_err(|error| {
                io_error(
                    "share with child processes",
                    &self.path_of(request.key()),
                    error,
                )
            })?;
        }
        Ok(Arc::new(FileLease::new(request, sent, locked)))
    }

    /// Waits until the lock is granted or the request is cancelled. Fails with the first error.
    async fn queue(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let mut pending = PendingLock::new(Arc::clone(&self.dir), request.clone());
        let begun = request.now();
        while request.waiting().yields
            && request.now().since(begun) < YIELD_RETRY
            && pending.others_wait()?
        {
            tokio::select! {
                () = tokio::time::sleep(YIELD_STEP) => {}
                () = request.cancelled() => break,
            }
        }
        let mut registered = false;
        while !request.is_cancelled() {
            let sent = request.now();
            if let Some(locked) = pending.attempt()? {
                return self.grant(request, sent, locked).await;
            }
            request.set_contended();
            pending.register()?;
            if std::mem::replace(&mut registered, true) {
                pending.pause().await;
            }
        }
        Err(
            refused(ErrorKind::Cancelled, "the acquisition was cancelled")
                .with_operation("acquire"),
        )
    }
}

impl fmt::Display for FileBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file:{}", self.dir().display())
    }
}

#[async_trait]
impl LockBackend for FileBackend {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(NAME);
        capabilities.endpoint = self.to_string();
        capabilities.shared = true;
        capabilities.permits = true;
        capabilities.expiry = Expiry::ProcessDeath;
        capabilities.drift = ClockDrift::NONE;
        capabilities.fencing = Fencing::Clocked;
        capabilities.fairness = Fairness::None;
        capabilities.waiter_notification = if cfg!(target_os = "linux") {
            WaiterNotification::Pushed
        } else {
            WaiterNotification::Polled(Duration::from_millis(50))
        };
        capabilities.loss_detection = LossDetection::Renewal;
        capabilities.restart = Restart::EndsHolders;
        capabilities.pipelined_release = true;
        capabilities.inspect = cfg!(target_os = "linux");
        capabilities.revoke = false;
        capabilities.records = Records::Durable;
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        let sent = request.now();
        let mut pending = PendingLock::new(Arc::clone(&self.dir), request.clone());
        let yielding = request.waiting().yields && pending.others_wait()?;
        if !yielding && let Some(locked) = pending.attempt()? {
            return self
                .grant(request, sent, locked)
                .await
                .map(Attempt::Granted);
        }
        let mut contention = Contention {
            retry_after: Some(self.dir.config.fallback_poll_interval),
            ..Contention::default()
        };
        if yielding {
            contention.retry_after = Some(YIELD_STEP);
        } else if request.waiting().keeps_waiting {
            pending.register()?;
            if let Some(locked) = pending.attempt()? {
                return self
                    .grant(request, sent, locked)
                    .await
                    .map(Attempt::Granted);
            }
            // The future completes only when the lock was free, and otherwise keeps its descriptor:
            // the close of one such waiter would notify the next, without end.
            contention.wake = Some(Box::pin(async move {
                loop {
                    pending.pause().await;
                    if request.is_cancelled() || !matches!(pending.attempt(), Ok(None)) {
                        return;
                    }
                }
            }));
        }
        Ok(Attempt::Contended(contention))
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let request = request.with_waiting(|waiting| waiting.keeps_waiting = true);
        let mut budget = RetryBudget::none();
        loop {
            match Arc::clone(&self).queue(request.clone()).await {
                Ok(lease) => return Ok(lease),
                Err(fault) => budget.spend(fault, &request)?,
            }
            tokio::select! {
                () = tokio::time::sleep(budget.pause()) => {}
                () = request.cancelled() => {}
            }
        }
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        admin::inspect(&self.dir, key)
            .map_err(|error| io_error("inspect", &self.path_of(key), error))
    }

    /// # Errors
    /// Always returns [`ErrorKind::Unsupported`]: only the kernel and the holder can end a file
    /// lock.
    async fn revoke(&self, holder: &HolderRef, _: Revocation) -> Result<RevokeOutcome> {
        Err(refused(
            ErrorKind::Unsupported,
            format!(
                "a file lock cannot be revoked; end its holder `{}`, and the kernel frees the lock at once",
                holder.label
            ),
        )
        .with_operation("revoke"))
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        record::read(&self.dir, &read).map_err(|error| error.with_operation("read_record"))
    }

    /// Succeeds if lock files can be created in the directory.
    async fn ping(&self) -> Result<Pong> {
        directory::check_writable(self.dir(), &self.dir.config)
            .map(|()| Pong::new())
            .map_err(|error| error.with_operation("ping"))
    }

    /// Does nothing, because other clients may share the backend.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
