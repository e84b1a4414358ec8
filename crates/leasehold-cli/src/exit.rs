//! Exit codes, and failures on their way to them.

use std::{error::Error as StdError, io::Write, process::ExitCode};

use leasehold::{Error, ErrorKind};

use crate::stderr::{self, Stderr};

/// Nobody holds the lock (`who`, `break`).
pub(crate) const NOBODY: u8 = 1;
/// `EX_USAGE`: a name, option, URL or duration is wrong, or the backend cannot do it.
pub(crate) const USAGE: u8 = 64;
/// `EX_UNAVAILABLE`: the backend cannot be reached, or its answer is missing.
pub(crate) const UNAVAILABLE: u8 = 69;
/// `EX_SOFTWARE`: what should never happen.
pub(crate) const SOFTWARE: u8 = 70;
/// `EX_TEMPFAIL`: another holds the lock.
pub(crate) const CONTENDED: u8 = 75;
/// The lock was lost, or was about to be, and the program terminated.
pub(crate) const LOST: u8 = 76;
/// `EX_NOPERM`: the backend refused the user, the password or the access.
pub(crate) const DENIED: u8 = 77;
/// The program cannot be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The program is not there.
pub(crate) const NOT_FOUND: u8 = 127;

/// What ends the command: a line for people and a code for programs.
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

    /// Says it on one line of standard error.
    pub(crate) fn tell(&self) -> ExitCode {
        say(&self.message);
        stderr::flush();
        self.code.into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(code_of(error.kind()), with_causes(&error))
    }
}

/// One line of standard error; a program's own output is never mixed up with it. Does not wait
/// until it is written.
pub(crate) fn say(message: &str) {
    let line = format!("leasehold: {}\n", message.replace(['\n', '\r'], " "));
    drop(Stderr.write_all(line.as_bytes()));
}

/// The error and what caused it, without what is said twice.
pub(crate) fn with_causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

fn code_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::Mismatch => USAGE,
        ErrorKind::Unavailable | ErrorKind::Indeterminate => UNAVAILABLE,
        ErrorKind::Denied => DENIED,
        ErrorKind::Lost => LOST,
        _ => SOFTWARE,
    }
}
