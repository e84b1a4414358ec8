//! Lock files in a folder.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    path::PathBuf,
};

use leasehold_core::LockClient;
use leasehold_integration::{HarnessError, Result};
use leasehold_local::FileBackend;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::{Backend, BackendName};
use crate::{
    process,
    scenario::Scenario,
    subject::{FLOOR, Leasehold, Lock, Locks, Source, Subject},
};

/// A generous bound on the files that a process has open besides locks.
const OTHER_FILES: usize = 256;
/// The open files of one Leasehold lease: the lock file, and a socket that shows that it is held.
const FILES_PER_LEASE: usize = 2;

pub(super) struct Files(TempDir);

impl Files {
    pub(super) fn start() -> Result<Self> {
        TempDir::new().map(Self).map_err(failed)
    }
}

impl Backend for Files {
    fn name(&self) -> BackendName {
        BackendName::File
    }

    fn location(&self) -> Option<String> {
        Some(self.0.path().display().to_string())
    }

    fn subjects(&self) -> Vec<Box<dyn Subject>> {
        subjects_at(&self.0.path().display().to_string())
    }

    fn most_leases(&self) -> Option<usize> {
        let files = usize::try_from(process::raise_open_files()).unwrap_or(usize::MAX);
        Some(files.saturating_sub(OTHER_FILES) / FILES_PER_LEASE)
    }
}

pub(super) fn subjects_at(folder: &str) -> Vec<Box<dyn Subject>> {
    let (floor, ours) = (
        PathBuf::from(folder).join("floor"),
        PathBuf::from(folder).join("leasehold"),
    );
    let leasehold = Leasehold::new(move || {
        let opened = FileBackend::open(&ours).map(LockClient::new);
        async move { opened }
    });
    vec![Box::new(Floor(floor)), Box::new(leasehold)]
}

/// The bare system calls: open the file, lock it (on a blocking thread if it is contended), write
/// the next token, close it.
struct Floor(PathBuf);

impl Source for Floor {
    type Locks = Folder;

    fn name(&self) -> &'static str {
        FLOOR
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        matches!(
            scenario,
            Scenario::Pair | Scenario::Handoff | Scenario::Counter
        )
    }

    async fn open(&self) -> Result<Folder> {
        fs::create_dir_all(&self.0).map_err(failed)?;
        Ok(Folder(self.0.clone()))
    }
}

struct Folder(PathBuf);

struct FileLock(PathBuf);

impl Locks for Folder {
    type Lock = FileLock;

    fn lock(&self, name: &str) -> FileLock {
        FileLock(self.0.join(name.replace('/', "-")))
    }

    async fn renew(&self, _held: &File) -> Result<()> {
        Ok(())
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Lock for FileLock {
    type Held = File;

    async fn acquire(&mut self) -> Result<File> {
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&self.0)
        };
        let mut file = open().map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let locked = spawn_blocking(move || file.lock().map(|()| file)).await;
                file = locked
                    .map_err(|error| HarnessError::caused_by("a thread failed", error))?
                    .map_err(failed)?;
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        next_token(&mut file).map_err(failed)?;
        Ok(file)
    }

    async fn release(&mut self, held: File) -> Result<()> {
        drop(held);
        Ok(())
    }
}

fn next_token(file: &mut File) -> io::Result<()> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let token = text.trim().parse().unwrap_or(0_u64) + 1;
    file.rewind()?;
    writeln!(file, "{token:020}")
}

fn failed(error: io::Error) -> HarnessError {
    HarnessError::caused_by("the bare file lock failed", error)
}
