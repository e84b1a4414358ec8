//! Exit codes, and the failures that lead to them.

use std::{
    error::Error as StdError,
    ffi::OsStr,
    io,
    process::{ExitCode, ExitStatus},
};

use leasehold::{Error, ErrorKind};

use crate::stderr;

/// The lock is not held (`status`, `revoke`), nobody leads (`leader`), or no run is known (`runs`).
pub(crate) const NOT_HELD: u8 = 1;
/// `EX_USAGE`: a name, option, URL or duration is wrong, or the backend does not support it.
pub(crate) const USAGE: u8 = 64;
/// `EX_UNAVAILABLE`: the backend cannot be reached, or its reply is missing.
pub(crate) const UNAVAILABLE: u8 = 69;
/// `EX_SOFTWARE`: an internal error.
pub(crate) const SOFTWARE: u8 = 70;
/// The program of `once` took longer than `--at-most`; the code of `timeout(1)`.
pub(crate) const OVERTIME: u8 = 124;
/// `EX_TEMPFAIL`: another process holds the lock, or the occurrence may begin later.
pub(crate) const CONTENDED: u8 = 75;
/// The lock was lost or about to be lost, and the program was terminated.
pub(crate) const LOST: u8 = 76;
/// `EX_NOPERM`: the backend refused the user, the password or the access.
pub(crate) const DENIED: u8 = 77;
/// The program cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The program was not found.
const NOT_FOUND: u8 = 127;

/// The end of the command by a failure: a line for people and a code for programs.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Returns the failure to start `program`, with the code that shells use.
    pub(crate) fn of_start(program: &OsStr, error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::NotFound {
            NOT_FOUND
        } else {
            NOT_EXECUTABLE
        };
        Self::new(code, format!("cannot run `{}`: {error}", program.display()))
    }

    /// Returns the exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Returns the line for people.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Writes the failure to standard error as one line, and returns its exit code.
    pub(crate) fn report(&self) -> ExitCode {
        stderr::report(&self.message);
        stderr::flush();
        self.code.into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(code_of(error.kind()), with_causes(&error))
    }
}

/// Returns the message of `error` and of its causes. A cause that it contains is not repeated.
pub(crate) fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // The message of another backend stands without that backend and its operation.
        let message = match error.downcast_ref::<Error>() {
            Some(error) => String::from(error.message()),
            None => error.to_string(),
        };
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// Returns the code with which a program ended, as shells report it.
pub(crate) fn code_of_status(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return 128_u8.saturating_add(u8::try_from(signal).unwrap_or(u8::MAX));
    }
    // On Unix the code is a byte.
    status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

fn code_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::Conflict => USAGE,
        ErrorKind::Unavailable | ErrorKind::Indeterminate => UNAVAILABLE,
        ErrorKind::Denied => DENIED,
        ErrorKind::Lost | ErrorKind::Revoked => LOST,
        _ => SOFTWARE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cause_is_repeated() {
        let refused = || io::Error::other("connection refused");
        let node = Error::new(ErrorKind::Unavailable, "no server at 10.0.0.1")
            .with_backend("redis")
            .with_operation("ping")
            .with_source(refused());
        for (message, shown) in [
            (
                "1 of 1 unavailable",
                "redlock: 1 of 1 unavailable: no server at 10.0.0.1: connection refused",
            ),
            (
                "1 of 1: no server at 10.0.0.1",
                "redlock: 1 of 1: no server at 10.0.0.1: connection refused",
            ),
            (
                "no server at 10.0.0.1 (connection refused)",
                "redlock: no server at 10.0.0.1 (connection refused)",
            ),
        ] {
            let error = Error::new(ErrorKind::Unavailable, message)
                .with_backend("redlock")
                .with_source(node.clone());
            assert_eq!(with_causes(&error), shown);
        }
    }
}
