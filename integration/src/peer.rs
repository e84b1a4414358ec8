//! Another process of a test.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};
use std::{env, thread};

use crate::child::OwnedChild;
use crate::{HarnessError, Result};

/// What a line must begin with to be heard; all else that a peer prints (a test harness's own
/// lines) is passed over.
const MARK: &str = "peer> ";

/// Set in a peer that is this test again: the role that it plays.
const ROLE: &str = "LEASEHOLD_PEER_ROLE";

/// How often a test with a runtime looks whether its peer has said something.
const GLANCE: Duration = Duration::from_millis(2);

/// Another process of a test: it is told lines on its standard input, and heard on its standard
/// output. Its standard error is the test's. Dropping it kills it.
#[derive(Debug)]
pub struct Peer {
    child: OwnedChild,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Peer {
    /// Starts `program`, in tests `env!("CARGO_BIN_EXE_worker")` and the like, with `arguments`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        Self::spawn_with(program, arguments, &[])
    }

    /// Starts this test program again, to run the test named `test` alone (its full path, as the
    /// test runner prints it) in the given `role`; see [`role`].
    ///
    /// # Errors
    /// It cannot be started.
    pub fn this_test(test: &str, role: &str) -> Result<Self> {
        let program = env::current_exe()
            .map_err(|error| HarnessError::caused_by("cannot tell which program this is", error))?;
        Self::spawn_with(program, [test, "--exact", "--nocapture"], &[(ROLE, role)])
    }

    /// The process, for its pid and for signals.
    pub fn process(&mut self) -> &mut OwnedChild {
        &mut self.child
    }

    /// Sends it a line.
    ///
    /// # Errors
    /// It no longer reads.
    pub fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}")
            .and_then(|()| self.input.flush())
            .map_err(|error| {
                HarnessError::caused_by(format!("cannot say {line:?} to the peer"), error)
            })
    }

    /// The next line that it [`tell`]s.
    ///
    /// # Errors
    /// It said nothing within `patience`, or has ended.
    pub fn hear(&mut self, patience: Duration) -> Result<String> {
        let end = Instant::now() + patience;
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                // Not at the start of a line where a test runner has announced the test on the same
                // one.
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

    /// As [`hear`](Self::hear), for a test that has a runtime to go on. May be dropped and called
    /// again.
    ///
    /// # Errors
    /// It said nothing within `patience`, or has ended.
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
                    tokio::time::sleep(GLANCE).await;
                }
                Err(TryRecvError::Empty) => return Err(silent(patience)),
                Err(TryRecvError::Disconnected) => return Err(mute()),
            }
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It has not ended after `patience`.
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
        // Ends with the peer's output, at the latest when the peer is killed.
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
    HarnessError::new(format!("the peer said nothing within {patience:?}"))
}

fn mute() -> HarnessError {
    HarnessError::new("the peer has closed its output without saying what was awaited")
}

/// In a peer: says a line to the test that started it.
pub fn tell(line: impl std::fmt::Display) {
    println!("{MARK}{line}");
}

/// In a peer: waits for a line from the test that started it. `None` when that test is gone.
pub fn listen() -> Option<String> {
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line) {
        Ok(read) if read > 0 => Some(line.trim_end_matches('\n').to_owned()),
        _ => None,
    }
}

/// The role that this process plays as a peer; `None` in the test itself. A test that uses
/// [`Peer::this_test`] begins by asking.
pub fn role() -> Option<String> {
    env::var(ROLE).ok()
}
