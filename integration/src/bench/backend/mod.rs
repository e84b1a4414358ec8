//! What can be measured: a file per backend.

mod busy;
mod etcd;
mod file;
mod memory;
mod postgres;
mod redis;
mod redlock;
mod zookeeper;

pub(super) use self::busy::Busy;
use super::subject::Subject;
use crate::{HarnessError, Result};

/// A backend that is measured: its server, if it has one, runs for as long as this lives.
pub(super) trait Backend: Sync {
    fn name(&self) -> BackendName;

    /// Where it is, for other processes; `None` if they cannot reach it.
    fn location(&self) -> Option<String>;

    /// Everything that can be measured of it; Leasehold and its floor among them.
    fn subjects(&self) -> Vec<Box<dyn Subject>>;

    /// How many leases one process can hold at a time; `None` for any number.
    fn most_leases(&self) -> Option<usize> {
        None
    }

    /// How many servers it is a quorum of; one if it is none.
    fn nodes(&self) -> usize {
        1
    }

    /// Stops so many of them, without ending them.
    fn stop_nodes(&self, count: usize) -> Result<()> {
        if count == 0 {
            Ok(())
        } else {
            Err(HarnessError::new("that backend is no quorum"))
        }
    }

    /// Lets them go on.
    fn resume_nodes(&self) -> Result<()> {
        Ok(())
    }

    /// How many times slower than a server in memory it answers under load: a round of `pair` lasts
    /// so many times longer.
    fn pace(&self) -> u32 {
        1
    }

    /// How many requests its server has had from clients; `None` if it has none, or does not tell.
    fn commands(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Lets somebody else write to its server so often what nobody locks; `None` if that cannot be.
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

    /// Starts its server.
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

    /// In another process than the one that started it.
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
