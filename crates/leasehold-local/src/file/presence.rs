//! [`Presence`]: a holder stays visible when its file has been removed.
//!
//! A file lock belongs to an inode. If the directory is removed and made anew, the path leads to a new inode whose lock is
//! free, while the old holder goes on. So each holder also binds an abstract socket, which has no file, is named after
//! path and inode, and ends with the process; whoever finds a *new* file looks for holders of the same path on another inode.
//!
//! Abstract sockets are seen within one network namespace: containers that share a directory but not the network do
//! not see each other's. Outside of Linux there are none.

#[cfg(target_os = "linux")]
pub(super) use self::linux::{Presence, is_elsewhere};
#[cfg(not(target_os = "linux"))]
pub(super) use self::none::{Presence, is_elsewhere};

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        io,
        os::{
            fd::{AsFd, BorrowedFd},
            linux::net::SocketAddrExt,
            unix::net::{SocketAddr, UnixDatagram},
        },
        path::Path,
    };

    use leasehold_core::OwnerId;

    use super::super::identity::FileId;

    #[derive(Debug)]
    pub(in super::super) struct Presence(UnixDatagram);

    impl Presence {
        /// Shows that `path` is held on the inode `id`. Bind it *before* the last check that the path leads there.
        pub(in super::super) fn bind(path: &Path, id: FileId) -> io::Result<Self> {
            // The last part lets shared holders of one file bind side by side; 64 random bits, to stay below 108 bytes.
            let unique = OwnerId::random().as_u128() as u64;
            let name = format!("{}{}/{unique:016x}", prefix(path), inode(id));
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?).map(Self)
        }
    }

    impl AsFd for Presence {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    /// Whether somebody holds `path` on another inode than `id`.
    pub(in super::super) fn is_elsewhere(path: &Path, id: FileId) -> bool {
        let sockets = match std::fs::read("/proc/net/unix") {
            Ok(sockets) => sockets,
            Err(error) => {
                tracing::warn!(%error, "without /proc/net/unix a removed lock directory may admit a second holder");
                return false;
            }
        };
        let (prefix, here) = (prefix(path), format!("{}/", inode(id)));
        String::from_utf8_lossy(&sockets)
            .lines()
            .filter_map(|line| line.split_once('@').and_then(|(_, name)| name.strip_prefix(&prefix)))
            .any(|inode| !inode.starts_with(&here))
    }

    fn prefix(path: &Path) -> String {
        use std::os::unix::ffi::OsStrExt;
        // FNV-1a, because all versions of this crate must agree. A collision only makes one wait for nothing.
        let hash = path
            .as_os_str()
            .as_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        format!("leasehold/{hash:016x}/")
    }

    fn inode(id: FileId) -> String {
        format!("{:x}:{:x}", id.dev, id.ino)
    }
}

#[cfg(not(target_os = "linux"))]
mod none {
    use std::{io, path::Path};

    use super::super::identity::FileId;

    #[derive(Debug)]
    pub(in super::super) struct Presence;

    impl Presence {
        pub(in super::super) fn bind(_: &Path, _: FileId) -> io::Result<Self> {
            Ok(Self)
        }
    }

    pub(in super::super) fn is_elsewhere(_: &Path, _: FileId) -> bool {
        false
    }
}
