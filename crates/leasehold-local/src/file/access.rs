//! Opening lock files so that every user who may write their directory can use them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    thread,
};

/// A file that another user creates can be opened by us an instant later.
const TRIES: usize = 32;

/// Opens a file to be locked, and creates it if it is missing. Every user who may write its directory can read
/// and write a file that was created here, whatever the umask. A file that we can only read is opened for that,
/// which is enough to lock it.
///
/// # Errors
/// A symbolic link is refused, and so is anything else that is not a regular file.
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

/// Opens a file that is there to be read and written, or else to be read.
///
/// `O_CREAT` is not set: Linux refuses it for another user's file in a directory such as `/tmp`
/// (`fs.protected_regular`).
pub(super) fn open_existing(path: &Path) -> io::Result<File> {
    open_writable(path).or_else(|error| match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::ExecutableFileBusy => {
            open_with(path, OpenOptions::new().read(true))
        }
        _ => Err(error),
    })
}

/// Opens a file that is there to be read and written.
pub(super) fn open_writable(path: &Path) -> io::Result<File> {
    open_with(path, OpenOptions::new().read(true).write(true))
}

/// Creates a file for all who may write its directory.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let file = open_with(path, OpenOptions::new().read(true).write(true).create_new(true))?;
    #[cfg(unix)]
    if let Some(dir) = path.parent() {
        share(&file, &fs::metadata(dir)?)?;
    }
    Ok(file)
}

/// Gives the group and others the access to the file that they have to the directory. It takes away nothing that
/// the umask or a default access list gave.
#[cfg(unix)]
fn share(file: &File, dir: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let (group_writes, others_write) = (dir.mode() & 0o020 != 0, dir.mode() & 0o002 != 0);
    if !group_writes && !others_write {
        return Ok(());
    }
    let ours = file.metadata()?;
    let mut mode = ours.mode() & 0o777;
    if others_write {
        mode |= 0o006;
    }
    if group_writes {
        // The owner of the directory need not be in its group.
        let group = rustix::fs::Gid::from_raw(dir.gid());
        if ours.gid() == dir.gid() || rustix::fs::fchown(file, None, Some(group)).is_ok() {
            mode |= 0o060;
        }
    }
    if mode == ours.mode() & 0o777 { Ok(()) } else { file.set_permissions(fs::Permissions::from_mode(mode)) }
}

fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;

        use rustix::fs::OFlags;
        // A pipe in its place must not block us.
        options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed());
    }
    let file = options.open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::from(io::ErrorKind::InvalidInput)) }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn files_are_as_open_as_their_directory() {
        let dir = tempfile::tempdir().unwrap();
        for (directory, at_least) in [(0o700, 0o600), (0o755, 0o600), (0o770, 0o660), (0o775, 0o660), (0o1777, 0o666)] {
            let dir = dir.path().join(format!("{directory:o}"));
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(directory)).unwrap();
            let file = open(&dir.join("k.lock")).unwrap().metadata().unwrap();
            assert_eq!(file.mode() & at_least, at_least, "{directory:o} {:o}", file.mode());
            assert_eq!(file.gid(), fs::metadata(&dir).unwrap().gid());
            // Where nobody else may write the directory, nobody else may write the file.
            if directory & 0o022 == 0 {
                assert_eq!(file.mode() & 0o022, 0, "{:o}", file.mode());
            }
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let link = dir.path().join("link");
        fs::write(dir.path().join("target"), "").unwrap();
        std::os::unix::fs::symlink("target", &link).unwrap();
        for path in [pipe, link, dir.path().to_path_buf()] {
            open(&path).unwrap_err();
        }
    }
}
