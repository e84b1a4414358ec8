//! [`FileBackend`]: locks between the processes of one host.

use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use leasehold_core::{
    Capabilities, ClockDrift, ErrorKind, Expiry, Fairness, Fencing, HolderRef, Inspection, LockKey,
    LossDetection, Mode, Pong, Restart, Result, Revocation, RevokeOutcome, Timestamp,
    WaiterNotification,
    backend::{
        Attempt, Contention, Lease, LockBackend, Request, async_trait, support::RetryBudget,
    },
};

use super::{
    access,
    acquire::FileAcquisition,
    config::FileConfig,
    directory,
    error::{NAME, io_error, refused},
    inspect,
    lease::FileLease,
    locked_files::LockedFiles,
    name,
    shadow::Shadows,
    watch::{Subscription, Watcher},
};

/// How long a yielding request lets others go first.
const YIELD_RETRY: Duration = Duration::from_millis(50);
const YIELD_STEP: Duration = Duration::from_millis(5);

/// Locks between the processes of one host, through the kernel's file locks (`flock(2)`).
///
/// - An exclusive or shared lock on a key is that lock on the file [`path_of`](Self::path_of)
///   names, so programs that use `flock(1)` on it take part. Permits are files of their own.
/// - A holder that is killed frees its locks at once. There is no other expiry: a *stopped* process
///   holds on.
/// - Waiters are woken by inotify when a holder closes the file, and poll slowly behind it.
/// - No reader overtakes a waiting writer, in any process that uses this crate; a stopped waiter
///   keeps readers out.
/// - Every user who may write the directory can use its locks, whatever the umask of the user who
///   created the files. A lock file that can only be read is locked all the same. A lock file is
///   never written.
/// - Fencing tokens survive in a file beside the lock file, and never fall below the wall clock in
///   microseconds.
/// - On Linux, removing a lock file or its directory while the lock is held admits no second holder
///   among the processes of one user that use this crate and share `/dev/shm`. An older copy of a
///   directory that is put back while its locks are held is not noticed.
/// - Locks cannot be broken: only the kernel and the holder can end a file lock.
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
/// let Attempt::Granted(lease) = backend.clone().try_acquire(request.clone()).await? else { panic!("nobody holds it") };
/// assert!(matches!(backend.try_acquire(request).await?, Attempt::Contended(_)));
/// assert_eq!(lease.release().await?, Released::Freed);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FileBackend {
    dir: PathBuf,
    pub(super) config: FileConfig,
    pub(super) shadows: Shadows,
    watcher: Mutex<Option<Arc<Watcher>>>,
}

impl FileBackend {
    /// Uses this directory, and creates it if it is missing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is no directory, [`ErrorKind::Denied`] if it cannot be
    /// written or if others can change it ([`FileConfig::with_shared`]), [`ErrorKind::Unsupported`]
    /// if it is on a network file system.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(dir, FileConfig::new())
    }

    /// [`open`](Self::open) with options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(dir: impl AsRef<Path>, config: FileConfig) -> Result<Self> {
        let dir = directory::prepare(dir.as_ref(), &config)
            .map_err(|error| error.with_operation("open"))?;
        Ok(Self {
            dir,
            config,
            shadows: Shadows::of_this_user(),
            watcher: Mutex::default(),
        })
    }

    /// Returns the default directory: `/var/lib/leasehold` for root, and `.local/state/leasehold`
    /// in the home directory of every other user.
    ///
    /// It depends on the effective user alone. The home directory is the one in the user database;
    /// `HOME` and `XDG_STATE_HOME` are not read. So a cron job, a service and a shell of one user
    /// find the same locks. [`open`](Self::open) creates it, as any other directory, with mode
    /// 0700. A service that may not write it, as with `ProtectHome=` or `ProtectSystem=strict` of
    /// systemd, gets an error from `open`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the user has no home directory: name a directory.
    pub fn default_dir() -> Result<PathBuf> {
        directory::default_dir()
    }

    /// The directory, without symbolic links.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file whose lock is the lock on `key`, for `flock(1)` and other programs.
    ///
    /// Lower-case letters, digits, `_`, `-` and a `.` that is not first stand for themselves, every
    /// other byte is `%` and two hexadecimal digits, and `.lock` follows: `item/42` is
    /// `item%2f42.lock`. Longer names are cut into directories. The mapping never changes.
    #[must_use]
    pub fn path_of(&self, key: &LockKey) -> PathBuf {
        self.path(key, ".lock")
    }

    pub(super) fn path(&self, key: &LockKey, suffix: &str) -> PathBuf {
        name::path_of(&self.dir, key, suffix)
    }

    /// Returns the file that keeps the tokens of `key`.
    pub(super) fn token_path(&self, key: &LockKey) -> PathBuf {
        self.path(key, ".token")
    }

    /// Opens a file of ours, and makes the directories that are missing.
    pub(super) fn open_file(&self, path: &Path) -> Result<File> {
        match access::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                directory::prepare(&self.dir, &self.config)?;
                access::create_parents(path)
                    .map_err(|error| io_error("create", path.parent().unwrap_or(path), error))?;
                access::open(path).map_err(|error| io_error("open", path, error))
            }
            opened => opened.map_err(|error| io_error("open", path, error)),
        }
    }

    /// `None` where closes cannot be watched; the waiter then polls.
    pub(super) fn subscribe(&self, path: &Path) -> Option<Subscription> {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        let subscribed = match &*watcher {
            Some(watcher) => watcher.subscribe(&self.dir, path),
            None => Watcher::start()
                .and_then(|started| watcher.insert(Arc::new(started)).subscribe(&self.dir, path)),
        };
        subscribed
            .inspect_err(|error| tracing::debug!(%error, path = %path.display(), "cannot be watched; polling instead"))
            .ok()
    }

    async fn grant(
        &self,
        request: Request,
        sent: Timestamp,
        mut hold: LockedFiles,
    ) -> Result<Arc<dyn Lease>> {
        if self.config.sync && request.mode() == Mode::Exclusive {
            let path = self.token_path(request.key());
            let flushed = path.clone();
            let flush = move || {
                match access::open_existing(&flushed) {
                    // The directory was removed, and the next renewal finds out.
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
        if self.config.inherited_by_children {
            // Last: children keep what is dropped without a release.
            hold.let_inherit()
                .map_err(|error| io_error("pass on", &self.path_of(request.key()), error))?;
        }
        Ok(Arc::new(FileLease::new(request, sent, hold)))
    }

    /// Waits until granted or cancelled. Fails with the first fault.
    async fn queue(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let mut contender = FileAcquisition::new(Arc::clone(&self), request.clone());
        let begun = request.now();
        while request.yields_to_waiters()
            && request.now().since(begun) < YIELD_RETRY
            && contender.others_wait()?
        {
            tokio::select! {
                () = tokio::time::sleep(YIELD_STEP) => {}
                () = request.cancelled() => break,
            }
        }
        let mut settled = false;
        while !request.is_cancelled() {
            let sent = request.now();
            if let Some(hold) = contender.attempt()? {
                return self.grant(request, sent, hold).await;
            }
            request.set_contended();
            contender.settle_in()?;
            if std::mem::replace(&mut settled, true) {
                contender.pause().await;
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
        write!(f, "file:{}", self.dir.display())
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
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        let sent = request.now();
        let mut contender = FileAcquisition::new(Arc::clone(&self), request.clone());
        let yielding = request.yields_to_waiters() && contender.others_wait()?;
        if !yielding && let Some(hold) = contender.attempt()? {
            return self.grant(request, sent, hold).await.map(Attempt::Granted);
        }
        let mut contention = Contention {
            retry_after: Some(self.config.safety_poll),
            ..Contention::default()
        };
        if yielding {
            contention.retry_after = Some(YIELD_STEP);
        } else if request.is_waiting() {
            contender.settle_in()?;
            if let Some(hold) = contender.attempt()? {
                return self.grant(request, sent, hold).await.map(Attempt::Granted);
            }
            // It completes only when the lock was free, and else keeps its descriptor: the close of
            // one such waiter would wake the next, and so on for ever.
            contention.wake = Some(Box::pin(async move {
                loop {
                    contender.pause().await;
                    if request.is_cancelled() || !matches!(contender.attempt(), Ok(None)) {
                        return;
                    }
                }
            }));
        }
        Ok(Attempt::Contended(contention))
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let request = request.with_waiting(true);
        let mut trouble = RetryBudget::none();
        loop {
            match Arc::clone(&self).queue(request.clone()).await {
                Ok(lease) => return Ok(lease),
                Err(fault) => trouble.spend(fault, &request)?,
            }
            tokio::select! {
                () = tokio::time::sleep(trouble.pause()) => {}
                () = request.cancelled() => {}
            }
        }
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        inspect::inspect(self, key)
            .map_err(|error| io_error("find the holders of", &self.path_of(key), error))
    }

    /// # Errors
    /// Always [`ErrorKind::Unsupported`]: only the kernel and the holder can end a file lock.
    async fn revoke(&self, holder: &HolderRef, _: Revocation) -> Result<RevokeOutcome> {
        Err(refused(
            ErrorKind::Unsupported,
            format!(
                "only its holder can free a file lock; end `{}`, and the kernel frees it at once",
                holder.label
            ),
        )
        .with_operation("break"))
    }

    /// Answers if lock files can be created in the directory.
    async fn ping(&self) -> Result<Pong> {
        directory::check_writable(&self.dir, &self.config)
            .map(|()| Pong::new())
            .map_err(|error| error.with_operation("ping"))
    }

    /// There is nothing to close: other clients may share the backend.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
