//! [`Sign`]: how a waiter shows itself to other processes.
//!
//! A waiter holds a shared lock on a file beside the lock (`.writers`, `.readers`, `.waiters`), which ends with the process.
//! Who wants to know whether anyone waits tries to lock that file alone, for an instant.

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
pub(super) struct Sign {
    _file: File,
}

impl Sign {
    /// `None` if others who look at the sign were always in the way: show it at the next occasion.
    pub(super) fn show(path: &Path) -> io::Result<Option<Self>> {
        let mut file = access::open(path)?;
        for _ in 0..TRIES {
            match file.try_lock_shared() {
                Ok(()) if FileId::at(path)? == Some(FileId::of(&file)?) => return Ok(Some(Self { _file: file })),
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
        /// Two who look at once would take each other for waiters; within a process they take turns.
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
