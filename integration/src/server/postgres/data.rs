//! The data folder of a new server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::programs::{command, give_to_owner, program, run};
use crate::{HarnessError, Result};

/// Options of `initdb`. WAL files have 1 MB, because the default of 16 MB makes up most of a copy.
const OPTIONS: [&str; 7] = [
    "--username=postgres",
    "--auth=trust",
    "--encoding=UTF8",
    "--locale=C",
    "--wal-segsize=1",
    "--no-sync",
    "--no-instructions",
];

/// Must change with [`OPTIONS`], so that no copy made with other options is used.
const EDITION: u32 = 1;

/// Creates a database cluster in `data`, which must not exist, as a copy of one that `initdb` made
/// once in the build folder. A copy takes 50 ms and `initdb` 500 ms.
pub(super) fn new_cluster(data: &Path) -> Result<()> {
    // Ownership is preserved if the user may, which is where it matters.
    run(Command::new("cp").arg("-a").arg(template()?).arg(data)).map(drop)
}

fn template() -> Result<PathBuf> {
    let version = run(Command::new(program("initdb")?).arg("--version"))?;
    // `initdb (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`
    let version = version.split_whitespace().nth(2).unwrap_or("unknown");
    let user = rustix::process::geteuid().as_raw();
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tmp"));
    let template = folder.join(format!("postgres-{version}-{EDITION}-{user}"));
    if template.is_dir() {
        return Ok(template);
    }
    let failed = |error| {
        HarnessError::caused_by(
            "cannot keep a new database cluster in the build's folder",
            error,
        )
    };
    // The server's user must be able to write there, and may have no access to the build folder.
    let made = tempfile::Builder::new()
        .prefix("leasehold-initdb-")
        .tempdir()
        .map_err(failed)?;
    give_to_owner(made.path())?;
    run(command("initdb", made.path())?
        .args(OPTIONS)
        .arg("-D")
        .arg("data"))?;
    fs::create_dir_all(&folder).map_err(failed)?;
    let beside = tempfile::Builder::new()
        .prefix("initdb-")
        .tempdir_in(&folder)
        .map_err(failed)?;
    let copied = beside.path().join("data");
    run(Command::new("cp")
        .arg("-a")
        .arg(made.path().join("data"))
        .arg(&copied))?;
    match fs::rename(&copied, &template) {
        // Another process was faster: a folder that is not empty is not replaced.
        Err(_) if template.is_dir() => Ok(template),
        renamed => renamed.map_err(failed).map(|()| template),
    }
}
