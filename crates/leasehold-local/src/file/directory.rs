//! The default directory of lock files, and the checks of any directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use leasehold_core::{ErrorKind, Result};

use super::{
    access,
    config::FileConfig,
    error::{io_error, refused},
};

/// Returns one directory per user, independent of the environment: a service, a cron job and a
/// shell find the same locks. No program deletes old files from it, and no service has a private
/// copy of it.
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
        Ok(None) => {
            return Err(homeless(String::from(
                "the user database does not know this user",
            )));
        }
        Err(error) => {
            return Err(homeless(format!(
                "the user database cannot be read: {error}"
            )));
        }
    };
    if home.is_dir() {
        Ok(home.join(".local/state/leasehold"))
    } else {
        Err(homeless(format!(
            "its home {} is not a directory",
            home.display()
        )))
    }
}

/// Creates `dir` if it is missing, and checks that its locks can be trusted. Returns its canonical
/// path.
pub(super) fn prepare(dir: &Path, config: &FileConfig) -> Result<PathBuf> {
    create_checked(dir, config.shared)?;
    let canonical = fs::canonicalize(dir).map_err(|error| io_error("resolve", dir, error))?;
    if !fs::metadata(&canonical)
        .map_err(|error| io_error("read", &canonical, error))?
        .is_dir()
    {
        return Err(refused(
            ErrorKind::InvalidInput,
            format!(
                "{} is not a directory; choose another path for the lock files",
                dir.display()
            ),
        ));
    }
    check_file_system(&canonical, config)?;
    check_writable(&canonical, config)?;
    Ok(canonical)
}

/// Creates `dir` if it is missing, and applies [`check`] before and after it.
pub(super) fn create_checked(dir: &Path, shared: bool) -> Result<()> {
    check(dir, shared)?;
    create(dir, shared).map_err(|error| match error.kind() {
        // Missing directories are created, so here no directory can exist.
        io::ErrorKind::NotFound => refused(
            ErrorKind::InvalidInput,
            format!("no directory can be created at {}: {error}; choose another one", dir.display()),
        )
        .with_source(error),
        io::ErrorKind::AlreadyExists => refused(
            ErrorKind::InvalidInput,
            format!(
                "{} is not a directory, nor a symbolic link to one; remove it, or choose another directory",
                dir.display()
            ),
        )
        .with_source(error),
        _ => io_error("create the directory", dir, error),
    })?;
    check(dir, shared)
}

fn create(dir: &Path, shared: bool) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    if !shared {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    let _ = shared;
    builder.create(dir)
}

/// Checks that only this user and root can change what the path of `dir` leads to, and what is in
/// it. Other users could remove or hold its locks, or lead this process to other files.
///
/// - Each directory on the path belongs to this user or to root, and no other user may write it.
///   Above the last one, a directory that other users may write passes if it is sticky, as `/tmp`
///   is.
/// - A symbolic link on the path belongs to this user, to root, or to the owner of the directory
///   that it is in.
///
/// The first part does not apply if `shared` is set. A missing directory passes. In a user
/// namespace that does not know root, the owner of `/` stands for root.
#[cfg(unix)]
pub(super) fn check(dir: &Path, shared: bool) -> Result<()> {
    use std::{collections::VecDeque, ffi::OsString, os::unix::fs::MetadataExt, path::Component};

    /// The number of links that the kernel follows.
    const LINKS: usize = 40;

    let words = |path: &Path| -> Vec<Option<OsString>> {
        let words = path.components().filter_map(|part| match part {
            Component::Normal(word) => Some(Some(word.to_os_string())),
            Component::ParentDir => Some(None),
            _ => None,
        });
        words.collect()
    };
    let read = |path: &Path| fs::symlink_metadata(path);
    let absolute = std::path::absolute(dir).map_err(|error| io_error("resolve", dir, error))?;
    let mut at = PathBuf::from("/");
    let mut metadata = read(&at).map_err(|error| io_error("read", &at, error))?;
    let trusted = [rustix::process::geteuid().as_raw(), 0, metadata.uid()];
    let mut rest = VecDeque::from(words(&absolute));
    let mut links = 0;
    loop {
        if !shared
            && let Some(untrusted_reason) = untrusted_reason(&metadata, &trusted, rest.is_empty())
        {
            return Err(refused(
                ErrorKind::Denied,
                format!(
                    "{} {untrusted_reason}, so other users could change the locks in {}; choose another directory, or, if it is \
                     shared on purpose, use file:DIR?shared=true (`FileConfig::with_shared`)",
                    at.display(),
                    dir.display()
                ),
            ));
        }
        let Some(word) = rest.pop_front() else {
            return Ok(());
        };
        let Some(word) = word else {
            at.pop();
            metadata = read(&at).map_err(|error| io_error("read", &at, error))?;
            continue;
        };
        let path = at.join(word);
        let found = match read(&path) {
            // The directory is created later, or a later step reports that it cannot be reached.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(());
            }
            found => found.map_err(|error| io_error("read", &path, error))?,
        };
        if !found.is_symlink() {
            (at, metadata) = (path, found);
            continue;
        }
        if !trusted.contains(&found.uid()) && found.uid() != metadata.uid() {
            return Err(refused(
                ErrorKind::Denied,
                format!(
                    "{} is a symbolic link of user {}; choose another directory",
                    path.display(),
                    found.uid()
                ),
            ));
        }
        links += 1;
        if links > LINKS {
            return Err(refused(
                ErrorKind::InvalidInput,
                format!(
                    "{} leads through too many symbolic links; choose another directory",
                    dir.display()
                ),
            ));
        }
        let target = fs::read_link(&path).map_err(|error| io_error("read", &path, error))?;
        if target.is_absolute() {
            at = PathBuf::from("/");
            metadata = read(&at).map_err(|error| io_error("read", &at, error))?;
        }
        words(&target)
            .into_iter()
            .rev()
            .for_each(|word| rest.push_front(word));
    }
}

#[cfg(not(unix))]
pub(super) fn check(_: &Path, _: bool) -> Result<()> {
    Ok(())
}

/// Returns which other users can change the contents of a directory.
#[cfg(unix)]
fn untrusted_reason(directory: &fs::Metadata, trusted: &[u32], is_last: bool) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    if !trusted.contains(&directory.uid()) {
        return Some(format!("belongs to user {}", directory.uid()));
    }
    // In a sticky directory, only the owner of a file and the owner of the directory can remove or
    // rename the file.
    if !is_last && directory.mode() & 0o1000 != 0 {
        return None;
    }
    if directory.mode() & 0o002 != 0 {
        return Some(String::from("can be written by all users"));
    }
    (directory.mode() & 0o020 != 0 && !is_private_group(directory.gid(), directory.uid()))
        .then(|| format!("can be written by the group {}", directory.gid()))
}

/// Returns whether `user` is the only member of a group. Where every user has a group of the same
/// name, new directories may be writable for it (umask 002).
#[cfg(unix)]
fn is_private_group(group: u32, user: u32) -> bool {
    use nix::unistd::{Gid, Group, Uid, User};
    let (Ok(Some(group)), Ok(Some(user))) = (
        Group::from_gid(Gid::from_raw(group)),
        User::from_uid(Uid::from_raw(user)),
    ) else {
        return false;
    };
    group.gid == user.gid
        && group.name == user.name
        && group.mem.iter().all(|member| *member == user.name)
}

/// Checks that files can be created in `dir`, by an attempt: access lists and read-only mounts are
/// not in the mode bits.
///
/// In a shared directory, new files must get its group.
pub(super) fn check_writable(dir: &Path, config: &FileConfig) -> Result<()> {
    let probe = dir.join(format!(
        ".probe-{}",
        leasehold_core::AcquisitionId::random()
    ));
    let tried = fs::File::create_new(&probe).and_then(|file| {
        let is_for_all = access::is_for_all_writers(&file, dir);
        fs::remove_file(&probe)?;
        is_for_all
    });
    match tried.map_err(|error| io_error("write to the directory", dir, error))? {
        false if config.shared => Err(refused(
            ErrorKind::Denied,
            format!(
                "other users may write {}, but could not open the files that this user creates there, which do not get its \
                 group; set the set-group-ID bit (`chmod g+s`, as root), or let this user join the group",
                dir.display()
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(target_os = "linux")]
fn check_file_system(dir: &Path, config: &FileConfig) -> Result<()> {
    if config.network_fs_allowed {
        return Ok(());
    }
    let stat = rustix::fs::statfs(dir)
        .map_err(|error| io_error("read the file system of", dir, error.into()))?;
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

/// Returns the name of a network file system by the magic number of `statfs(2)`. FUSE is one of
/// them, because sshfs, s3fs and similar file systems cannot be distinguished.
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
    fn network_file_systems_are_detected_by_their_magic() {
        assert_eq!(network_fs(0x6969), Some("NFS"));
        assert_eq!(network_fs(0xff53_4d42), Some("SMB"));
        // Sign-extended, as a 32-bit field may be.
        assert_eq!(network_fs(0xffff_ffff_ff53_4d42), Some("SMB"));
        for local in [0xef53, 0x0102_1994, 0x5846_5342, 0x9123_683e, 0x794c_7630] {
            assert_eq!(network_fs(local), None);
        }
    }

    #[test]
    fn the_default_directory_is_in_the_home_of_the_user() {
        assert_eq!(default_dir_of(0).unwrap(), Path::new("/var/lib/leasehold"));
        // The database has no user of this number.
        let error = default_dir_of(4_294_000_000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("file:/"), "{error}");
        // For each user of the database: a directory in the home, or an error that names the home.
        let database = fs::read_to_string("/etc/passwd").unwrap();
        let mut seen = std::collections::HashSet::new();
        for user in database
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .filter(|user| user.len() == 7)
        {
            let (uid, home) = (user[2].parse().unwrap(), user[5]);
            if !seen.insert(uid) {
                continue;
            }
            match default_dir_of(uid) {
                Ok(dir) => {
                    assert!(
                        uid == 0 || dir == Path::new(home).join(".local/state/leasehold"),
                        "{user:?} {dir:?}"
                    );
                }
                Err(error) => assert!(error.to_string().contains(home), "{error}"),
            }
        }
    }

    #[test]
    fn a_directory_that_others_can_change_is_refused_unless_shared() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let base = tempfile::tempdir().unwrap();
        let make = |name: &str, mode: u32| {
            let dir = base.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
            dir
        };
        for (name, mode) in [("private", 0o700), ("readable", 0o755)] {
            let dir = make(name, mode);
            check(&dir, false).unwrap();
            check(&dir.join("missing/too"), false).unwrap();
            symlink(&dir, base.path().join(format!("to-{name}"))).unwrap();
            check(&base.path().join(format!("to-{name}")), false).unwrap();
            check(&base.path().join(format!("to-{name}/../{name}")), false).unwrap();
        }
        let open = make("open", 0o777);
        fs::create_dir(open.join("below")).unwrap();
        symlink(&open, base.path().join("to-open")).unwrap();
        let sticky = make("sticky", 0o1777);
        fs::create_dir(sticky.join("below")).unwrap();
        check(&sticky.join("below"), false).unwrap();
        for dir in [
            open.clone(),
            open.join("below"),
            base.path().join("to-open"),
            open.join("missing"),
            sticky,
        ] {
            let error = check(&dir, false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{}", dir.display());
            let text = error.to_string();
            assert!(
                text.contains(dir.to_str().unwrap()) && text.contains("shared=true"),
                "{text}"
            );
            check(&dir, true).unwrap();
        }
        symlink("loop", base.path().join("loop")).unwrap();
        assert_eq!(
            check(&base.path().join("loop"), false).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }

    /// Only root can create files of other users.
    #[test]
    fn a_directory_of_another_user_is_refused() {
        use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

        const STRANGER: u32 = 65_533;
        let base = tempfile::tempdir().unwrap();
        let theirs = base.path().join("theirs");
        fs::create_dir_all(theirs.join("below")).unwrap();
        if chown(&theirs, Some(STRANGER), None).is_err() {
            return;
        }
        for dir in [theirs.clone(), theirs.join("below"), theirs.join("missing")] {
            let error = check(&dir, false).unwrap_err();
            assert!(
                error.to_string().contains("belongs to user 65533"),
                "{error}"
            );
            check(&dir, true).unwrap();
        }
        let (ours, public) = (base.path().join("ours"), base.path().join("public"));
        fs::create_dir(&ours).unwrap();
        fs::create_dir(&public).unwrap();
        fs::set_permissions(&public, fs::Permissions::from_mode(0o1777)).unwrap();
        let link = public.join("link");
        symlink(&ours, &link).unwrap();
        check(&link, false).unwrap();
        lchown(&link, Some(STRANGER), None).unwrap();
        for shared in [false, true] {
            for dir in [link.clone(), link.join("below")] {
                let error = check(&dir, shared).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Denied);
                assert!(
                    error.to_string().contains("a symbolic link of user 65533"),
                    "{error}"
                );
            }
        }
        // The owner of a directory that is trusted may create links in it.
        let link = theirs.join("link");
        symlink(&ours, &link).unwrap();
        lchown(&link, Some(STRANGER), None).unwrap();
        check(&link, true).unwrap();
        check(&link, false).unwrap_err();
    }
}
