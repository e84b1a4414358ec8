//! The command that starts the program.

use std::{
    ffi::{OsStr, OsString},
    fmt::Display,
    process::Command,
};

use leasehold::LeaseInfo;

use crate::{
    exit::{self, Failure},
    os_string::program_of,
};

/// The environment that a program is started with.
#[derive(Debug)]
pub(crate) struct Environment<'a> {
    /// The name of the lock.
    pub(crate) name: &'a OsStr,
    /// The URL for the program. It may contain a password.
    pub(crate) url: Option<&'a str>,
    /// Whether the kernel kills the program when this command dies. Linux only.
    pub(crate) dies_with_us: bool,
}

/// Returns the command that starts the program.
pub(super) fn command(
    line: &[OsString],
    lease: &LeaseInfo,
    environment: &Environment<'_>,
) -> Command {
    let mut command = if environment.dies_with_us {
        through_exec(line)
    } else {
        plain(line)
    };
    command.env("LEASEHOLD_KEY", environment.name);
    match environment.url {
        Some(url) => command.env("LEASEHOLD_URL", url),
        None => command.env_remove("LEASEHOLD_URL"),
    };
    match lease.fencing_token() {
        Some(token) => command.env("LEASEHOLD_TOKEN", token.to_string()),
        // A token from an outer `leasehold run` belongs to another lock.
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

/// Returns a command that starts this program, which then becomes the program and dies with us.
#[cfg(target_os = "linux")]
fn through_exec(line: &[OsString]) -> Command {
    use std::os::unix::process::CommandExt;

    // This works also after the file of this program was replaced.
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

/// Returns the failure to wait for the program.
pub(super) fn cannot_wait(error: &dyn Display) -> Failure {
    Failure::new(
        exit::SOFTWARE,
        format!("cannot wait for the program: {error}"),
    )
}
