//! [`FileConfig`]: options of the file backend.

use std::time::Duration;

/// Options of [`FileBackend`](super::FileBackend).
#[derive(Clone, Debug)]
pub struct FileConfig {
    pub(super) shared: bool,
    pub(super) network_fs_allowed: bool,
    pub(super) safety_poll: Duration,
    pub(super) sync: bool,
    pub(super) inherited_by_children: bool,
}

impl FileConfig {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: false,
            network_fs_allowed: false,
            safety_poll: Duration::from_secs(1),
            sync: false,
            inherited_by_children: false,
        }
    }

    /// Allows a directory that other users can change, so that they can use its locks too. Off by
    /// default.
    ///
    /// Without it, [`FileBackend::open`](super::FileBackend::open) refuses a directory that belongs
    /// to another user than this one and root, or that others may write, and likewise each
    /// directory above it, unless that is sticky, as `/tmp` is. A new directory is created with
    /// mode 0700.
    ///
    /// With it, who may write the directory is up to its owner. Each such user can use its locks,
    /// and can remove and hold them for ever: share with users whom you trust. Create the directory
    /// yourself, with the access that you want, as in
    /// `install -d -m 2770 -g shop /var/lib/shop/locks`. A symbolic link on the path is refused all
    /// the same if it belongs to a stranger.
    #[must_use]
    pub fn with_shared(mut self, shared: bool) -> Self {
        self.shared = shared;
        self
    }

    /// Allows a directory on a network file system. Its locks may not exclude other hosts, may be
    /// lost when the server restarts, and no waiter is woken by another host: know yours before you
    /// allow it. Off by default.
    #[must_use]
    pub fn with_network_fs_allowed(mut self, allowed: bool) -> Self {
        self.network_fs_allowed = allowed;
        self
    }

    /// How often a waiter tries by itself, behind the wake-up. 1 s by default. Only one thing needs
    /// it: a foreign program that unlocks without closing its descriptor (`flock -u`).
    #[must_use]
    pub fn with_safety_poll(mut self, interval: Duration) -> Self {
        self.safety_poll = interval;
        self
    }

    /// Flushes the token counter to disk (`fdatasync`) before an exclusive grant counts. Off by
    /// default: without it, a power loss *together with* a wall clock that is set back may repeat
    /// tokens.
    #[must_use]
    pub fn with_sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// Lets every program that this process starts while it holds a lock inherit the lock: if this
    /// process is killed, the lock stays held until the last such child has ended. Off by default.
    /// A release frees it all the same; a [`Lease`](leasehold_core::backend::Lease) that is dropped
    /// without one leaves the lock to the children.
    #[must_use]
    pub fn with_inherited_by_children(mut self, inherited: bool) -> Self {
        self.inherited_by_children = inherited;
        self
    }
}

impl Default for FileConfig {
    fn default() -> Self {
        Self::new()
    }
}
