//! Opening, creating and replacing the files of locks, and their permissions.

use std::{fs::File, io, path::Path, thread};

/// The number of attempts. A file that another user is creating can be opened an instant later.
const TRIES: usize = 32;

/// Opens a file for locking, and creates it if it is missing.
///
/// Every user who may write its directory can read and write a file that is created here, whatever
/// the umask. No other user can read it, because a user who can read a file can lock it. A file
/// that can only be read is opened for reading, which is enough to lock it.
///
/// # Errors
/// Refuses a symbolic link, and anything else that is not a regular file.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut tries = 0;
    loop {
        let error = match open_existing(path) {
            Ok(file) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match create(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => error,
                created => return created,
            },
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => error,
            Err(error) => return Err(error),
        };
        tries += 1;
        if tries == TRIES {
            return Err(error);
        }
        thread::yield_now();
    }
}

/// Opens an existing file for reading and writing, or else for reading.
///
/// `O_CREAT` is not set: Linux refuses it for another user's file in a directory such as `/tmp`
/// (`fs.protected_regular`).
pub(super) fn open_existing(path: &Path) -> io::Result<File> {
    open_writable(path).or_else(|error| match error.kind() {
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::ExecutableFileBusy => open_readable(path),
        _ => Err(error),
    })
}

/// Returns an error if the file has a second name, under which another program may use it.
pub(super) fn check_one_name(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    if std::os::unix::fs::MetadataExt::nlink(&file.metadata()?) > 1 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the file has a second name (a hard link)",
        ));
    }
    let _ = file;
    Ok(())
}

pub(super) use platform::{
    ParentDir, create, create_parents, is_for_all_writers, open_readable, open_writable,
};

#[cfg(unix)]
mod platform {
    use std::{
        ffi::OsStr,
        fs::{File, Metadata, Permissions},
        io,
        os::{
            fd::{AsFd, BorrowedFd, OwnedFd},
            unix::fs::{MetadataExt, PermissionsExt},
        },
        path::Path,
    };

    use rustix::{
        fs::{
            AtFlags, CWD, Gid, Mode, OFlags, fchown, fsync, mkdirat, open, openat, renameat,
            statat, unlinkat,
        },
        io::{Errno, retry_on_intr},
    };

    use super::super::identity::FileId;

    /// Allows look-ups in a directory that this process may not list.
    #[cfg(target_os = "linux")]
    const SEARCH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
    #[cfg(not(target_os = "linux"))]
    const SEARCH: OFlags = OFlags::RDONLY
        .union(OFlags::DIRECTORY)
        .union(OFlags::CLOEXEC);

    pub(in super::super) fn open_writable(path: &Path) -> io::Result<File> {
        open_file(&Location::of(path, false)?, OFlags::RDWR)
    }

    pub(in super::super) fn open_readable(path: &Path) -> io::Result<File> {
        open_file(&Location::of(path, false)?, OFlags::RDONLY)
    }

    /// Creates a file that every user who may write its directory can open.
    pub(in super::super) fn create(path: &Path) -> io::Result<File> {
        let location = Location::of(path, false)?;
        let file = open_file(&location, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        share(&file, 0o6, &location.metadata()?)?;
        Ok(file)
    }

    /// Creates the directories of a long name.
    pub(in super::super) fn create_parents(path: &Path) -> io::Result<()> {
        Location::of(path, true).map(drop)
    }

    /// An open directory. Every step happens in this directory, even if its path leads to another
    /// one meanwhile.
    #[derive(Debug)]
    pub(in super::super) struct ParentDir(OwnedFd);

    impl ParentDir {
        /// Opens the directory of a file.
        pub(in super::super) fn of(path: &Path) -> io::Result<Self> {
            let location = Location::of(path, false)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = match &location.dir {
                Some(dir) => openat(dir, ".", flags, Mode::empty()),
                None => open(path.parent().unwrap_or(path), flags, Mode::empty()),
            };
            Ok(Self(opened?))
        }

        /// Returns the identity of a file, or `None` if there is no file.
        pub(in super::super) fn id_of(&self, name: &OsStr) -> io::Result<Option<FileId>> {
            match statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Ok(Some(FileId::from(&stat))),
                Err(Errno::NOENT) => Ok(None),
                Err(error) => Err(error.into()),
            }
        }

        /// Opens a file for reading.
        pub(in super::super) fn open_readable(&self, name: &OsStr) -> io::Result<File> {
            open_file(&self.location(name)?, OFlags::RDONLY)
        }

        /// Creates a file that every user who may write the directory can open.
        pub(in super::super) fn create(&self, name: &OsStr) -> io::Result<File> {
            let location = self.location(name)?;
            let file = open_file(&location, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
            share(&file, 0o6, &location.metadata()?)?;
            Ok(file)
        }

        /// Removes a file, if there is one.
        pub(in super::super) fn remove(&self, name: &OsStr) -> io::Result<()> {
            match unlinkat(&self.0, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }

        /// Replaces the file `to` by the file `from` in one step.
        pub(in super::super) fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
            Ok(renameat(&self.0, from, &self.0, to)?)
        }

        /// Writes the entries of the directory to disk.
        pub(in super::super) fn sync(&self) -> io::Result<()> {
            Ok(retry_on_intr(|| fsync(&self.0))?)
        }

        fn location<'a>(&self, name: &'a OsStr) -> io::Result<Location<'a>> {
            Ok(Location {
                dir: Some(self.0.try_clone()?),
                path: Path::new(name),
            })
        }
    }

    /// The location of a file. The directories of a long name, which end in `~`, are opened one by
    /// one, and none of them may be a symbolic link. The backend has resolved its own directory
    /// before.
    struct Location<'a> {
        dir: Option<OwnedFd>,
        path: &'a Path,
    }

    impl<'a> Location<'a> {
        fn of(path: &'a Path, create: bool) -> io::Result<Self> {
            let is_chunk = |dir: &&Path| {
                dir.file_name()
                    .is_some_and(|name| name.as_encoded_bytes().last() == Some(&b'~'))
            };
            let chunks: Vec<_> = path.ancestors().skip(1).take_while(is_chunk).collect();
            let (Some(base), Some(name)) =
                (path.ancestors().nth(chunks.len() + 1), path.file_name())
            else {
                return Ok(Self { dir: None, path });
            };
            if chunks.is_empty() {
                return Ok(Self { dir: None, path });
            }
            let mut dir = open(base, SEARCH, Mode::empty())?;
            for chunk in chunks.iter().rev().filter_map(|chunk| chunk.file_name()) {
                let flags = SEARCH | OFlags::NOFOLLOW;
                dir = match openat(&dir, chunk, flags, Mode::empty()) {
                    Err(Errno::NOENT) if create => {
                        match mkdirat(&dir, chunk, Mode::RWXU) {
                            Ok(()) => {
                                let listed = OFlags::RDONLY
                                    | OFlags::DIRECTORY
                                    | OFlags::NOFOLLOW
                                    | OFlags::CLOEXEC;
                                let made = File::from(openat(&dir, chunk, listed, Mode::empty())?);
                                share(&made, 0o7, &File::from(dir.try_clone()?).metadata()?)?;
                            }
                            Err(Errno::EXIST) => {}
                            Err(error) => return Err(error.into()),
                        }
                        openat(&dir, chunk, flags, Mode::empty())?
                    }
                    opened => opened?,
                };
            }
            Ok(Self {
                dir: Some(dir),
                path: Path::new(name),
            })
        }

        fn dir(&self) -> BorrowedFd<'_> {
            self.dir.as_ref().map_or(CWD, AsFd::as_fd)
        }

        /// Returns the metadata of the directory.
        fn metadata(&self) -> io::Result<Metadata> {
            match &self.dir {
                Some(dir) => File::from(dir.try_clone()?).metadata(),
                None => std::fs::metadata(self.path.parent().unwrap_or(self.path)),
            }
        }
    }

    fn open_file(location: &Location<'_>, flags: OFlags) -> io::Result<File> {
        let unusable = |what: &'static str| io::Error::new(io::ErrorKind::InvalidInput, what);
        // A pipe at this path must not block the process.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = retry_on_intr(|| {
            openat(
                location.dir(),
                location.path,
                flags,
                Mode::RUSR | Mode::WUSR,
            )
        });
        let file = File::from(opened.map_err(|errno| match errno {
            Errno::LOOP => unusable("the path is a symbolic link"),
            Errno::ISDIR | Errno::NXIO | Errno::NODEV => unusable("the path is not a regular file"),
            errno => errno.into(),
        })?);
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(unusable("the path is not a regular file"))
        }
    }

    /// Returns whether every user who may write `dir` can open a file that is created there, such
    /// as `created`.
    pub(in super::super) fn is_for_all_writers(created: &File, dir: &Path) -> io::Result<bool> {
        let dir = std::fs::metadata(dir)?;
        Ok(dir.mode() & 0o022 != 0o020 || takes_group_of(created, &dir)?)
    }

    /// Gives a file the group of its directory, and returns whether the file has that group. The
    /// owner of a directory need not be in its group.
    fn takes_group_of(created: &File, dir: &Metadata) -> io::Result<bool> {
        Ok(created.metadata()?.gid() == dir.gid()
            || fchown(created, None, Some(Gid::from_raw(dir.gid()))).is_ok())
    }

    /// Gives `access` to the group, and to others, if they may write the directory. Removes no
    /// access.
    fn share(created: &File, access: u32, dir: &Metadata) -> io::Result<()> {
        let (group_writes, others_write) = (dir.mode() & 0o020 != 0, dir.mode() & 0o002 != 0);
        if !group_writes && !others_write {
            return Ok(());
        }
        let metadata = created.metadata()?;
        let mut mode = metadata.mode() & 0o7777;
        if others_write {
            mode |= access;
        }
        if group_writes && takes_group_of(created, dir)? {
            mode |= access << 3;
        }
        if metadata.is_dir() {
            // The sticky bit prevents users from removing the files of others.
            mode |= dir.mode() & 0o1000;
        }
        if mode == metadata.mode() & 0o7777 {
            Ok(())
        } else {
            created.set_permissions(Permissions::from_mode(mode))
        }
    }
}

#[cfg(not(unix))]
mod platform {
    use std::{
        ffi::OsStr,
        fs::{self, File, OpenOptions, create_dir_all},
        io,
        path::{Path, PathBuf},
    };

    use super::super::identity::FileId;

    /// A directory.
    #[derive(Debug)]
    pub(in super::super) struct ParentDir(PathBuf);

    impl ParentDir {
        pub(in super::super) fn of(path: &Path) -> io::Result<Self> {
            let dir = path.parent().unwrap_or(path);
            fs::metadata(dir)?;
            Ok(Self(dir.to_path_buf()))
        }

        pub(in super::super) fn id_of(&self, name: &OsStr) -> io::Result<Option<FileId>> {
            FileId::at(&self.0.join(name))
        }

        pub(in super::super) fn open_readable(&self, name: &OsStr) -> io::Result<File> {
            open_readable(&self.0.join(name))
        }

        pub(in super::super) fn create(&self, name: &OsStr) -> io::Result<File> {
            create(&self.0.join(name))
        }

        pub(in super::super) fn remove(&self, name: &OsStr) -> io::Result<()> {
            match fs::remove_file(self.0.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            }
        }

        pub(in super::super) fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
            fs::rename(self.0.join(from), self.0.join(to))
        }

        pub(in super::super) fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(in super::super) fn open_writable(path: &Path) -> io::Result<File> {
        open_with(path, OpenOptions::new().read(true).write(true))
    }

    pub(in super::super) fn open_readable(path: &Path) -> io::Result<File> {
        open_with(path, OpenOptions::new().read(true))
    }

    pub(in super::super) fn create(path: &Path) -> io::Result<File> {
        open_with(
            path,
            OpenOptions::new().read(true).write(true).create_new(true),
        )
    }

    pub(in super::super) fn create_parents(path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), create_dir_all)
    }

    pub(in super::super) fn is_for_all_writers(_: &File, _: &Path) -> io::Result<bool> {
        Ok(true)
    }

    fn open_with(path: &Path, options: &OpenOptions) -> io::Result<File> {
        let file = options.open(path)?;
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::from(io::ErrorKind::InvalidInput))
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt},
    };

    use super::*;

    #[test]
    fn files_are_as_accessible_as_their_directory() {
        let dir = tempfile::tempdir().unwrap();
        for (directory, expected) in [
            (0o700, 0o600),
            (0o755, 0o600),
            (0o770, 0o660),
            (0o775, 0o660),
            (0o1777, 0o666),
            (0o777, 0o666),
        ] {
            let dir = dir.path().join(format!("{directory:o}"));
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(directory)).unwrap();
            let long = dir.join("a~/b~/k.lock");
            create_parents(&long).unwrap();
            for path in [dir.join("k.lock"), long] {
                let file = open(&path).unwrap().metadata().unwrap();
                assert_eq!(
                    file.mode() & 0o777,
                    expected,
                    "{} {:o}",
                    path.display(),
                    file.mode()
                );
                assert_eq!(file.gid(), fs::metadata(&dir).unwrap().gid());
            }
            // The same mode as the directory, without read access for users who may not write.
            let readers = if directory == 0o755 || directory == 0o775 {
                0o005
            } else {
                0
            };
            let group = if directory == 0o755 { 0o050 } else { 0 };
            for chunk in ["a~", "a~/b~"] {
                let mode = fs::metadata(dir.join(chunk)).unwrap().mode() & 0o7777;
                assert_eq!(mode, directory & !readers & !group, "{chunk} {mode:o}");
            }
        }
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = dir.path().join("link");
        fs::write(dir.path().join("target"), "").unwrap();
        std::os::unix::fs::symlink("target", &link).unwrap();
        let dangling = dir.path().join("dangling");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        for path in [pipe, socket, link, dangling, dir.path().to_path_buf()] {
            assert_eq!(
                open(&path).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{}",
                path.display()
            );
        }
        assert!(!dir.path().join("nowhere").exists());
    }

    #[test]
    fn no_link_is_followed_to_the_file_of_a_long_name() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let entries = || fs::read_dir(elsewhere.path()).unwrap().count();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("a~")).unwrap();
        fs::create_dir(dir.path().join("c~")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("c~/d~")).unwrap();
        for name in ["a~/k.lock", "a~/b~/k.lock", "c~/d~/k.lock"] {
            let path = dir.path().join(name);
            create_parents(&path).unwrap_err();
            open(&path).unwrap_err();
            create(&path).unwrap_err();
        }
        assert_eq!(entries(), 0);
    }
}
