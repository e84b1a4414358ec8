//! The hidden `__exec`: becomes a program that the kernel kills when its parent dies.
//!
//! A parent-death signal must be set between fork and exec. Without unsafe code that needs another
//! program in between: this one.

use std::process::{Command, ExitCode};

use crate::{
    args::Exec,
    exit::{self, Failure},
    os_string::program_of,
};

#[cfg(target_os = "linux")]
pub(crate) fn exec(exec: &Exec) -> ExitCode {
    use std::os::unix::process::CommandExt;

    use rustix::process::{Signal, getppid, set_parent_process_death_signal};

    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return Failure::new(
            exit::SOFTWARE,
            format!("cannot bind the program to this command: {error}"),
        )
        .report();
    }
    // The parent may have died before the signal was set.
    if getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(exec.parent) {
        return exit::LOST.into();
    }
    let (program, arguments) = program_of(&exec.command);
    let error = Command::new(program).args(arguments).exec();
    Failure::of_start(program, &error).report()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn exec(exec: &Exec) -> ExitCode {
    let error = std::io::Error::from(std::io::ErrorKind::Unsupported);
    Failure::of_start(program_of(&exec.command).0, &error).report()
}
