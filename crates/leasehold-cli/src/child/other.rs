//! [`Child`] where there are no signals: the program alone.

use std::{ffi::OsString, process::ExitStatus};

use leasehold::LeaseInfo;
use tokio::process::Command;

use super::{Surroundings, cannot_wait, code_of_failed_start, command};
use crate::{exit::Failure, name::program_of, signals::Signal};

/// A running program.
#[derive(Debug)]
pub(crate) struct Child(tokio::process::Child);

impl Child {
    /// Starts the program.
    pub(crate) fn start(
        line: &[OsString],
        lease: &LeaseInfo,
        surroundings: &Surroundings<'_>,
    ) -> Result<Self, Failure> {
        let started = Command::from(command(line, lease, surroundings)).spawn();
        started
            .map(Self)
            .map_err(|error| code_of_failed_start(program_of(line).0, &error))
    }

    /// Waits for its end. May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus, Failure> {
        self.0.wait().await.map_err(|error| cannot_wait(&error))
    }

    /// Does nothing: the program has got the same Ctrl-C.
    pub(crate) fn pass_on(&mut self, _: Signal) {}

    /// Does nothing: there is no such request.
    pub(crate) fn terminate(&mut self) {}

    /// Kills the program.
    pub(crate) fn kill(&mut self) {
        drop(self.0.start_kill());
    }
}
