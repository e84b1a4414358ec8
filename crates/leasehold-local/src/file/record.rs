//! The record beside a lock: a file `<key>.record`, which each write replaces.
//!
//! The writer keeps the file locked while it holds the lock. A reader therefore knows whether the
//! writer still holds, also in another PID namespace: the kernel unlocks the file of a process that
//! has died.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use leasehold_core::{
    Error, ErrorKind, FencingToken, LockKey, Record, Result,
    backend::{BoxFuture, RecordRead, RecordReading, RecordWrite, Request, support::StoredRecord},
};

use super::{
    access::{self, ParentDir},
    error::{NAME, io_error, refused},
    identity::FileId,
    lock_dir::LockDir,
    locked_file::LockedFile,
    waiters::Registration,
};

/// The suffix of the file.
const SUFFIX: &str = ".record";
/// The suffix of a file that becomes the record.
const NEW: &str = ".record.new";
/// A longer file is not a record: it has room for the longest value, label and header.
const MAX_LEN: u64 = Record::MAX_LEN as u64 + 1024;
/// The number of readings of a file that another process replaces each time.
const REPLACEMENTS: usize = 32;
/// How often the lock of a file is tried after a notification, after 1, 2, 4 … 64 ms. The kernel
/// reports the close of a dying process's descriptor a moment *before* it removes the lock.
const BURST: u32 = 7;

/// A record that was found.
struct Found {
    stored: StoredRecord,
    id: FileId,
    /// Whether its writer holds the lock. Unknown if it does not matter.
    held: Option<bool>,
}

/// Reads the record of a lock.
pub(super) fn read(dir: &LockDir, read: &RecordRead) -> Result<RecordReading> {
    if read.while_held && cfg!(not(unix)) {
        return Err(refused(
            ErrorKind::Unsupported,
            "whether the writer of a record still holds its lock is known on Unix only; read the record alone",
        ));
    }
    let path = dir.file(&read.key, SUFFIX);
    // Registered before the file is read, so that no write in between is missed.
    let registration = if read.watch {
        dir.register_record(&path, read.while_held)
    } else {
        None
    };
    let found = find(&path, &read.key, read.while_held)?;

    let held = found
        .as_ref()
        .filter(|found| found.held == Some(true))
        .map(|found| found.id);
    let mut reading = RecordReading::new(
        found
            .filter(|found| found.held != Some(false))
            .and_then(|found| found.stored.into_record()),
    );
    reading.now = read.clock.then(SystemTime::now);
    let poll = read.while_held.then_some(dir.config.fallback_poll_interval);
    reading.changed = registration.map(|registration| changed(registration, path, held, poll));
    Ok(reading)
}

/// Returns the notification of a change. `held` is the identity of the record if its writer held
/// the lock. `poll` is the longest wait for the end of a hold, which a program may end without a
/// notification.
fn changed(
    registration: Registration,
    path: PathBuf,
    held: Option<FileId>,
    poll: Option<Duration>,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        match poll {
            Some(poll) => drop(tokio::time::timeout(poll, registration.notified()).await),
            None => registration.notified().await,
        }
        let Some(id) = held else {
            return;
        };
        for pause in 0..BURST {
            let still_held = access::open_readable(&path)
                .and_then(|file| Ok(FileId::of(&file)? == id && is_locked(file)?));
            if !still_held.unwrap_or(false) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1 << pause)).await;
        }
    })
}

/// Finds the record at `path`. Returns `None` if there is no file.
fn find(path: &Path, key: &LockKey, while_held: bool) -> Result<Option<Found>> {
    let failed = |error| io_error("read", path, error);
    for _ in 0..REPLACEMENTS {
        let opened = existing(access::open_readable(path));
        let Some(file) = opened.map_err(|error| unreadable(error, path, key))? else {
            return Ok(None);
        };
        let stored = decode(&file, path, key)?;
        let id = FileId::of(&file).map_err(failed)?;
        let held = if while_held {
            let locked = is_locked(file).map_err(failed)?;
            // A writer unlocks its last record after the next one is in place.
            if !locked && FileId::at(path).map_err(failed)? != Some(id) {
                continue;
            }
            Some(locked)
        } else {
            None
        };
        return Ok(Some(Found { stored, id, held }));
    }
    Err(refused(
        ErrorKind::Unavailable,
        format!(
            "{} is replaced again and again; read it again when its lock is less busy",
            path.display()
        ),
    ))
}

/// Returns `None` if there is no file.
fn existing(opened: io::Result<File>) -> io::Result<Option<File>> {
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Returns the error of a file that cannot be opened. Only a regular file can be a record.
fn unreadable(error: io::Error, path: &Path, key: &LockKey) -> Error {
    if error.kind() == io::ErrorKind::InvalidInput {
        not_a_record(path, key)
    } else {
        io_error("open", path, error)
    }
}

/// Returns whether another process has locked the file exclusively. A shared lock, which is held
/// for an instant, refuses no other reader.
fn is_locked(file: File) -> io::Result<bool> {
    Ok(LockedFile::try_lock(file, true)?.is_err())
}

fn decode(file: &File, path: &Path, key: &LockKey) -> Result<StoredRecord> {
    let mut bytes = Vec::new();
    file.take(MAX_LEN)
        .read_to_end(&mut bytes)
        .map_err(|error| io_error("read", path, error))?;
    StoredRecord::decode(key, &bytes).map_err(|error| match error.kind() {
        ErrorKind::Conflict => not_a_record(path, key),
        _ => error.with_backend(NAME),
    })
}

fn not_a_record(path: &Path, key: &LockKey) -> Error {
    refused(
        ErrorKind::Conflict,
        format!(
            "{} is not a record of Leasehold, but in the place of that of `{key}`; remove it, or choose another name",
            path.display()
        ),
    )
}

/// The record that one lease has written last. The file is locked until this value is dropped.
#[derive(Debug)]
pub(super) struct WrittenRecord {
    file: LockedFile,
    path: PathBuf,
}

impl WrittenRecord {
    /// Lets child processes inherit the lock of the file.
    pub(super) fn let_inherit(&mut self) -> io::Result<()> {
        self.file.let_inherit()
    }

    /// Unlocks the file: its writer no longer holds.
    pub(super) fn unlock(&self) {
        if let Err(error) = self.file.unlock() {
            tracing::debug!(path = %self.path.display(), %error, "a record could not be unlocked");
        }
        if self.file.is_inherited() {
            // The descriptor of a child process stays open, so this close notifies the watchers.
            drop(access::open_writable(&self.path));
        }
    }
}

/// A write that took effect, now or before.
pub(super) struct Written {
    pub(super) version: u64,
    /// The new record. `None` if this write took effect before.
    pub(super) record: Option<WrittenRecord>,
    dir: ParentDir,
    lock_path: PathBuf,
}

impl Written {
    /// Writes the entry of the record to disk, and those of the directories of a long name.
    pub(super) fn sync(&self) -> Result<()> {
        let synced = self.dir.sync().and_then(|()| {
            let chunks = self.lock_path.ancestors().skip(1).take_while(|dir| {
                let name = dir.file_name().unwrap_or_default();
                name.as_encoded_bytes().ends_with(b"~")
            });
            chunks
                .filter_map(Path::parent)
                .try_for_each(|parent| File::open(parent)?.sync_all())
        });
        synced.map_err(|error| {
            let directory = self.lock_path.parent().unwrap_or(&self.lock_path);
            refused(
                ErrorKind::Indeterminate,
                format!(
                    "the record was written and may not survive a power failure: cannot flush {}: {error}; see the log of the \
                     kernel",
                    directory.display()
                ),
            )
            .with_source(error)
        })
    }
}

/// Replaces the record of a lock whose file `lock` this process has locked at `lock_path`. The
/// caller prevents the release of the lock meanwhile. Returns `None` if the path does not lead to
/// the locked file any more; nothing was written then.
///
/// The new file is complete and on disk before it replaces the old one in one step.
/// [`Written::sync`] then writes the replacement to disk.
pub(super) fn write(
    (lock_path, lock): (&Path, FileId),
    request: &Request,
    token: Option<FencingToken>,
    write: &RecordWrite,
) -> Result<Option<Written>> {
    let lock_name = lock_path.file_name().unwrap_or_default();
    let path = with_suffix(lock_path, SUFFIX);
    let name = path.file_name().unwrap_or_default();
    let new_path = with_suffix(lock_path, NEW);
    let new_name = new_path.file_name().unwrap_or_default();

    // All steps happen in one directory. If it was removed, they change nothing that is read.
    let dir = match ParentDir::of(lock_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| io_error("open the directory of", &path, error))?,
    };
    let is_in_place = || {
        let found = dir.id_of(lock_name);
        found
            .map(|found| found == Some(lock))
            .map_err(|error| io_error("read", lock_path, error))
    };
    if !is_in_place()? {
        return Ok(None);
    }
    let opened = existing(dir.open_readable(name))
        .map_err(|error| unreadable(error, &path, request.key()))?;
    let previous = opened
        .map(|file| decode(&file, &path, request.key()))
        .transpose()?;
    if let Some(previous) = &previous
        && previous.supersedes(request.owner(), write.sequence())
    {
        return Ok(Some(Written {
            version: previous.version,
            record: None,
            dir,
            lock_path: lock_path.to_path_buf(),
        }));
    }

    let stored = StoredRecord::after(previous.as_ref(), request, token, write, SystemTime::now());
    let new = create(&dir, new_name, &stored.encode())
        .map_err(|error| io_error("write", &new_path, error));
    let replaced = new.and_then(|file| {
        Ok(if is_in_place()? {
            dir.rename(new_name, name)
                .map_err(|error| io_error("replace", &path, error))?;
            Some(file)
        } else {
            None
        })
    });
    match replaced {
        Ok(Some(file)) => {
            let record = WrittenRecord { file, path };
            Ok(Some(Written {
                version: stored.version,
                record: Some(record),
                dir,
                lock_path: lock_path.to_path_buf(),
            }))
        }
        not_replaced => {
            drop(dir.remove(new_name));
            // A step also fails if the directory was removed.
            if not_replaced.is_ok() || !is_in_place()? {
                return Ok(None);
            }
            not_replaced.map(|_| None)
        }
    }
}

/// Creates a file with this content, locked and on disk. Replaces the file that a process has left
/// there which was killed meanwhile.
fn create(dir: &ParentDir, name: &OsStr, content: &[u8]) -> io::Result<LockedFile> {
    dir.remove(name)?;
    // No other process opens the file before it is in place.
    let file = LockedFile::try_lock(dir.create(name)?, false)?
        .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
    file.file().write_all(content)?;
    file.file().sync_data()?;
    Ok(file)
}

fn with_suffix(lock_path: &Path, suffix: &str) -> PathBuf {
    let mut name = lock_path.file_stem().unwrap_or_default().to_os_string();
    name.push(suffix);
    lock_path.with_file_name(name)
}
