//! The hidden `__exec`: becomes a program that the kernel kills when its parent dies.
//!
//! A parent-death signal must be set between fork and exec. Without unsafe code that takes a
//! program in between: this one.

use std::process::{Command, ExitCode};

use crate::{
    args::Exec,
    child::code_of_failed_start,
    exit::{self, Failure},
    name::program_of,
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
        .tell();
    }
    // The parent may have died before.
    if getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(exec.parent) {
        return exit::LOST.into();
    }
    let (program, arguments) = program_of(&exec.command);
    let error = Command::new(program).args(arguments).exec();
    code_of_failed_start(program, &error).tell()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn exec(exec: &Exec) -> ExitCode {
    let error = std::io::Error::from(std::io::ErrorKind::Unsupported);
    code_of_failed_start(program_of(&exec.command).0, &error).tell()
}
