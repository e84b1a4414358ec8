//! [`Shadow`]: a second lock file, which survives the removal of the first.
//!
//! A file lock belongs to an inode. If a lock file or its directory is removed and created again,
//! the path leads to a new inode whose lock is free, while the old holder continues. So each holder
//! also locks a second file, the shadow, which is named after the path and is in
//! `/dev/shm/leasehold-<uid>`. The next process that locks the new inode finds the shadow locked.
//!
//! Only its user can write the directory of the shadows. No other user can lock a shadow, so no
//! other user can use one to refuse a lock. Shadows therefore protect among the processes of one
//! user that share `/dev/shm`. Where the directory cannot be used, locks are granted without a
//! shadow.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{access, directory, identity::FileId, keys, locked_file::LockedFile};

/// The number of attempts at a shadow that another process removes each time.
const REPLACEMENTS: usize = 32;

/// The directory of the shadows of one user. `None` on systems other than Linux, and if the
/// directory cannot be used.
#[derive(Debug)]
pub(super) struct Shadows(Option<PathBuf>);

/// A locked shadow, which is unlocked when it is dropped.
#[derive(Debug)]
pub(super) struct Shadow {
    /// `None` if the lock has no shadow.
    file: Option<LockedFile>,
    path: PathBuf,
    shared: bool,
}

impl Shadows {
    /// Returns the shadows of the effective user.
    pub(super) fn of_this_user() -> Self {
        #[cfg(target_os = "linux")]
        {
            let uid = rustix::process::geteuid().as_raw();
            Self::at(PathBuf::from(format!("/dev/shm/leasehold-{uid}")))
        }
        #[cfg(not(target_os = "linux"))]
        Self(None)
    }

    fn at(dir: PathBuf) -> Self {
        match prepare(&dir) {
            Ok(()) => Self(Some(dir)),
            Err(error) => {
                tracing::warn!(
                    dir = %dir.display(), %error,
                    "this directory cannot be used; a lock file that is removed while it is held may admit a second holder"
                );
                Self(None)
            }
        }
    }

    pub(super) fn path_of(&self, path: &Path) -> Option<PathBuf> {
        let dir = self.0.as_ref()?;
        Some(keys::path_of_bytes(
            dir,
            path.as_os_str().as_encoded_bytes(),
            "",
        ))
    }

    /// Locks the shadow of `path`, whose lock the caller holds. Returns `None` if another process
    /// holds `path` on an inode that was removed.
    ///
    /// # Errors
    /// Returns an error if this process has no descriptor left. After any other error the lock is
    /// granted without a shadow, because other users can cause such an error: a full `/dev/shm`
    /// must not refuse a lock.
    pub(super) fn lock(&self, path: &Path, shared: bool) -> io::Result<Option<Shadow>> {
        let none = Shadow {
            file: None,
            path: PathBuf::new(),
            shared,
        };
        let Some(shadow_path) = self.path_of(path) else {
            return Ok(Some(none));
        };
        for _ in 0..REPLACEMENTS {
            let file = match self.open(&shadow_path) {
                Ok(file) => file,
                Err(error) if is_out_of_descriptors(&error) => return Err(error),
                Err(error) => {
                    tracing::debug!(path = %shadow_path.display(), %error, "the lock has no shadow");
                    return Ok(Some(none));
                }
            };
            let file = match LockedFile::try_lock(file, shared) {
                Ok(Ok(file)) => file,
                Ok(Err(_refused)) => return Ok(None),
                Err(_) => return Ok(Some(none)),
            };
            // A holder removes its shadow before it unlocks it.
            if leads_to(&shadow_path, file.file()) {
                return Ok(Some(Shadow {
                    file: Some(file),
                    path: shadow_path,
                    shared,
                }));
            }
        }
        Ok(Some(none))
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        match access::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(dir) = &self.0 {
                    prepare(dir)?;
                }
                access::create_parents(path)?;
                access::open(path)
            }
            opened => opened,
        }
    }
}

impl Shadow {
    pub(super) fn let_inherit(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), LockedFile::let_inherit)
    }

    /// Unlocks the shadow, also for the child processes that inherited it.
    pub(super) fn unlock(mut self) {
        if let Some(file) = self.file.take() {
            self.remove(&file);
            drop(file.unlock());
        }
    }

    /// Removes the shadow that is still locked. A shared holder does not know whether it is the
    /// last one.
    fn remove(&self, file: &LockedFile) {
        if !self.shared && leads_to(&self.path, file.file()) {
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        if let Some(file) = self.file.as_ref().filter(|file| !file.is_inherited()) {
            self.remove(file);
        }
    }
}

/// Creates the directory if it is missing. Refuses a directory that other users can write, and a
/// symbolic link.
fn prepare(dir: &Path) -> io::Result<()> {
    directory::create_checked(dir, false).map_err(io::Error::other)?;
    if fs::symlink_metadata(dir)?.is_dir() {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::NotADirectory))
    }
}

fn leads_to(path: &Path, file: &File) -> bool {
    matches!((FileId::at(path), FileId::of(file)), (Ok(Some(at)), Ok(of)) if at == of)
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        [Errno::MFILE, Errno::NFILE]
            .iter()
            .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    }
    #[cfg(not(unix))]
    {
        let _ = error;
        false
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn entries(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn shadow_excludes_like_its_lock_and_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let shadows = Shadows::at(dir.path().join("shadows"));
        let path = Path::new("/locks/a.lock");
        for _ in 0..3 {
            let writer = shadows.lock(path, false).unwrap().expect("free");
            assert!(shadows.lock(path, true).unwrap().is_none());
            assert!(shadows.lock(path, false).unwrap().is_none());
            assert!(
                shadows
                    .lock(Path::new("/locks/b.lock"), false)
                    .unwrap()
                    .is_some()
            );
            drop(writer);
            assert_eq!(entries(&dir.path().join("shadows")), 0);
            let readers = [
                shadows.lock(path, true).unwrap(),
                shadows.lock(path, true).unwrap(),
            ];
            assert!(readers.iter().all(Option::is_some));
            assert!(shadows.lock(path, false).unwrap().is_none());
        }
        let long = PathBuf::from(format!("/{}", "x/".repeat(1_000)));
        let _long = shadows.lock(&long, false).unwrap().expect("free");
        assert!(shadows.lock(&long, false).unwrap().is_none());
    }

    #[test]
    fn shadows_that_others_can_write_are_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = Path::new("/locks/a.lock");
        let theirs = dir.path().join("theirs");
        let held = Shadows::at(theirs.clone()).lock(path, false).unwrap();
        assert!(
            Shadows::at(theirs.clone())
                .lock(path, false)
                .unwrap()
                .is_none()
        );
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            Shadows::at(theirs.clone())
                .lock(path, false)
                .unwrap()
                .is_some()
        );
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&theirs, &link).unwrap();
        assert!(Shadows::at(link).lock(path, false).unwrap().is_some());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(Shadows::at(file).lock(path, false).unwrap().is_some());
        drop(held);
    }

    #[test]
    fn removed_shadows_are_created_again() {
        let dir = tempfile::tempdir().unwrap();
        let shadows = Shadows::at(dir.path().join("shadows"));
        let path = Path::new("/locks/a.lock");
        let held = shadows.lock(path, false).unwrap();
        fs::remove_dir_all(dir.path().join("shadows")).unwrap();
        // The lock file alone protects the old holder. The next holder gets a new shadow.
        let next = shadows.lock(path, false).unwrap().expect("free");
        drop(held);
        assert!(shadows.lock(path, false).unwrap().is_none());
        drop(next);
    }
}
