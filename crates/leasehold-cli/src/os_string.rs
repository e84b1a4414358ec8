//! Lock names, values and programs as strings of the operating system.

use std::ffi::{OsStr, OsString};

use leasehold::{LockKey, Result};

/// Parses the name of a lock. On Unix a name is any bytes.
#[cfg(unix)]
pub(crate) fn key_of(name: &OsStr) -> Result<LockKey> {
    LockKey::new(std::os::unix::ffi::OsStrExt::as_bytes(name))
}

/// Parses the name of a lock, which must be Unicode.
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

/// Returns the bytes of the value of a leader. On Unix a value is any bytes.
#[cfg(unix)]
pub(crate) fn value_of(value: &OsStr) -> Result<&[u8]> {
    Ok(std::os::unix::ffi::OsStrExt::as_bytes(value))
}

/// Returns the bytes of the value of a leader, which must be Unicode.
#[cfg(not(unix))]
pub(crate) fn value_of(value: &OsStr) -> Result<&[u8]> {
    match value.to_str() {
        Some(value) => Ok(value.as_bytes()),
        None => Err(leasehold::Error::new(
            leasehold::ErrorKind::InvalidInput,
            "the value is not Unicode",
        )),
    }
}

/// Splits a command into the program and its arguments.
pub(crate) fn program_of(command: &[OsString]) -> (&OsStr, &[OsString]) {
    match command.split_first() {
        Some((program, arguments)) => (program, arguments),
        // The command line requires a program.
        None => (OsStr::new(""), &[]),
    }
}
