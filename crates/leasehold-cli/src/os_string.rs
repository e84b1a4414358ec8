//! Lock names and the operating system's strings.

use std::ffi::{OsStr, OsString};

use leasehold::{LockKey, Result};

/// The name as it stands, also where it is not UTF-8.
#[cfg(unix)]
pub(crate) fn key_of(name: &OsStr) -> Result<LockKey> {
    LockKey::new(std::os::unix::ffi::OsStrExt::as_bytes(name))
}

/// The name, which has to be Unicode.
#[cfg(not(unix))]
pub(crate) fn key_of(name: &OsStr) -> Result<LockKey> {
    match name.to_str() {
        Some(name) => LockKey::new(name),
        None => Err(leasehold::Error::new(
            leasehold::ErrorKind::InvalidInput,
            "the lock name is not Unicode",
        )),
    }
}

/// The program that the arguments name.
pub(crate) fn program_of(command: &[OsString]) -> (&OsStr, &[OsString]) {
    match command.split_first() {
        Some((program, arguments)) => (program, arguments),
        // The command line requires one.
        None => (OsStr::new(""), &[]),
    }
}
