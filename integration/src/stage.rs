//! [`Stage`]: worker processes on one backend.

use std::{
    env,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{
    Result,
    worker::{Answer, Register, Setup, Worker},
};

/// Worker processes on one backend, their logs, and the register that they share.
#[derive(Debug)]
pub struct Stage {
    folder: TempDir,
    url: String,
    ttl_ms: u64,
}

impl Stage {
    /// Creates a stage on the servers at this URL.
    ///
    /// # Panics
    /// The folder of the logs cannot be created.
    #[must_use]
    pub fn on(url: &str, ttl_ms: u64) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            url: url.to_owned(),
            ttl_ms,
        }
    }

    /// Creates a stage on lock files in a folder of its own.
    ///
    /// # Panics
    /// A folder cannot be created.
    #[must_use]
    pub fn on_files(ttl_ms: u64) -> Self {
        let mut stage = Self::on("", ttl_ms);
        let folder = stage.folder.path().join("locks");
        std::fs::create_dir(&folder).unwrap();
        stage.url = format!("file:{}", folder.display());
        stage
    }

    /// Returns the URL of the servers.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the folder of the lock files.
    #[must_use]
    pub fn locks(&self) -> PathBuf {
        self.folder.path().join("locks")
    }

    /// Returns the register.
    #[must_use]
    pub fn register(&self) -> Register {
        Register::at(&self.folder.path().join("register"))
    }

    /// Starts a worker.
    ///
    /// # Panics
    /// It cannot connect.
    pub fn worker(&self, proc: &str) -> Worker {
        self.worker_at(proc, &self.url)
    }

    /// Starts a worker that uses another route to the same backend.
    ///
    /// # Panics
    /// It cannot connect.
    pub fn worker_at(&self, proc: &str, url: &str) -> Worker {
        self.try_worker_at(proc, url).unwrap()
    }

    /// Starts a worker like [`worker_at`](Self::worker_at).
    ///
    /// # Errors
    /// It cannot connect.
    pub fn try_worker_at(&self, proc: &str, url: &str) -> Result<Worker> {
        let setup = Setup {
            proc: proc.to_owned(),
            url: url.to_owned(),
            ttl_ms: self.ttl_ms,
            log: self.log(proc),
            register: self.folder.path().join("register"),
        };
        Worker::spawn(program(), setup)
    }

    /// Returns the log of a worker.
    #[must_use]
    pub fn log(&self, proc: &str) -> PathBuf {
        self.folder.path().join(format!("{proc}.jsonl"))
    }
}

/// Returns the program of the workers. Cargo builds it before the tests, in the folder above
/// theirs.
fn program() -> PathBuf {
    let test = env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent);
    folder.unwrap().join("worker")
}

/// Returns token and deadline of a grant.
///
/// # Panics
/// The lock was not granted, or without a token.
#[track_caller]
pub fn granted(answer: Answer) -> (u64, u64) {
    match answer {
        Answer::Granted {
            token: Some(token),
            deadline_ns,
        } => (token, deadline_ns),
        other => panic!("not granted with a token: {other:?}"),
    }
}

/// Asserts that another process held the lock.
///
/// # Panics
/// It did not.
#[track_caller]
pub fn refused(answer: Answer) {
    match answer {
        Answer::Refused => {}
        other => panic!("not refused: {other:?}"),
    }
}

/// Returns whether the worker considers its lock held.
///
/// # Panics
/// It has no guard.
#[must_use]
#[track_caller]
pub fn is_held(answer: Answer) -> bool {
    match answer {
        Answer::Checked { held, .. } => held,
        other => panic!("no guard: {other:?}"),
    }
}
