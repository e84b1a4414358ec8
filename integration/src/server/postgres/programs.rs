//! Where the programs are, and as whom they run.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::child::find_program;
use crate::{HarnessError, Result};

/// Debian keeps each major version's programs in a folder of its own, which is in nobody's `PATH`.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Debian's packages create it. PostgreSQL and PgBouncer refuse to run as root.
const USER: &str = "postgres";

/// A program of PostgreSQL: of the newest version of Debian's, or as found in `PATH`.
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

/// The user to run as: root may not.
pub(in crate::server) fn unprivileged() -> Option<&'static str> {
    rustix::process::geteuid().is_root().then_some(USER)
}

/// Gives `path` and all in it to whom the server runs as.
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

/// `program` as [`unprivileged`], in a folder that it may be in.
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

/// Runs it to its end. What it wrote.
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
