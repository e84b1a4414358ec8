//! The two programs, and the lock that both use.

use std::{
    fmt::Debug,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

use crate::support::{ended, files, until};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Flock,
    Leasehold,
}

pub use Tool::{Flock, Leasehold};

/// One of the programs, and the lock that both use.
pub struct Case {
    pub tool: Tool,
    pub dir: TempDir,
}

impl Case {
    pub fn new(tool: Tool) -> Self {
        Self {
            tool,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn lock_file(&self) -> String {
        self.dir.path().join("k.lock").display().to_string()
    }

    /// Returns the words before those of the program that runs under the lock.
    pub fn words(&self, options: &[&str]) -> Vec<String> {
        let (begin, end) = match self.tool {
            Flock => (vec![String::from("flock")], vec![self.lock_file()]),
            Leasehold => {
                let begin = [
                    env!("CARGO_BIN_EXE_leasehold"),
                    "run",
                    "--url",
                    &files(&self.dir),
                ]
                .map(String::from);
                (begin.to_vec(), ["k", "--"].map(String::from).to_vec())
            }
        };
        begin
            .into_iter()
            .chain(options.iter().map(ToString::to_string))
            .chain(end)
            .collect()
    }

    /// Returns those words for a shell.
    pub fn line(&self) -> String {
        self.words(&[]).join(" ")
    }

    /// Runs `words`, then the tool with this program.
    pub fn after(&self, words: &[&str], program: &[&str]) -> Command {
        self.command(
            words.iter().map(ToString::to_string).chain(self.words(&[])),
            program,
        )
    }

    /// Runs the tool with this program.
    pub fn run(&self, program: &[&str]) -> Command {
        self.after(&[], program)
    }

    pub fn command(&self, words: impl IntoIterator<Item = String>, program: &[&str]) -> Command {
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .args(program)
            .env_remove("LEASEHOLD_URL")
            .stdin(Stdio::null())
            .current_dir(self.dir.path());
        command
    }

    /// Runs a script of `sh` that calls the tool as `$TOOL`.
    pub fn script(&self, script: &str) -> Output {
        ended(
            self.command(["sh", "-c"].map(String::from), &[script])
                .env("TOOL", self.line()),
        )
    }

    pub fn is_free(&self) -> bool {
        Command::new("flock")
            .args(["-n", &self.lock_file(), "true"])
            .status()
            .unwrap()
            .success()
    }

    pub fn becomes_free(&self) {
        until("the lock is free", || self.is_free());
    }
}

/// Asserts that both programs behave like this.
#[expect(clippy::needless_pass_by_value, reason = "the callers pass literals")]
pub fn same<T: Debug + PartialEq>(seen: impl Fn(&Case) -> T, expected: T) {
    for tool in [Flock, Leasehold] {
        assert_eq!(seen(&Case::new(tool)), expected, "{tool:?}");
    }
}

/// Asserts that each program behaves like this.
#[expect(clippy::needless_pass_by_value, reason = "the callers pass literals")]
pub fn different<T: Debug + PartialEq>(seen: impl Fn(&Case) -> T, flock: T, leasehold: T) {
    assert_ne!(flock, leasehold);
    assert_eq!(seen(&Case::new(Flock)), flock, "flock");
    assert_eq!(seen(&Case::new(Leasehold)), leasehold, "leasehold");
}

/// A shell that waits for a program, which prints its process id.
pub const WORK: [&str; 3] = ["sh", "-c", "sh -c 'echo $$; exec sleep 60'; :"];

/// A program that prints its process id and runs until it is killed.
pub const HOLD: [&str; 3] = ["sh", "-c", "echo $$; exec sleep 60"];

/// [`WORK`] for the line of a shell.
pub const WORK_LINE: &str = "sh -c 'sh -c \"echo work=\\$\\$; exec sleep 60\"; :'";
