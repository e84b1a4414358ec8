//! Converts errors of the operating system into [`Error`]s that name the path and a remedy.

use std::{io, path::Path};

use leasehold_core::{Error, ErrorKind};

pub(super) const NAME: &str = "file";

/// Returns the error of an operation that failed on `path`. No lock is held then: a descriptor that
/// is not passed on is closed.
pub(super) fn io_error(operation: &str, path: &Path, source: io::Error) -> Error {
    use io::ErrorKind as Io;
    let (kind, remedy) = match source.kind() {
        Io::PermissionDenied => (
            ErrorKind::Denied,
            "give this user write access, or choose another directory",
        ),
        Io::ReadOnlyFilesystem => (
            ErrorKind::Denied,
            "choose a directory on a writable file system",
        ),
        Io::NotADirectory => (
            ErrorKind::InvalidInput,
            "a part of the path is not a directory; choose another directory",
        ),
        Io::InvalidInput => (
            ErrorKind::InvalidInput,
            "rename it, or choose another directory or name",
        ),
        Io::InvalidFilename => (
            ErrorKind::InvalidInput,
            "the path is too long; use a shorter name or directory",
        ),
        Io::StorageFull | Io::QuotaExceeded => {
            (ErrorKind::Unavailable, "make room on the file system")
        }
        Io::NotFound => (
            ErrorKind::Unavailable,
            "a part of the path is missing; create it, or choose another directory",
        ),
        _ if is_out_of_files(&source) => (
            ErrorKind::Unavailable,
            "too many files are open; raise `ulimit -n`",
        ),
        _ => (
            ErrorKind::Unavailable,
            "see the cause, or choose another directory",
        ),
    };
    refused(
        kind,
        format!("cannot {operation} {}: {source}; {remedy}", path.display()),
    )
    .with_source(source)
}

/// Returns whether a file or directory was removed while it was in use.
pub(super) fn has_vanished(error: &Error) -> bool {
    let source =
        std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::NotFound)
}

/// Returns whether the process or the host has reached its limit of open files.
fn is_out_of_files(source: &io::Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        [Errno::MFILE, Errno::NFILE]
            .iter()
            .any(|errno| source.raw_os_error() == Some(errno.raw_os_error()))
    }
    #[cfg(not(unix))]
    {
        let _ = source;
        false
    }
}

pub(super) fn refused(
    kind: ErrorKind,
    message: impl Into<std::borrow::Cow<'static, str>>,
) -> Error {
    Error::new(kind, message).with_backend(NAME)
}
