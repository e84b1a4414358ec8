//! The program that runs under the lock.

use std::{
    ffi::{OsStr, OsString},
    io,
    process::ExitStatus,
};

use leasehold::LeaseView;
use tokio::process::{Child as Process, Command};

use crate::{
    exit::{self, Failure},
    name::program_of,
    signals::{self, Signal},
};

/// A running program.
#[derive(Debug)]
pub(crate) struct Child {
    process: Process,
    leads_group: bool,
    /// The number of the group that it leads, also after it has ended.
    group: Option<u32>,
}

impl Child {
    /// Starts the program. `dies_with_us`: the kernel kills it when this command dies, where it can.
    pub(crate) fn start(
        command: &[OsString],
        name: &OsStr,
        lease: &LeaseView,
        dies_with_us: bool,
    ) -> Result<Self, Failure> {
        let (program, arguments) = program_of(command);
        let mut starting = if dies_with_us { through_exec(command) } else { plain(program, arguments) };
        starting.env("LEASEHOLD_KEY", name);
        match lease.fencing_token() {
            Some(token) => starting.env("LEASEHOLD_TOKEN", token.to_string()),
            // What an outer `leasehold run` left there is not this lock's.
            None => starting.env_remove("LEASEHOLD_TOKEN"),
        };
        let leads_group = signals::should_lead_group();
        #[cfg(unix)]
        if leads_group {
            starting.process_group(0);
        }
        let process = starting.spawn().map_err(|error| code_of_failed_start(program, &error))?;
        let group = process.id().filter(|_| leads_group);
        Ok(Self { process, leads_group, group })
    }

    /// Waits for its end. May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.process.wait().await
    }

    /// Passes a signal on to the program.
    pub(crate) fn pass_on(&self, signal: Signal) {
        // `id` is there until the end was seen, and until then nobody else has the number.
        if let Some(id) = self.process.id() {
            signals::send(id, signal, false);
        }
    }

    /// Sends a signal to the program and, where it leads a group, to what it started.
    pub(crate) fn end_all(&self, signal: Signal) {
        if let Some(id) = self.process.id() {
            signals::send(id, signal, self.leads_group);
        }
    }

    /// Kills what the program started and left behind, where it led a group.
    pub(crate) fn kill_rest(&self) {
        // As long as one of the group lives, no other process or group gets its number.
        if let Some(group) = self.group {
            signals::send(group, Signal::KILL, true);
        }
    }

    /// Kills it without regard.
    pub(crate) fn kill(&mut self) {
        #[cfg(unix)]
        self.end_all(Signal::KILL);
        #[cfg(not(unix))]
        drop(self.process.start_kill());
    }
}

fn plain(program: &OsStr, arguments: &[OsString]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Through ourselves, which see to it that the program dies with us.
#[cfg(target_os = "linux")]
fn through_exec(command: &[OsString]) -> Command {
    // Also if the file of this program was replaced meanwhile.
    let mut through = Command::new("/proc/self/exe");
    through.arg0("leasehold").arg("__exec").arg(std::process::id().to_string()).arg("--").args(command);
    through
}

#[cfg(not(target_os = "linux"))]
fn through_exec(command: &[OsString]) -> Command {
    let (program, arguments) = program_of(command);
    plain(program, arguments)
}

/// The codes that shells use.
pub(crate) fn code_of_failed_start(program: &OsStr, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { exit::NOT_FOUND } else { exit::NOT_EXECUTABLE };
    Failure::new(code, format!("cannot run `{}`: {error}", program.display()))
}

/// The code with which a program ended, as shells report it.
pub(crate) fn code_of(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return 128_u8.saturating_add(u8::try_from(signal).unwrap_or(u8::MAX));
    }
    // On unix it is a byte.
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
