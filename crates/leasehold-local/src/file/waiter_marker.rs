//! [`WaiterMarker`]: a lock file that shows other processes that a waiter exists.
//!
//! A waiter holds a shared lock on a file beside the lock file: `KEY.writers`, `KEY.readers` or
//! `KEY.waiters`. The kernel removes that lock when the process ends. Another process finds out
//! whether a waiter exists by an attempt to lock the file exclusively, which it undoes at once.

use std::{
    io,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
};

use super::{access, identity::FileId, locked_file::LockedFile};

/// An attempt of another process lasts a few turns of the scheduler.
const TRIES: usize = 16;

/// A marker, which is removed when it is dropped.
#[derive(Debug)]
pub(super) struct WaiterMarker {
    _file: LockedFile,
}

impl WaiterMarker {
    /// Locks the marker file at `path`. Returns `None` if attempts of other processes were always
    /// in the way; the caller then tries again at its next attempt.
    pub(super) fn show(path: &Path) -> io::Result<Option<Self>> {
        let mut file = access::open(path)?;
        for _ in 0..TRIES {
            match LockedFile::try_lock(file, true)? {
                Ok(locked) if FileId::at(path)? == Some(FileId::of(locked.file())?) => {
                    return Ok(Some(Self { _file: locked }));
                }
                // The file was removed, so no process would find the marker.
                Ok(_removed) => file = access::open(path)?,
                Err(refused) => {
                    file = refused;
                    thread::yield_now();
                }
            }
        }
        Ok(None)
    }

    /// Returns whether any process has a marker at `path`.
    pub(super) fn is_present(path: &Path) -> io::Result<bool> {
        /// Two simultaneous attempts would find each other. This serializes the attempts of one
        /// process.
        static CHECKING: Mutex<()> = Mutex::new(());

        let mut file = match access::open_existing(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let _guard = CHECKING.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TRIES {
            match LockedFile::try_lock(file, false)? {
                Ok(locked) => return locked.unlock().map(|()| false),
                Err(refused) => file = refused,
            }
            thread::yield_now();
        }
        Ok(true)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{
        fs::File,
        sync::atomic::{AtomicBool, Ordering},
        thread::{scope, yield_now},
    };

    use super::*;

    /// A marker on a file that was removed would not be found.
    #[test]
    fn marker_is_on_the_file_that_others_check() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.writers");
        let ended = AtomicBool::new(false);
        scope(|scope| {
            scope.spawn(|| {
                // Acts as a clean-up script: it removes the file while no process has a marker.
                while !ended.load(Ordering::Relaxed) {
                    if let Ok(file) = File::open(&path)
                        && file.try_lock().is_ok()
                        && FileId::at(&path).unwrap() == Some(FileId::of(&file).unwrap())
                    {
                        std::fs::remove_file(&path).unwrap();
                    }
                    yield_now();
                }
            });
            let is_found = || match WaiterMarker::show(&path).unwrap() {
                Some(marker) => {
                    FileId::at(&path).unwrap() == Some(FileId::of(marker._file.file()).unwrap())
                }
                None => true,
            };
            let found = (0..20_000).filter(|_| is_found()).count();
            ended.store(true, Ordering::Relaxed);
            assert_eq!(found, 20_000);
        });
    }
}
