use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use leasehold_testkit::history::{Op, Phase};

use super::{
    event::EventLog,
    protocol::{Answer, Command, Numbered, Patience, Setup},
};
use crate::{HarnessError, Result, peer::Peer};

/// The default timeout of a command, long enough for a busy machine and for a connection.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A command whose answer is pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "await its answer"]
pub struct Ticket(u64);

/// A worker process controlled by a test. Dropping it kills it.
#[derive(Debug)]
#[must_use = "dropping it kills the process"]
pub struct Worker {
    peer: Peer,
    setup: Setup,
    next: u64,
    early: HashMap<u64, Answer>,
}

impl Worker {
    /// Starts `program` (in tests `env!("CARGO_BIN_EXE_worker")`) and returns once it is connected.
    ///
    /// # Errors
    /// The process cannot be started, or cannot connect.
    pub fn spawn(program: impl AsRef<Path>, setup: Setup) -> Result<Self> {
        let argument = serde_json::to_string(&setup)
            .map_err(|error| HarnessError::caused_by("cannot encode the setup", error))?;
        let peer = Peer::spawn(program.as_ref(), [argument])?;
        let mut worker = Self {
            peer,
            setup,
            next: 1,
            early: HashMap::new(),
        };
        match worker.answer(Ticket(0), TIMEOUT)? {
            Answer::Ready => Ok(worker),
            other => Err(HarnessError::new(format!(
                "worker {} did not connect: {other:?}",
                worker.setup.proc
            ))),
        }
    }

    /// Returns the setup of the process.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Sends a command without waiting for its answer.
    ///
    /// # Errors
    /// The process no longer reads.
    pub fn send(&mut self, command: Command) -> Result<Ticket> {
        let id = self.next;
        self.next += 1;
        let line = serde_json::to_string(&Numbered { id, body: command })
            .map_err(|error| HarnessError::caused_by("cannot encode the command", error))?;
        self.peer.say(&line)?;
        Ok(Ticket(id))
    }

    /// Waits for the answer to an earlier command.
    ///
    /// # Errors
    /// There is no answer within `patience`, or the process has ended.
    pub fn answer(&mut self, ticket: Ticket, patience: Duration) -> Result<Answer> {
        let end = Instant::now() + patience;
        loop {
            if let Some(answer) = self.early.remove(&ticket.0) {
                return Ok(answer);
            }
            let line = self
                .peer
                .hear(end.saturating_duration_since(Instant::now()))?;
            let answer = serde_json::from_str::<Numbered<Answer>>(&line).map_err(|error| {
                HarnessError::caused_by(format!("not an answer: {line}"), error)
            })?;
            self.early.insert(answer.id, answer.body);
        }
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// As [`send`](Self::send) and [`answer`](Self::answer).
    pub fn ask(&mut self, command: Command) -> Result<Answer> {
        let ticket = self.send(command)?;
        self.answer(ticket, TIMEOUT)
    }

    /// Acquires a lock into `slot` and waits for the answer.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn lock(&mut self, slot: u32, key: &str, patience: Patience) -> Result<Answer> {
        self.ask(Command::Lock {
            slot,
            key: key.to_owned(),
            patience,
        })
    }

    /// Sends SIGSTOP. In effect when this returns.
    ///
    /// # Errors
    /// The process has ended.
    pub fn pause(&mut self) -> Result<()> {
        self.peer.process().pause()
    }

    /// Sends SIGCONT.
    ///
    /// # Errors
    /// The process has ended.
    pub fn resume(&mut self) -> Result<()> {
        self.peer.process().resume()
    }

    /// Sends SIGKILL and records this in the event log of the process.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub fn kill(&mut self) -> Result<()> {
        let log = EventLog::open(&self.setup.log, &self.setup.proc)?;
        log.write(0, "", (Op::Kill, Phase::Invoke), None, None);
        self.peer.process().kill();
        log.write(0, "", (Op::Kill, Phase::Ok), None, None);
        Ok(())
    }

    /// Returns whether the process has not ended.
    pub fn is_running(&mut self) -> bool {
        self.peer.process().is_running()
    }
}
