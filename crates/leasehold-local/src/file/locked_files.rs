//! [`LockedFiles`]: the locked descriptors of one lease.

use std::{
    io,
    path::{Path, PathBuf},
};

use leasehold_core::FencingToken;

use super::{
    access, identity::FileId, locked_file::LockedFile, record::WrittenRecord, shadow::Shadow,
};

/// The locked files of one lease.
#[derive(Debug)]
pub(super) struct LockedFiles {
    // Declared first: a reader that finds the lock free finds that its writer does not hold it.
    record: Option<WrittenRecord>,
    // Declared before the files: a process that gets a file finds its shadow unlocked.
    shadow: Shadow,
    pub(super) slot_shadow: Option<Shadow>,
    /// For a permit, the file of that permit.
    pub(super) slot: Option<LockedFile>,
    /// The lock file. For a permit, the file that stores the number of permits.
    file: LockedFile,
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    pub(super) token: Option<FencingToken>,
}

impl LockedFiles {
    pub(super) fn new(file: LockedFile, path: &Path, id: FileId, shadow: Shadow) -> Self {
        Self {
            record: None,
            shadow,
            slot_shadow: None,
            slot: None,
            file,
            path: path.to_path_buf(),
            id,
            token: None,
        }
    }

    /// Returns whether the path still leads to the locked file.
    pub(super) fn is_in_place(&self) -> io::Result<bool> {
        Ok(FileId::at(&self.path)? == Some(self.id))
    }

    /// Lets child processes inherit the lock.
    pub(super) fn let_inherit(&mut self) -> io::Result<()> {
        for file in [&mut self.file].into_iter().chain(&mut self.slot) {
            file.let_inherit()?;
        }
        for shadow in [&mut self.shadow].into_iter().chain(&mut self.slot_shadow) {
            shadow.let_inherit()?;
        }
        Ok(())
    }

    /// Keeps the record that was written last locked, instead of the one before.
    pub(super) fn set_record(&mut self, mut record: WrittenRecord) -> io::Result<()> {
        if self.file.is_inherited() {
            record.let_inherit()?;
        }
        self.record = Some(record);
        Ok(())
    }

    /// Unlocks the record that was written, because its writer no longer holds the lock.
    pub(super) fn unlock_record(&mut self) {
        if let Some(record) = self.record.take() {
            record.unlock();
        }
    }

    /// Unlocks everything but the lock file, which it returns.
    pub(super) fn into_file(self) -> LockedFile {
        self.file
    }

    /// Unlocks and closes all files.
    pub(super) fn unlock(mut self) -> io::Result<()> {
        self.unlock_record();
        let Self {
            record: _,
            shadow,
            slot_shadow,
            slot,
            file,
            path,
            ..
        } = self;
        for shadow in slot_shadow.into_iter().chain([shadow]) {
            shadow.unlock();
        }
        let slot = slot.map_or(Ok(()), |slot| slot.unlock());
        let unlocked = file.unlock();
        let inherited = file.is_inherited();
        drop(file);
        if inherited {
            // The descriptor of a child process stays open, so this close generates the event
            // instead.
            drop(access::open_readable(&path));
        }
        slot.and(unlocked)
    }
}
