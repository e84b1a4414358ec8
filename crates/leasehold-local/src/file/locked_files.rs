//! [`LockedFiles`]: the locked descriptors of one lease.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use leasehold_core::FencingToken;

use super::{access, identity::FileId, shadow::Shadow};

/// Locked files, which are unlocked when they are dropped.
///
/// Each file is unlocked before it is closed. A process that another thread has forked has the same
/// descriptors until it executes its program, and would keep a lock that is only closed.
#[derive(Debug)]
pub(super) struct LockedFiles {
    // Declared before the files: a process that gets a file finds its shadow unlocked.
    shadow: Shadow,
    pub(super) slot_shadow: Option<Shadow>,
    /// The lock file. For a permit, the file that stores the number of permits. `None` once it is
    /// unlocked and kept.
    file: Option<File>,
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    /// For a permit, the file of that permit.
    pub(super) slot: Option<File>,
    pub(super) token: Option<FencingToken>,
    /// Child processes have the descriptors. They keep the lock if it is dropped without a release.
    inherited: bool,
}

impl LockedFiles {
    pub(super) fn new(file: File, path: &Path, id: FileId, shadow: Shadow) -> Self {
        Self {
            shadow,
            slot_shadow: None,
            file: Some(file),
            path: path.to_path_buf(),
            id,
            slot: None,
            token: None,
            inherited: false,
        }
    }

    /// Returns whether the path still leads to the locked file.
    pub(super) fn is_in_place(&self) -> io::Result<bool> {
        Ok(FileId::at(&self.path)? == Some(self.id))
    }

    /// Lets child processes inherit the lock.
    pub(super) fn let_inherit(&mut self) -> io::Result<()> {
        self.inherited = true;
        #[cfg(unix)]
        {
            use rustix::io::{FdFlags, fcntl_setfd};
            for file in self.file.iter().chain(&self.slot) {
                fcntl_setfd(file, FdFlags::empty())?;
            }
            for shadow in self.slot_shadow.iter_mut().chain([&mut self.shadow]) {
                shadow.let_inherit()?;
            }
        }
        Ok(())
    }

    /// Unlocks the file and keeps it open.
    pub(super) fn unlock_and_keep(mut self) -> io::Result<File> {
        self.unlock_all()?;
        self.file
            .take()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Unlocks and closes the file of the permit, if there is one.
    pub(super) fn unlock_slot(&mut self) -> io::Result<()> {
        self.slot.take().map_or(Ok(()), |slot| slot.unlock())
    }

    /// Unlocks and closes all files.
    ///
    /// The unlock comes first. Otherwise child processes with the same descriptors would keep the
    /// lock, and a waiter that is notified of the close could find it held.
    pub(super) fn unlock(mut self) -> io::Result<()> {
        let unlocked = self.unlock_all();
        drop(self.file.take());
        if std::mem::take(&mut self.inherited) {
            // The descriptor of a child process stays open, so this close generates the event
            // instead.
            drop(access::open_readable(&self.path));
        }
        unlocked
    }

    /// Unlocks the shadows, also for the child processes that inherited them, and then the files.
    fn unlock_all(&mut self) -> io::Result<()> {
        self.slot_shadow
            .iter_mut()
            .chain([&mut self.shadow])
            .for_each(Shadow::unlock);
        let slot = self.slot.as_ref().map_or(Ok(()), File::unlock);
        let file = self.file.as_ref().map_or(Ok(()), File::unlock);
        slot.and(file)
    }
}

impl Drop for LockedFiles {
    fn drop(&mut self) {
        if !self.inherited {
            // An error leaves the lock to the close.
            drop(self.unlock_all());
        }
    }
}
