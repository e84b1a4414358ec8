//! Paths of PostgreSQL's programs, and the user that runs them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::child::find_program;
use crate::{HarnessError, Result};

/// Debian installs each major version's programs in a folder that is not in `PATH`.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Created by Debian's packages. PostgreSQL and PgBouncer refuse to run as root.
const USER: &str = "postgres";

/// Returns the path of a PostgreSQL program: Debian's newest version, or as found in `PATH`.
pub(super) fn program(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let version = |path: &Path| {
        path.file_name()
            .and_then(OsStr::to_str)
            .and_then(|name| name.parse::<u32>().ok())
    };
    let newest = versions
        .map(|entry| entry.path())
        .filter(|folder| version(folder).is_some() && folder.join("bin").join(name).is_file())
        .max_by_key(|folder| version(folder));
    newest.map_or_else(
        || find_program(name),
        |folder| Ok(folder.join("bin").join(name)),
    )
}

/// Returns the user that runs the server, or `None` for the current one if it is not root.
pub(in crate::server) fn unprivileged() -> Option<&'static str> {
    rustix::process::geteuid().is_root().then_some(USER)
}

/// Gives `path` and its content to the user that runs the server.
pub(in crate::server) fn give_to_owner(path: &Path) -> Result<()> {
    match unprivileged() {
        Some(user) => run(Command::new("chown")
            .arg("-R")
            .arg(format!("{user}:"))
            .arg(path))
        .map(drop),
        None => Ok(()),
    }
}

/// Returns a command for `program` as [`unprivileged`], in a folder that this user can access.
pub(super) fn command(name: &str, folder: &Path) -> Result<Command> {
    let program = program(name)?;
    let mut command = match unprivileged() {
        Some(user) => {
            let mut command = Command::new(find_program("setpriv")?);
            command
                .args(["--reuid", user, "--regid", user, "--init-groups", "--"])
                .arg(program);
            command
        }
        None => Command::new(program),
    };
    command.current_dir(folder);
    Ok(command)
}

/// Runs a command to its end and returns its output.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let named = |what: &str| format!("{} {what}", Path::new(&program).display());
    let output = command
        .output()
        .map_err(|error| HarnessError::caused_by(named("cannot be run"), error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(HarnessError::new(named(&format!(
        "failed ({}): {}",
        output.status,
        said.trim_end()
    ))))
}
