//! The backends that can be measured, one file each.

mod busy;
mod etcd;
mod file;
mod memory;
mod postgres;
mod redis;
mod redlock;
mod zookeeper;

use leasehold_integration::{HarnessError, Result};

pub(super) use self::busy::Busy;
use super::subject::Subject;

/// A backend to measure. Its server, if it has one, runs until this is dropped.
pub(super) trait Backend: Sync {
    fn name(&self) -> BackendName;

    /// Returns the location for other processes, or `None` if they cannot reach the backend.
    fn location(&self) -> Option<String>;

    /// Returns all subjects, including Leasehold and its floor.
    fn subjects(&self) -> Vec<Box<dyn Subject>>;

    /// Returns the maximum number of leases held by one process, or `None` if it is unlimited.
    fn most_leases(&self) -> Option<usize> {
        None
    }

    /// Returns the number of nodes of a quorum, or 1.
    fn nodes(&self) -> usize {
        1
    }

    /// Pauses this many nodes.
    fn stop_nodes(&self, count: usize) -> Result<()> {
        if count == 0 {
            Ok(())
        } else {
            Err(HarnessError::new("this backend is not a quorum"))
        }
    }

    /// Resumes all nodes.
    fn resume_nodes(&self) -> Result<()> {
        Ok(())
    }

    /// Returns by which factor the backend is slower under load than a server in memory. The rounds
    /// of `pair` are longer by this factor.
    fn pace(&self) -> u32 {
        1
    }

    /// Returns the number of requests received from clients, or `None` if there is no server or no
    /// such statistic.
    fn commands(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Starts background writes by another client of the server, or returns `None` if this is
    /// impossible.
    fn busy(&self, writes_per_second: u32) -> Result<Option<Busy>> {
        let _ = writes_per_second;
        Ok(None)
    }
}

/// The backends by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum BackendName {
    Etcd,
    Memory,
    File,
    Postgres,
    Redis,
    Redlock,
    Zookeeper,
}

impl BackendName {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Memory => "memory",
            Self::File => "file",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Redlock => "redlock",
            Self::Zookeeper => "zookeeper",
        }
    }

    /// Starts the backend's server.
    pub(super) fn start(self) -> Result<Box<dyn Backend>> {
        match self {
            Self::Etcd => Ok(Box::new(etcd::Etcd::start()?)),
            Self::Memory => Ok(Box::new(memory::Memory)),
            Self::File => Ok(Box::new(file::Files::start()?)),
            Self::Postgres => Ok(Box::new(postgres::Postgres::start()?)),
            Self::Redis => Ok(Box::new(redis::Redis::start()?)),
            Self::Redlock => Ok(Box::new(redlock::Redlock::start()?)),
            Self::Zookeeper => Ok(Box::new(zookeeper::Zookeeper::start()?)),
        }
    }

    /// Returns the subjects in another process than the one that started the server.
    pub(super) fn subjects_at(self, location: &str) -> Vec<Box<dyn Subject>> {
        match self {
            Self::Etcd => etcd::subjects_at(location),
            Self::Memory => memory::subjects(),
            Self::File => file::subjects_at(location),
            Self::Postgres => postgres::subjects_at(location),
            Self::Redis => redis::subjects_at(location),
            Self::Redlock => redlock::subjects_at(location),
            Self::Zookeeper => zookeeper::subjects_at(location),
        }
    }
}
