//! [`PendingLock`]: one acquisition, its attempts and its waiting.

use std::{
    fs::File,
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use leasehold_core::{Error, ErrorKind, FencingToken, Mode, Result, backend::Request};

use super::{
    error::{has_vanished, io_error, refused},
    identity::FileId,
    last_grant::{LastGrant, TokenFile},
    lock_dir::LockDir,
    locked_file::LockedFile,
    locked_files::LockedFiles,
    shadow::Shadow,
    waiter_marker::WaiterMarker,
    waiters::Registration,
};

/// After a notification, attempts follow after 1, 2, 4 … 64 ms. The kernel reports the close of a
/// dying process's descriptor a moment *before* it removes the lock, so the first attempt may fail.
const BURST: u32 = 7;
/// The interval of attempts while the holder of a removed file is in the way: the end of that
/// holder closes no file that is watched.
const DISPLACED_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The interval of attempts where inotify is missing, or has no watch left.
const UNWATCHED_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The number of attempts at a file that another process replaces each time.
const REPLACEMENTS: usize = 32;

/// An acquisition in progress.
///
/// It keeps its descriptor open between attempts. Each close would notify all other waiters, whose
/// closes would notify it.
#[derive(Debug)]
pub(super) struct PendingLock {
    pub(super) dir: Arc<LockDir>,
    pub(super) request: Request,
    /// The lock file. For a permit, the file that stores the number of permits.
    path: PathBuf,
    // Declared before `file`: the marker is removed before the close of the file notifies the
    // readers.
    marker: Option<WaiterMarker>,
    registration: Option<Registration>,
    file: Option<File>,
    /// Whether this acquisition is registered as a waiter.
    registered: bool,
    displaced: bool,
    pauses: u32,
}

/// The outcome of one attempt.
pub(super) enum Outcome {
    Held(Box<LockedFiles>),
    Refused,
    /// The holder of a file that was removed is in the way.
    Displaced,
    /// The file was replaced or just initialised: try again at once.
    Again,
}

impl PendingLock {
    pub(super) fn new(dir: Arc<LockDir>, request: Request) -> Self {
        let suffix = if request.mode().is_permit() {
            ".permits"
        } else {
            ".lock"
        };
        let path = dir.file(request.key(), suffix);
        let (marker, registration, file) = (None, None, None);
        Self {
            dir,
            request,
            path,
            marker,
            registration,
            file,
            registered: false,
            displaced: false,
            pauses: 0,
        }
    }

    /// Makes one attempt. Returns `None` if the lock is held, or if this attempt would overtake a
    /// waiting writer.
    pub(super) fn attempt(&mut self) -> Result<Option<LockedFiles>> {
        if self.request.mode() == Mode::Shared && self.is_present(".writers")? {
            return Ok(None);
        }
        let mut vanished = None;
        for _ in 0..REPLACEMENTS {
            let outcome = match self.attempt_once() {
                Err(error) if has_vanished(&error) => {
                    (self.marker, self.registration, self.file) = (None, None, None);
                    vanished = Some(error);
                    Outcome::Again
                }
                outcome => outcome?,
            };
            self.displaced = matches!(outcome, Outcome::Displaced);
            match outcome {
                Outcome::Held(locked) => {
                    (self.marker, self.registration) = (None, None);
                    return Ok(Some(*locked));
                }
                Outcome::Again => {}
                Outcome::Refused | Outcome::Displaced => return Ok(None),
            }
        }
        Err(vanished.unwrap_or_else(|| {
            refused(
                ErrorKind::Unavailable,
                format!(
                    "{} is replaced again and again; find out which program removes it",
                    self.path.display()
                ),
            )
        }))
    }

    fn attempt_once(&mut self) -> Result<Outcome> {
        let file = self.file()?;
        match self.request.mode() {
            Mode::Permit { of } => self.attempt_permit(file, of.get()),
            mode => self.attempt_lock(file, mode),
        }
    }

    /// Returns whether other processes wait for a lock that this acquisition would delay.
    pub(super) fn others_wait(&self) -> Result<bool> {
        Ok(match self.request.mode() {
            Mode::Permit { .. } => self.is_present(".waiters")?,
            Mode::Shared => self.is_present(".writers")?,
            _ => self.is_present(".writers")? || self.is_present(".readers")?,
        })
    }

    /// Registers this acquisition as a waiter: other processes find its marker, and it is notified
    /// of closes. Make an attempt after it, because an earlier close is not reported.
    pub(super) fn register(&mut self) -> Result<()> {
        self.registered = true;
        if self.marker.is_none() {
            let suffix = match self.request.mode() {
                Mode::Permit { .. } => ".waiters",
                Mode::Shared => ".readers",
                _ => ".writers",
            };
            let path = self.dir.file(self.request.key(), suffix);
            self.marker = match WaiterMarker::show(&path) {
                // The directory was removed. The next attempt creates it again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                shown => shown.map_err(|error| io_error("lock", &path, error))?,
            };
        }
        if self.registration.is_none() {
            self.registration = self.dir.register(&self.path);
        }
        Ok(())
    }

    /// Waits until another attempt may succeed, or until the request is cancelled.
    pub(super) async fn pause(&mut self) {
        let longest = match &self.registration {
            Some(_) if self.displaced => DISPLACED_POLL_INTERVAL,
            Some(_) => self.dir.config.fallback_poll_interval,
            None => UNWATCHED_POLL_INTERVAL,
        };
        let burst = (self.pauses < BURST).then(|| Duration::from_millis(1 << self.pauses));
        let notify = async {
            match &self.registration {
                Some(registration) => registration.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = notify => self.pauses = 0,
            () = self.request.cancelled() => {}
            () = tokio::time::sleep(burst.map_or(longest, |burst| burst.min(longest))) => self.pauses += 1,
        }
    }

    fn is_present(&self, suffix: &str) -> Result<bool> {
        let path = self.dir.file(self.request.key(), suffix);
        WaiterMarker::is_present(&path).map_err(|error| io_error("lock", &path, error))
    }

    /// Returns the open file if the path still leads to it, or else opens the file of the path.
    fn file(&mut self) -> Result<File> {
        if let Some(file) = self.file.take() {
            if leads_to(&self.path, &file)? {
                return Ok(file);
            }
            // The marker and the watch belong to the old file.
            (self.marker, self.registration) = (None, None);
        }
        let file = self.dir.open_file(&self.path)?;
        if self.registered {
            self.register()?;
        }
        Ok(file)
    }

    fn attempt_lock(&mut self, file: File, mode: Mode) -> Result<Outcome> {
        let shared = mode == Mode::Shared;
        let file = match try_lock(file, shared, &self.path)? {
            Ok(file) => file,
            Err(file) => return self.keep_open(file, Outcome::Refused),
        };
        let mut locked = match self.confirm(file, shared)? {
            ControlFlow::Continue(locked) => locked,
            ControlFlow::Break(outcome) => return Ok(outcome),
        };
        let tokens = self.tokens()?;
        let last = tokens.last.as_ref().map(|last| last.token);
        if shared {
            // Readers share the lock and cannot write. A missing counter is set under an exclusive
            // lock, which is held for an instant.
            return match last {
                Some(last) => {
                    locked.token = Some(FencingToken::new(above(last, 1)?));
                    Ok(Outcome::Held(Box::new(locked)))
                }
                None => self.set_counter(locked),
            };
        }
        // One number is left free for the readers between two exclusive holders.
        let token = above(last.unwrap_or(0), 2)?.max(micros_since_epoch());
        self.keep(&tokens, token)?;
        locked.token = Some(FencingToken::new(token));
        Ok(Outcome::Held(Box::new(locked)))
    }

    fn set_counter(&mut self, locked: LockedFiles) -> Result<Outcome> {
        let file = self.unlock(locked.into_file())?;
        let file = match try_lock(file, false, &self.path)? {
            Ok(file) => file,
            Err(file) => return self.keep_open(file, Outcome::Refused),
        };
        // Another process may have set the counter between the two locks.
        let tokens = self.tokens()?;
        let last = tokens
            .last
            .as_ref()
            .map_or_else(micros_since_epoch, |last| last.token);
        self.keep(&tokens, last)?;
        self.unlock_and_keep_open(file, Outcome::Again)
    }

    fn tokens(&self) -> Result<TokenFile> {
        let path = self.dir.token_file(self.request.key());
        TokenFile::open(&path).map_err(|error| io_error("use", &path, error))
    }

    fn keep(&self, tokens: &TokenFile, token: u64) -> Result<()> {
        let path = self.dir.token_file(self.request.key());
        tokens
            .keep(&LastGrant::of(&self.request, token))
            .map_err(|error| io_error("write", &path, error))
    }

    /// Confirms a lock on `file`.
    ///
    /// The lock counts only if no process holds it on a file that was removed, and if the path
    /// leads to the locked file *after* its shadow is locked: a process that replaces the file
    /// later finds the shadow locked.
    pub(super) fn confirm(
        &mut self,
        file: LockedFile,
        shared: bool,
    ) -> Result<ControlFlow<Outcome, LockedFiles>> {
        let id = FileId::of(file.file()).map_err(|error| io_error("read", &self.path, error))?;
        let Some(shadow) = self.shadow(&self.path, shared)? else {
            return self
                .unlock_and_keep_open(file, Outcome::Displaced)
                .map(ControlFlow::Break);
        };
        let locked = LockedFiles::new(file, &self.path, id, shadow);
        let in_place = locked
            .is_in_place()
            .map_err(|error| io_error("read", &self.path, error))?;
        Ok(if in_place {
            ControlFlow::Continue(locked)
        } else {
            ControlFlow::Break(Outcome::Again)
        })
    }

    /// Locks the shadow of `path`. Returns `None` if another process holds `path` on a file that
    /// was removed.
    pub(super) fn shadow(&self, path: &Path, shared: bool) -> Result<Option<Shadow>> {
        self.dir
            .shadows
            .lock(path, shared)
            .map_err(|error| io_error("lock the shadow of", path, error))
    }

    /// Unlocks the file and returns it open.
    pub(super) fn unlock(&self, file: LockedFile) -> Result<File> {
        file.unlock_and_keep()
            .map_err(|error| io_error("unlock", &self.path, error))
    }

    /// Unlocks the file and keeps it open for the next attempt.
    pub(super) fn unlock_and_keep_open(
        &mut self,
        file: LockedFile,
        outcome: Outcome,
    ) -> Result<Outcome> {
        let file = self.unlock(file)?;
        self.keep_open(file, outcome)
    }

    /// Keeps the file open for the next attempt.
    pub(super) fn keep_open(&mut self, file: File, outcome: Outcome) -> Result<Outcome> {
        self.file = Some(file);
        Ok(outcome)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Tries to lock `file`. Returns the file if another process holds the lock.
pub(super) fn try_lock(file: File, shared: bool, path: &Path) -> Result<Result<LockedFile, File>> {
    LockedFile::try_lock(file, shared).map_err(|error| io_error("lock", path, error))
}

/// Tries to lock `file` several times. Other processes hold such locks only for an instant.
pub(super) fn try_lock_patiently(
    mut file: File,
    shared: bool,
    path: &Path,
) -> Result<Result<LockedFile, File>> {
    for _ in 0..16 {
        match try_lock(file, shared, path)? {
            Ok(locked) => return Ok(Ok(locked)),
            Err(refused) => file = refused,
        }
        thread::yield_now();
    }
    Ok(Err(file))
}

pub(super) fn leads_to(path: &Path, file: &File) -> Result<bool> {
    let id = FileId::of(file).map_err(|error| io_error("read", path, error))?;
    Ok(FileId::at(path).map_err(|error| io_error("read", path, error))? == Some(id))
}

fn above(token: u64, by: u64) -> Result<u64> {
    let exhausted = || -> Error {
        refused(
            ErrorKind::InvalidInput,
            format!("no fencing token is left above {token}; the token file is corrupt"),
        )
    };
    token.checked_add(by).ok_or_else(exhausted)
}

/// Returns the floor of tokens. A counter that is lost continues from the clock.
fn micros_since_epoch() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(0)
}
