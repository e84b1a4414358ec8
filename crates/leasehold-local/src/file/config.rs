//! [`FileConfig`]: options of the file backend.

use std::time::Duration;

/// Options of [`FileBackend`](super::FileBackend).
///
/// ```
/// use leasehold_local::{FileBackend, FileConfig};
///
/// # fn main() -> leasehold_local::Result<()> {
/// # let dir = tempfile::tempdir().expect("a temporary directory");
/// # let dir = dir.path();
/// let backend = FileBackend::open_with(dir, FileConfig::new().with_sync(true))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FileConfig {
    pub(super) shared: bool,
    pub(super) network_fs_allowed: bool,
    pub(super) fallback_poll_interval: Duration,
    pub(super) sync: bool,
    pub(super) inherited_by_children: bool,
}

impl FileConfig {
    /// Returns the default options.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: false,
            network_fs_allowed: false,
            fallback_poll_interval: Duration::from_secs(1),
            sync: false,
            inherited_by_children: false,
        }
    }

    /// Allows a directory that other users can change, so that they can use its locks too. Off by
    /// default.
    ///
    /// By default, [`FileBackend::open`](super::FileBackend::open) refuses a directory that belongs
    /// to another user than this one and root, or that others may write. It refuses likewise each
    /// directory above it, unless that directory is sticky, as `/tmp` is. A missing directory is
    /// created with mode 0700.
    ///
    /// With this option, the owner of the directory decides who may write it. Each such user can
    /// use its locks, can hold them forever and can remove them: share only with users whom you
    /// trust. Create the directory yourself with the access that you want, as in
    /// `install -d -m 2770 -g shop /var/lib/shop/locks`. A symbolic link on the path is still
    /// refused if it belongs to another user.
    #[must_use]
    pub fn with_shared(mut self, shared: bool) -> Self {
        self.shared = shared;
        self
    }

    /// Allows a directory on a network file system. Off by default.
    ///
    /// Its locks may not exclude processes on other hosts, may be lost when the server restarts,
    /// and do not notify waiters on other hosts. Know the file system before you allow it.
    #[must_use]
    pub fn with_network_fs_allowed(mut self, allowed: bool) -> Self {
        self.network_fs_allowed = allowed;
        self
    }

    /// Sets how often a waiter tries again without a notification. Defaults to 1 s.
    ///
    /// Only one case needs this: a program that unlocks without closing its descriptor
    /// (`flock -u`).
    #[must_use]
    pub fn with_fallback_poll_interval(mut self, interval: Duration) -> Self {
        self.fallback_poll_interval = interval;
        self
    }

    /// Flushes the token counter to disk (`fdatasync`) before an exclusive grant counts. Off by
    /// default.
    ///
    /// Without it, a power loss *together with* a wall clock that is set back may repeat tokens.
    #[must_use]
    pub fn with_sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// Lets every program that this process starts while it holds a lock inherit the lock. Off by
    /// default.
    ///
    /// If this process is killed, the lock stays held until the last such child process has ended.
    /// A release frees the lock at once. A [`Lease`](leasehold_core::backend::Lease) that is
    /// dropped without a release leaves the lock to the child processes.
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
