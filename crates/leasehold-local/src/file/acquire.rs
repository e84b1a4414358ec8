//! [`FileAcquisition`]: one acquisition's attempts at a key, and its waiting between them.

use std::{
    fs::{File, TryLockError},
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use leasehold_core::{Error, ErrorKind, FencingToken, Mode, Result, backend::Request};

use super::{
    backend::FileBackend,
    error::{has_vanished, io_error, refused},
    identity::FileId,
    locked_files::LockedFiles,
    record::{Record, TokenFile},
    shadow::Shadow,
    waiter_marker::WaiterMarker,
    watch::Subscription,
};

/// The kernel reports the close of a dying process's descriptor a moment *before* it removes the
/// lock. After a wake-up we try again after 1, 2, 4 … 64 ms before we rely on the next one.
const BURST: u32 = 7;
/// When a removed file's holder is in the way, no close of the new file tells of its end.
const DISPLACED_POLL: Duration = Duration::from_millis(100);
/// Where there is no inotify, or no more of it.
const UNWATCHED_POLL: Duration = Duration::from_millis(50);
/// A file that is replaced under us each time is not worth more.
const REPLACEMENTS: usize = 32;

/// It keeps its descriptor open between attempts: each close would wake all other waiters, whose
/// closes would wake it.
#[derive(Debug)]
pub(super) struct FileAcquisition {
    pub(super) backend: Arc<FileBackend>,
    pub(super) request: Request,
    /// The lock file; for a permit, the file that keeps their number.
    path: PathBuf,
    // Declared before `file`, so that the close of the file, which wakes the readers, comes after
    // our sign is gone.
    sign: Option<WaiterMarker>,
    subscription: Option<Subscription>,
    file: Option<File>,
    /// Whether we have said that we wait.
    settled: bool,
    displaced: bool,
    pauses: u32,
}

/// The outcome of one attempt.
pub(super) enum Outcome {
    Held(Box<LockedFiles>),
    Refused,
    /// A holder whose file was removed is in the way.
    Displaced,
    /// The file was replaced, or has just been initialised: try again at once.
    Again,
}

impl FileAcquisition {
    pub(super) fn new(backend: Arc<FileBackend>, request: Request) -> Self {
        let suffix = if request.mode().is_permit() {
            ".permits"
        } else {
            ".lock"
        };
        let path = backend.path(request.key(), suffix);
        let (sign, subscription, file) = (None, None, None);
        Self {
            backend,
            request,
            path,
            sign,
            subscription,
            file,
            settled: false,
            displaced: false,
            pauses: 0,
        }
    }

    /// One attempt. `None` if it is held, or if it would overtake a waiting writer.
    pub(super) fn attempt(&mut self) -> Result<Option<LockedFiles>> {
        if self.request.mode() == Mode::Shared && self.is_shown(".writers")? {
            return Ok(None);
        }
        let mut vanished = None;
        for _ in 0..REPLACEMENTS {
            let outcome = match self.attempt_once() {
                Err(error) if has_vanished(&error) => {
                    (self.sign, self.subscription, self.file) = (None, None, None);
                    vanished = Some(error);
                    Outcome::Again
                }
                outcome => outcome?,
            };
            self.displaced = matches!(outcome, Outcome::Displaced);
            match outcome {
                Outcome::Held(hold) => {
                    (self.sign, self.subscription) = (None, None);
                    return Ok(Some(*hold));
                }
                Outcome::Again => {}
                Outcome::Refused | Outcome::Displaced => return Ok(None),
            }
        }
        Err(vanished.unwrap_or_else(|| {
            refused(
                ErrorKind::Unavailable,
                format!(
                    "{} is replaced again and again; find out who removes it",
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

    /// Whether others are known to wait for what we want.
    pub(super) fn others_wait(&self) -> Result<bool> {
        Ok(match self.request.mode() {
            Mode::Permit { .. } => self.is_shown(".waiters")?,
            Mode::Shared => self.is_shown(".writers")?,
            _ => self.is_shown(".writers")? || self.is_shown(".readers")?,
        })
    }

    /// From now on we are shown as a waiter, and told of closes. Attempt again after it: what was
    /// freed before is not told.
    pub(super) fn settle_in(&mut self) -> Result<()> {
        self.settled = true;
        if self.sign.is_none() {
            let suffix = match self.request.mode() {
                Mode::Permit { .. } => ".waiters",
                Mode::Shared => ".readers",
                _ => ".writers",
            };
            let path = self.backend.path(self.request.key(), suffix);
            self.sign = match WaiterMarker::show(&path) {
                // The directory was removed. The next attempt makes it anew.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                shown => shown.map_err(|error| io_error("lock", &path, error))?,
            };
        }
        if self.subscription.is_none() {
            self.subscription = self.backend.subscribe(&self.path);
        }
        Ok(())
    }

    /// Waits until another attempt makes sense, or the request is cancelled.
    pub(super) async fn pause(&mut self) {
        let longest = match &self.subscription {
            Some(_) if self.displaced => DISPLACED_POLL,
            Some(_) => self.backend.config.safety_poll,
            None => UNWATCHED_POLL,
        };
        let burst = (self.pauses < BURST).then(|| Duration::from_millis(1 << self.pauses));
        let called = async {
            match &self.subscription {
                Some(subscription) => subscription.called().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = called => self.pauses = 0,
            () = self.request.cancelled() => {}
            () = tokio::time::sleep(burst.map_or(longest, |burst| burst.min(longest))) => self.pauses += 1,
        }
    }

    fn is_shown(&self, suffix: &str) -> Result<bool> {
        let path = self.backend.path(self.request.key(), suffix);
        WaiterMarker::is_shown(&path).map_err(|error| io_error("lock", &path, error))
    }

    /// The open file, and only if the path still leads to it.
    fn file(&mut self) -> Result<File> {
        if let Some(file) = self.file.take() {
            if leads_to(&self.path, &file)? {
                return Ok(file);
            }
            // WaiterMarker and watch are of the old file.
            (self.sign, self.subscription) = (None, None);
        }
        let file = self.backend.open_file(&self.path)?;
        if self.settled {
            self.settle_in()?;
        }
        Ok(file)
    }

    fn attempt_lock(&mut self, file: File, mode: Mode) -> Result<Outcome> {
        let shared = mode == Mode::Shared;
        if !try_lock(&file, shared, &self.path)? {
            return self.keep_open(file, Outcome::Refused);
        }
        let mut hold = match self.confirm(file, shared)? {
            ControlFlow::Continue(hold) => hold,
            ControlFlow::Break(outcome) => return Ok(outcome),
        };
        let tokens = self.tokens()?;
        let last = tokens.record.as_ref().map(|record| record.last_token);
        if shared {
            // Readers cannot write: a counter that is missing is set by us alone, for an instant.
            return match last {
                Some(last) => {
                    hold.token = Some(FencingToken::new(above(last, 1)?));
                    Ok(Outcome::Held(Box::new(hold)))
                }
                None => self.set_counter(hold),
            };
        }
        // One number is left free for the readers in between.
        let token = above(last.unwrap_or(0), 2)?.max(micros_since_epoch());
        self.keep(&tokens, token)?;
        hold.token = Some(FencingToken::new(token));
        Ok(Outcome::Held(Box::new(hold)))
    }

    fn set_counter(&mut self, hold: LockedFiles) -> Result<Outcome> {
        let file = hold
            .let_go()
            .map_err(|error| io_error("unlock", &self.path, error))?;
        if !try_lock(&file, false, &self.path)? {
            return self.keep_open(file, Outcome::Refused);
        }
        // Somebody may have been quicker, between the two locks.
        let tokens = self.tokens()?;
        let last = tokens
            .record
            .as_ref()
            .map_or_else(micros_since_epoch, |record| record.last_token);
        self.keep(&tokens, last)?;
        file.unlock()
            .map_err(|error| io_error("unlock", &self.path, error))?;
        self.keep_open(file, Outcome::Again)
    }

    fn tokens(&self) -> Result<TokenFile> {
        let path = self.backend.token_path(self.request.key());
        TokenFile::open(&path).map_err(|error| io_error("use", &path, error))
    }

    fn keep(&self, tokens: &TokenFile, token: u64) -> Result<()> {
        let path = self.backend.token_path(self.request.key());
        tokens
            .keep(&Record::of(&self.request, token))
            .map_err(|error| io_error("write", &path, error))
    }

    /// The lock counts only if nobody holds it on a file that was removed, and if the path leads to
    /// the locked file *after* its shadow is ours: whoever replaces it later finds the shadow
    /// locked.
    pub(super) fn confirm(
        &mut self,
        file: File,
        shared: bool,
    ) -> Result<ControlFlow<Outcome, LockedFiles>> {
        let id = FileId::of(&file).map_err(|error| io_error("read", &self.path, error))?;
        let Some(shadow) = self.shadow(&self.path, shared)? else {
            file.unlock()
                .map_err(|error| io_error("unlock", &self.path, error))?;
            return self
                .keep_open(file, Outcome::Displaced)
                .map(ControlFlow::Break);
        };
        let hold = LockedFiles::new(file, &self.path, id, shadow);
        let in_place = hold
            .is_in_place()
            .map_err(|error| io_error("read", &self.path, error))?;
        Ok(if in_place {
            ControlFlow::Continue(hold)
        } else {
            ControlFlow::Break(Outcome::Again)
        })
    }

    /// `None` if another holds `path` on a file that was removed.
    pub(super) fn shadow(&self, path: &Path, shared: bool) -> Result<Option<Shadow>> {
        self.backend
            .shadows
            .lock(path, shared)
            .map_err(|error| io_error("lock the shadow of", path, error))
    }

    pub(super) fn let_go(&mut self, hold: LockedFiles, outcome: Outcome) -> Result<Outcome> {
        let file = hold
            .let_go()
            .map_err(|error| io_error("unlock", &self.path, error))?;
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

/// `false` if it is locked.
pub(super) fn try_lock(file: &File, shared: bool, path: &Path) -> Result<bool> {
    match if shared {
        file.try_lock_shared()
    } else {
        file.try_lock()
    } {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(io_error("lock", path, error)),
    }
}

/// For locks that others have only for an instant.
pub(super) fn try_lock_patiently(file: &File, shared: bool, path: &Path) -> Result<bool> {
    for _ in 0..16 {
        if try_lock(file, shared, path)? {
            return Ok(true);
        }
        thread::yield_now();
    }
    Ok(false)
}

pub(super) fn leads_to(path: &Path, file: &File) -> Result<bool> {
    let id = FileId::of(file).map_err(|error| io_error("read", path, error))?;
    Ok(FileId::at(path).map_err(|error| io_error("read", path, error))? == Some(id))
}

fn above(token: u64, by: u64) -> Result<u64> {
    let exhausted = || -> Error {
        refused(
            ErrorKind::InvalidInput,
            format!("no fencing token is left above {token}; the counter is wrong"),
        )
    };
    token.checked_add(by).ok_or_else(exhausted)
}

/// The floor of tokens: where the counter is lost, the clock goes on.
fn micros_since_epoch() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(0)
}
