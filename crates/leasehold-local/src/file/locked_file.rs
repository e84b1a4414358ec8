//! [`LockedFile`]: a file with a lock, which is unlocked before it is closed.

use std::{
    fs::{File, TryLockError},
    io,
};

/// A locked file. Dropping this value unlocks the file before it closes it.
///
/// A process that another thread has forked has the same descriptors until it executes its program.
/// It would keep a lock that is only closed.
#[derive(Debug)]
pub(super) struct LockedFile {
    file: File,
    /// Child processes have the descriptor. They keep the lock if this value is dropped.
    inherited: bool,
}

impl LockedFile {
    /// Tries to lock a file. Returns the file if another process holds the lock.
    pub(super) fn try_lock(file: File, shared: bool) -> io::Result<Result<Self, File>> {
        match if shared {
            file.try_lock_shared()
        } else {
            file.try_lock()
        } {
            Ok(()) => Ok(Ok(Self {
                file,
                inherited: false,
            })),
            Err(TryLockError::WouldBlock) => Ok(Err(file)),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Returns the file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Lets child processes inherit the lock.
    pub(super) fn let_inherit(&mut self) -> io::Result<()> {
        self.inherited = true;
        #[cfg(unix)]
        rustix::io::fcntl_setfd(&self.file, rustix::io::FdFlags::empty())?;
        Ok(())
    }

    /// Returns whether child processes inherit the lock.
    pub(super) fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// Unlocks the file, also for the child processes that inherited the lock.
    pub(super) fn unlock(&self) -> io::Result<()> {
        self.file.unlock()
    }

    /// Unlocks the file and keeps it open.
    pub(super) fn unlock_and_keep(self) -> io::Result<File> {
        // A duplicate, because a value that unlocks when it is dropped cannot be taken apart.
        let file = self.file.try_clone()?;
        self.unlock()?;
        Ok(file)
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        if !self.inherited {
            // If this fails, the close unlocks it.
            drop(self.unlock());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_free(path: &std::path::Path) -> bool {
        let file = File::options().write(true).open(path).unwrap();
        LockedFile::try_lock(file, false).unwrap().is_ok()
    }

    /// A duplicate of the descriptor shares the lock, as that of a forked process does.
    #[test]
    fn dropped_lock_ends_although_a_forked_process_has_the_file() {
        for inherited in [false, true] {
            let named = tempfile::NamedTempFile::new().unwrap();
            let file = named.reopen().unwrap();
            let forked = file.try_clone().unwrap();
            let mut locked = LockedFile::try_lock(file, false).unwrap().unwrap();
            assert!(!is_free(named.path()));
            if inherited {
                locked.let_inherit().unwrap();
            }
            drop(locked);
            assert_eq!(is_free(named.path()), !inherited);
            drop(forked);
            assert!(is_free(named.path()));
        }
    }
}
