//! [`WaiterMarker`]: how a waiter shows itself to other processes.
//!
//! A waiter holds a shared lock on a file beside the lock (`.writers`, `.readers`, `.waiters`),
//! which ends with the process. Who wants to know whether anyone waits tries to lock that file
//! alone, for an instant.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
};

use super::{access, identity::FileId};

/// An instant of another's is over after a few turns of the scheduler.
const TRIES: usize = 16;

/// Shown until dropped.
#[derive(Debug)]
pub(super) struct WaiterMarker {
    _file: File,
}

impl WaiterMarker {
    /// `None` if others who look at the sign were always in the way: show it at the next occasion.
    pub(super) fn show(path: &Path) -> io::Result<Option<Self>> {
        let mut file = access::open(path)?;
        for _ in 0..TRIES {
            match file.try_lock_shared() {
                Ok(()) if FileId::at(path)? == Some(FileId::of(&file)?) => {
                    return Ok(Some(Self { _file: file }));
                }
                // It was removed, and nobody would see it.
                Ok(()) => file = access::open(path)?,
                Err(TryLockError::WouldBlock) => thread::yield_now(),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Whether anyone shows this sign.
    pub(super) fn is_shown(path: &Path) -> io::Result<bool> {
        /// Two who look at once would take each other for waiters; within a process they take
        /// turns.
        static LOOKING: Mutex<()> = Mutex::new(());

        let file = match access::open_existing(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let _turn = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TRIES {
            match file.try_lock() {
                Ok(()) => return file.unlock().map(|()| false),
                Err(TryLockError::WouldBlock) => thread::yield_now(),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(true)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread::{scope, yield_now},
    };

    use super::*;

    /// A file without a name would be seen by nobody.
    #[test]
    fn a_sign_is_shown_on_the_file_that_others_look_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.writers");
        let ended = AtomicBool::new(false);
        scope(|scope| {
            scope.spawn(|| {
                // As whoever cleans up: removes it while nobody shows the sign.
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
            let is_seen = || match WaiterMarker::show(&path).unwrap() {
                Some(sign) => FileId::at(&path).unwrap() == Some(FileId::of(&sign._file).unwrap()),
                None => true,
            };
            let seen = (0..20_000).filter(|_| is_seen()).count();
            ended.store(true, Ordering::Relaxed);
            assert_eq!(seen, 20_000);
        });
    }
}
