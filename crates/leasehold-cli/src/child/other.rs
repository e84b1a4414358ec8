//! [`Child`] on systems without signals.

use std::{ffi::OsString, process::ExitStatus};

use leasehold::AllInfo;
use tokio::process::Command;

use super::command::{Environment, cannot_wait, command};
use crate::{exit::Failure, os_string::program_of, signals::Signal};

/// A running program.
#[derive(Debug)]
pub(crate) struct Child(tokio::process::Child);

impl Child {
    /// Starts the program.
    pub(crate) fn start(
        line: &[OsString],
        leases: &AllInfo,
        environment: &Environment<'_>,
    ) -> Result<Self, Failure> {
        let started = Command::from(command(line, leases, environment)).spawn();
        started
            .map(Self)
            .map_err(|error| Failure::of_start(program_of(line).0, &error))
    }

    /// Waits until the program has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus, Failure> {
        self.0.wait().await.map_err(|error| cannot_wait(&error))
    }

    /// Does nothing: the program receives the same Ctrl-C.
    pub(crate) fn pass_on(&mut self, _: Signal) {}

    /// Does nothing: this platform has no such request.
    pub(crate) fn terminate(&mut self) {}

    /// Kills the program.
    pub(crate) fn kill(&mut self) {
        drop(self.0.start_kill());
    }
}
