//! [`LockedFiles`]: the locked descriptors of one lease.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use leasehold_core::FencingToken;

use super::{access, identity::FileId, shadow::Shadow};

#[derive(Debug)]
pub(super) struct LockedFiles {
    // Declared before the files: a process that gets a file finds its shadow unlocked.
    pub(super) shadow: Shadow,
    pub(super) slot_shadow: Option<Shadow>,
    /// The lock file. For a permit, the file that stores the number of permits.
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    /// For a permit, the file of that permit.
    pub(super) slot: Option<File>,
    pub(super) token: Option<FencingToken>,
    inherited: bool,
}

impl LockedFiles {
    pub(super) fn new(file: File, path: &Path, id: FileId, shadow: Shadow) -> Self {
        Self {
            shadow,
            slot_shadow: None,
            file,
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
            fcntl_setfd(&self.file, FdFlags::empty())?;
            if let Some(slot) = &self.slot {
                fcntl_setfd(slot, FdFlags::empty())?;
            }
            for shadow in self.slot_shadow.iter_mut().chain([&mut self.shadow]) {
                shadow.let_inherit()?;
            }
        }
        Ok(())
    }

    /// Unlocks the file and keeps it open.
    pub(super) fn unlock_and_keep(self) -> io::Result<File> {
        drop((self.slot_shadow, self.shadow));
        self.file.unlock()?;
        Ok(self.file)
    }

    /// Unlocks and closes all files.
    ///
    /// The unlock comes first. Otherwise child processes with the same descriptors would keep the
    /// lock, and a waiter that is notified of the close could find it held.
    pub(super) fn unlock(self) -> io::Result<()> {
        self.slot_shadow
            .into_iter()
            .chain([self.shadow])
            .for_each(Shadow::unlock);
        let slot = self.slot.as_ref().map_or(Ok(()), File::unlock);
        let file = self.file.unlock();
        drop(self.file);
        if self.inherited {
            // The descriptor of a child process stays open, so this close generates the event
            // instead.
            drop(access::open_readable(&self.path));
        }
        slot.and(file)
    }
}
