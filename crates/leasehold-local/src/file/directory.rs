//! Where lock files live: [`default_dir`], and the checks of any directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use leasehold_core::{ErrorKind, Result};

use super::{
    config::FileConfig,
    error::{io_error, refused},
};

/// Returns one place per user, whatever the environment says: a service, a cron job and a shell find the same
/// locks. Temporary files are not removed from it, and no service has a private copy of it.
pub(super) fn default_dir() -> Result<PathBuf> {
    #[cfg(unix)]
    {
        default_dir_of(rustix::process::geteuid().as_raw())
    }
    #[cfg(not(unix))]
    {
        Ok(std::env::temp_dir().join("leasehold"))
    }
}

#[cfg(unix)]
fn default_dir_of(uid: u32) -> Result<PathBuf> {
    if uid == 0 {
        return Ok(PathBuf::from("/var/lib/leasehold"));
    }
    let homeless = |why: String| {
        refused(
            ErrorKind::InvalidInput,
            format!(
                "there is no default directory for the lock files of user {uid}: {why}; name one, as in file:/var/lib/shop"
            ),
        )
    };
    let home = match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => user.dir,
        Ok(None) => return Err(homeless(String::from("the user database does not know this user"))),
        Err(error) => return Err(homeless(format!("the user database cannot be read: {error}"))),
    };
    if home.is_dir() {
        Ok(home.join(".local/state/leasehold"))
    } else {
        Err(homeless(format!("its home {} is no directory", home.display())))
    }
}

/// Creates `dir` if it is missing and checks that locks in it can be trusted. Its canonical path.
pub(super) fn prepare(dir: &Path, config: &FileConfig) -> Result<PathBuf> {
    let private = default_dir().is_ok_and(|default| dir == default);
    create(dir, private).map_err(|error| io_error("create the directory", dir, error))?;
    let metadata = fs::symlink_metadata(dir).map_err(|error| io_error("read", dir, error))?;
    if private {
        check_private(dir, &metadata)?;
    }
    let canonical = fs::canonicalize(dir).map_err(|error| io_error("resolve", dir, error))?;
    if !canonical.is_dir() {
        return Err(refused(
            ErrorKind::InvalidInput,
            format!("{} is not a directory; choose another path for the lock files", dir.display()),
        ));
    }
    check_file_system(&canonical, config)?;
    check_writable(&canonical)?;
    Ok(canonical)
}

pub(super) fn create(dir: &Path, private: bool) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    if private {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    let _ = private;
    builder.create(dir)
}

/// A directory that others can write would let them remove our locks.
#[cfg(unix)]
pub(super) fn check_private(dir: &Path, metadata: &fs::Metadata) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let trouble = if metadata.file_type().is_symlink() {
        "is a symbolic link"
    } else if metadata.uid() != rustix::process::geteuid().as_raw() {
        "belongs to another user"
    } else if metadata.mode() & 0o022 != 0 {
        "can be written by other users"
    } else {
        return Ok(());
    };
    Err(refused(
        ErrorKind::Denied,
        format!("{} {trouble}, so its locks cannot be trusted; remove it, or choose another directory", dir.display()),
    ))
}

#[cfg(not(unix))]
pub(super) fn check_private(_: &Path, _: &fs::Metadata) -> Result<()> {
    Ok(())
}

/// Tries it, because access lists and read-only mounts are not in the mode bits.
fn check_writable(dir: &Path) -> Result<()> {
    let probe = dir.join(format!(".probe-{}", leasehold_core::OwnerId::random()));
    fs::File::create_new(&probe)
        .and_then(|_| fs::remove_file(&probe))
        .map_err(|error| io_error("write to the directory", dir, error))
}

#[cfg(target_os = "linux")]
fn check_file_system(dir: &Path, config: &FileConfig) -> Result<()> {
    if config.network_fs_allowed {
        return Ok(());
    }
    let stat = rustix::fs::statfs(dir).map_err(|error| io_error("read the file system of", dir, error.into()))?;
    match network_fs(u64::try_from(stat.f_type).unwrap_or(0)) {
        None => Ok(()),
        Some(name) => Err(refused(
            ErrorKind::Unsupported,
            format!(
                "{} is on {name}, whose locks may not exclude other hosts; choose a local directory, \
                 or allow it with `FileConfig::with_network_fs_allowed` if you know that they do",
                dir.display()
            ),
        )),
    }
}

#[cfg(not(target_os = "linux"))]
fn check_file_system(_: &Path, _: &FileConfig) -> Result<()> {
    Ok(())
}

/// The magic numbers of `statfs(2)`; FUSE is on the list because sshfs, s3fs and their like cannot be told apart.
#[cfg(target_os = "linux")]
fn network_fs(magic: u64) -> Option<&'static str> {
    Some(match magic & 0xffff_ffff {
        0x6969 => "NFS",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB",
        0x6573_5546 => "FUSE",
        0x0102_1997 => "9P",
        0x00c3_6400 => "Ceph",
        0x0bd0_0bd0 => "Lustre",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x0116_1970 => "GFS2",
        0x7461_636f => "OCFS2",
        0x1983_0326 => "BeeGFS",
        0x4750_4653 => "GPFS",
        0x786f_4256 => "a VirtualBox share",
        _ => return None,
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_magic() {
        assert_eq!(network_fs(0x6969), Some("NFS"));
        assert_eq!(network_fs(0xff53_4d42), Some("SMB"));
        // Sign-extended, as a 32-bit field may come.
        assert_eq!(network_fs(0xffff_ffff_ff53_4d42), Some("SMB"));
        for local in [0xef53, 0x0102_1994, 0x5846_5342, 0x9123_683e, 0x794c_7630] {
            assert_eq!(network_fs(local), None);
        }
    }

    #[test]
    fn the_default_directory_is_no_temporary_one() {
        assert_eq!(default_dir_of(0).unwrap(), Path::new("/var/lib/leasehold"));
        // No user of this number is in the database.
        let error = default_dir_of(4_294_000_000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("file:/"), "{error}");
        // All whom the database knows: in the home, or an error that names it.
        let database = fs::read_to_string("/etc/passwd").unwrap();
        let mut seen = std::collections::HashSet::new();
        for user in database.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|user| user.len() == 7) {
            let (uid, home) = (user[2].parse().unwrap(), user[5]);
            if !seen.insert(uid) {
                continue;
            }
            match default_dir_of(uid) {
                Ok(dir) => {
                    assert!(uid == 0 || dir == Path::new(home).join(".local/state/leasehold"), "{user:?} {dir:?}");
                }
                Err(error) => assert!(error.to_string().contains(home), "{error}"),
            }
        }
    }

    #[test]
    fn a_private_directory_of_others_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        check_private(dir.path(), &fs::symlink_metadata(dir.path()).unwrap()).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = check_private(dir.path(), &fs::symlink_metadata(dir.path()).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        let error = check_private(&link, &fs::symlink_metadata(&link).unwrap()).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
    }
}
