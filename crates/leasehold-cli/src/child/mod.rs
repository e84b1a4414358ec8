//! [`Child`]: the program that runs under the lock, and what it started.

#[cfg(target_os = "linux")]
mod descendants;
#[cfg(not(unix))]
mod other;
#[cfg(unix)]
mod unix;

use std::{
    ffi::{OsStr, OsString},
    fmt::Display,
    io,
    process::{Command, ExitStatus},
};

use leasehold::LeaseInfo;

#[cfg(not(unix))]
pub(crate) use self::other::Child;
#[cfg(unix)]
pub(crate) use self::unix::Child;
use crate::{
    exit::{self, Failure},
    name::program_of,
};

/// What a program is started with.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// The name of the lock.
    pub(crate) name: &'a OsStr,
    /// Whether it sees where the lock lives, and the password.
    pub(crate) keep_url: bool,
    /// Whether the kernel kills it when this command dies, where it can.
    pub(crate) dies_with_us: bool,
}

/// Returns the command that starts the program.
fn command(line: &[OsString], lease: &LeaseInfo, surroundings: &Surroundings<'_>) -> Command {
    let mut command = if surroundings.dies_with_us {
        through_exec(line)
    } else {
        plain(line)
    };
    command.env("LEASEHOLD_KEY", surroundings.name);
    if !surroundings.keep_url {
        command.env_remove("LEASEHOLD_URL");
    }
    match lease.fencing_token() {
        Some(token) => command.env("LEASEHOLD_TOKEN", token.to_string()),
        // What an outer `leasehold run` left there is not this lock's.
        None => command.env_remove("LEASEHOLD_TOKEN"),
    };
    command
}

fn plain(line: &[OsString]) -> Command {
    let (program, arguments) = program_of(line);
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Through ourselves, which see to it that the program dies with us.
#[cfg(target_os = "linux")]
fn through_exec(line: &[OsString]) -> Command {
    use std::os::unix::process::CommandExt;

    // Also if the file of this program was replaced meanwhile.
    let mut through = Command::new("/proc/self/exe");
    through
        .arg0("leasehold")
        .arg("__exec")
        .arg(std::process::id().to_string())
        .arg("--")
        .args(line);
    through
}

#[cfg(not(target_os = "linux"))]
fn through_exec(line: &[OsString]) -> Command {
    plain(line)
}

/// The codes that shells use.
pub(crate) fn code_of_failed_start(program: &OsStr, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound {
        exit::NOT_FOUND
    } else {
        exit::NOT_EXECUTABLE
    };
    Failure::new(code, format!("cannot run `{}`: {error}", program.display()))
}

fn cannot_wait(error: &dyn Display) -> Failure {
    Failure::new(
        exit::SOFTWARE,
        format!("cannot wait for the program: {error}"),
    )
}

/// The code with which a program ended, as shells report it.
pub(crate) fn code_of(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return 128_u8.saturating_add(u8::try_from(signal).unwrap_or(u8::MAX));
    }
    // On unix it is a byte.
    status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}
