//! A child process that takes part in a test.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};
use std::{env, thread};

use crate::child::OwnedChild;
use crate::{HarnessError, Result};

/// The prefix of each line that a peer sends. All other output, such as a test runner's, is
/// ignored.
const MARK: &str = "peer> ";

/// The environment variable with the role of a peer that runs the same test program.
const ROLE: &str = "LEASEHOLD_PEER_ROLE";

/// The interval at which [`Peer::heard`] polls for a line.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A child process that reads lines from the test on its standard input and writes lines to it on
/// its standard output. Its standard error is the test's. Dropping it kills it.
#[derive(Debug)]
pub struct Peer {
    child: OwnedChild,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Peer {
    /// Starts `program` with `arguments`. In tests the program is `env!("CARGO_BIN_EXE_worker")` or
    /// similar.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        Self::spawn_with(program, arguments, &[])
    }

    /// Starts this test program again in the given `role`, to run only the test named `test` (its
    /// full path, as the test runner prints it). See [`role`].
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn this_test(test: &str, role: &str) -> Result<Self> {
        let program = env::current_exe().map_err(|error| {
            HarnessError::caused_by("cannot determine the path of this program", error)
        })?;
        Self::spawn_with(program, [test, "--exact", "--nocapture"], &[(ROLE, role)])
    }

    /// Returns the process, for its pid and for signals.
    pub fn process(&mut self) -> &mut OwnedChild {
        &mut self.child
    }

    /// Sends a line to the process.
    ///
    /// # Errors
    /// The process no longer reads.
    pub fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}")
            .and_then(|()| self.input.flush())
            .map_err(|error| {
                HarnessError::caused_by(format!("cannot send {line:?} to the peer"), error)
            })
    }

    /// Returns the next line that the process sends with [`tell`].
    ///
    /// # Errors
    /// The process sent nothing within `patience`, or has ended.
    pub fn hear(&mut self, patience: Duration) -> Result<String> {
        let end = Instant::now() + patience;
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                // The mark may follow a test runner's announcement on the same line.
                Ok(line) => {
                    if let Some((_, told)) = line.split_once(MARK) {
                        return Ok(told.to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Err(silent(patience)),
                Err(RecvTimeoutError::Disconnected) => return Err(mute()),
            }
        }
    }

    /// Returns the next line like [`hear`](Self::hear), without blocking the runtime. Cancel safe:
    /// no line is lost if the future is dropped.
    ///
    /// # Errors
    /// The process sent nothing within `patience`, or has ended.
    pub async fn heard(&mut self, patience: Duration) -> Result<String> {
        let end = Instant::now() + patience;
        loop {
            match self.lines.try_recv() {
                Ok(line) => {
                    if let Some((_, told)) = line.split_once(MARK) {
                        return Ok(told.to_owned());
                    }
                }
                Err(TryRecvError::Empty) if Instant::now() < end => {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
                Err(TryRecvError::Empty) => return Err(silent(patience)),
                Err(TryRecvError::Disconnected) => return Err(mute()),
            }
        }
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// The process has not ended within `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.child.wait(patience)
    }

    fn spawn_with<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let mut child = OwnedChild::spawn(program, |command| {
            command
                .args(arguments)
                .envs(environment.iter().copied())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
        })?;
        let pipes = child.child_mut();
        let (Some(input), Some(output)) = (pipes.stdin.take(), pipes.stdout.take()) else {
            return Err(HarnessError::new("the peer has no pipes"));
        };
        let (heard, lines) = mpsc::channel();
        // The thread ends when the peer closes its output, at the latest when it is killed.
        thread::spawn(move || {
            for line in BufReader::new(output)
                .lines()
                .map_while(std::result::Result::ok)
            {
                if heard.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            input,
            lines,
        })
    }
}

fn silent(patience: Duration) -> HarnessError {
    HarnessError::new(format!("the peer sent nothing within {patience:?}"))
}

fn mute() -> HarnessError {
    HarnessError::new("the peer closed its output before the expected line")
}

/// Sends a line to the test that started this peer.
pub fn tell(line: impl std::fmt::Display) {
    println!("{MARK}{line}");
}

/// Waits for a line from the test that started this peer. Returns `None` when that test has ended.
pub fn listen() -> Option<String> {
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line) {
        Ok(read) if read > 0 => Some(line.trim_end_matches('\n').to_owned()),
        _ => None,
    }
}

/// Returns the role of this process as a peer, or `None` in the test itself. A test that uses
/// [`Peer::this_test`] starts by calling it.
pub fn role() -> Option<String> {
    env::var(ROLE).ok()
}
