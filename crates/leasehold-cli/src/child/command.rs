//! The command that starts the program.

use std::{ffi::OsString, fmt::Display, process::Command};

use leasehold::AllInfo;

use crate::{
    exit::{self, Failure},
    os_string::{key_of, program_of},
};

/// The environment that a program is started with.
#[derive(Debug)]
pub(crate) struct Environment<'a> {
    /// The names of the locks, in the order of the command line.
    pub(crate) names: &'a [OsString],
    /// The occurrence of a program that runs once, and the number of the attempt.
    pub(crate) run: Option<(String, u32)>,
    /// The URL for the program. It may contain a password.
    pub(crate) url: Option<&'a str>,
    /// Whether the kernel kills the program when this command dies. Linux only.
    pub(crate) dies_with_us: bool,
}

/// Returns whether a variable is one that this command sets for the locks.
fn is_of_locks(name: &str) -> bool {
    if name == "LEASEHOLD_OCCURRENCE" || name == "LEASEHOLD_ATTEMPT" {
        return true;
    }
    let rest = name
        .strip_prefix("LEASEHOLD_KEY")
        .or_else(|| name.strip_prefix("LEASEHOLD_TOKEN"));
    let is_number = |rest: &str| {
        rest.strip_prefix('_')
            .is_some_and(|number| number.parse::<u8>().is_ok())
    };
    rest.is_some_and(|rest| rest.is_empty() || rest == "S" || is_number(rest))
}

/// Returns the command that starts the program.
pub(super) fn command(
    line: &[OsString],
    leases: &AllInfo,
    environment: &Environment<'_>,
) -> Command {
    let mut command = if environment.dies_with_us {
        through_exec(line)
    } else {
        plain(line)
    };
    match environment.url {
        Some(url) => command.env("LEASEHOLD_URL", url),
        None => command.env_remove("LEASEHOLD_URL"),
    };
    // The variables of an outer `leasehold run` belong to other locks.
    for (inherited, _) in std::env::vars_os() {
        let name = inherited.to_string_lossy();
        if is_of_locks(&name) {
            command.env_remove(&inherited);
        }
    }
    if let Some((occurrence, attempt)) = &environment.run {
        command.env("LEASEHOLD_OCCURRENCE", occurrence);
        command.env("LEASEHOLD_ATTEMPT", attempt.to_string());
    }
    command.env("LEASEHOLD_KEYS", environment.names.len().to_string());
    for (name, number) in environment.names.iter().zip(1..) {
        let token = key_of(name).ok().and_then(|key| leases.fencing_token(key));
        let mut set = |suffix: &str| {
            command.env(format!("LEASEHOLD_KEY{suffix}"), name);
            if let Some(token) = token {
                command.env(format!("LEASEHOLD_TOKEN{suffix}"), token.to_string());
            }
        };
        set(&format!("_{number}"));
        if environment.names.len() == 1 {
            set("");
        }
    }
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
