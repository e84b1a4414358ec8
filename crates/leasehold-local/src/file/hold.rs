//! [`Hold`]: the descriptors that make a lock ours.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use leasehold_core::FencingToken;

use super::{identity::FileId, presence::Presence};

#[derive(Debug)]
pub(super) struct Hold {
    /// The lock file; for a permit, the file that keeps their number.
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    /// For a permit, the one that we have.
    pub(super) slot: Option<File>,
    pub(super) presences: Vec<Presence>,
    pub(super) token: Option<FencingToken>,
    inherited: bool,
}

impl Hold {
    pub(super) fn new(file: File, path: &Path, id: FileId, presence: Presence) -> Self {
        Self {
            file,
            path: path.to_path_buf(),
            id,
            slot: None,
            presences: vec![presence],
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
            use std::os::fd::AsFd;

            use rustix::io::{FdFlags, fcntl_setfd};
            fcntl_setfd(&self.file, FdFlags::empty())?;
            if let Some(slot) = &self.slot {
                fcntl_setfd(slot, FdFlags::empty())?;
            }
            #[cfg(target_os = "linux")]
            for presence in &self.presences {
                fcntl_setfd(presence.as_fd(), FdFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Unlocks before it closes: children that have the descriptors too would otherwise keep the lock, and a waiter that
    /// is told of the close finds it free.
    pub(super) fn free(self) -> io::Result<()> {
        let slot = self.slot.as_ref().map_or(Ok(()), File::unlock);
        drop(self.presences);
        let file = self.file.unlock();
        drop(self.file);
        if self.inherited {
            // A descriptor that a child has is not closed by us closing ours; this close is seen instead.
            drop(File::open(&self.path));
        }
        slot.and(file)
    }
}
