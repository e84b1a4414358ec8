//! [`LockedFiles`]: the descriptors that make a lock ours.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use leasehold_core::FencingToken;

use super::{access, identity::FileId, shadow::Shadow};

#[derive(Debug)]
pub(super) struct LockedFiles {
    // Declared before the files, so that whoever gets a file finds its shadow unlocked.
    pub(super) shadow: Shadow,
    pub(super) slot_shadow: Option<Shadow>,
    /// The lock file; for a permit, the file that keeps their number.
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    /// For a permit, the one that we have.
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

    /// Whether the path still leads to the file that we have locked.
    pub(super) fn is_in_place(&self) -> io::Result<bool> {
        Ok(FileId::at(&self.path)? == Some(self.id))
    }

    /// Lets children keep the lock.
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

    /// Unlocks the file, and keeps it open.
    pub(super) fn let_go(self) -> io::Result<File> {
        drop((self.slot_shadow, self.shadow));
        self.file.unlock()?;
        Ok(self.file)
    }

    /// Unlocks before it closes: children that have the descriptors too would otherwise keep the
    /// lock, and a waiter that is told of the close finds it free.
    pub(super) fn free(self) -> io::Result<()> {
        self.slot_shadow
            .into_iter()
            .chain([self.shadow])
            .for_each(Shadow::free);
        let slot = self.slot.as_ref().map_or(Ok(()), File::unlock);
        let file = self.file.unlock();
        drop(self.file);
        if self.inherited {
            // A descriptor that a child has is not closed by us closing ours; this close is seen
            // instead.
            drop(access::open_readable(&self.path));
        }
        slot.and(file)
    }
}
