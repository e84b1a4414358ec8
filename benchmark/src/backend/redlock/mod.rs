//! Five independent Redis servers.

mod floor;

use std::sync::{Mutex, MutexGuard, PoisonError};

use leasehold_core::{LockClient, Ttl};
use leasehold_integration::{
    HarnessError, Result,
    server::{Persistence, RedlockServers},
};

use super::{Backend, BackendName};
use crate::subject::{Leasehold, Subject};

const SERVERS: usize = 5;

pub(super) struct Redlock {
    url: String,
    servers: Mutex<RedlockServers>,
}

impl Redlock {
    pub(super) fn start() -> Result<Self> {
        let servers = RedlockServers::start(SERVERS, Persistence::None)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime =
            runtime.map_err(|error| HarnessError::caused_by("cannot build a runtime", error))?;
        drop(runtime.block_on(servers.provision(Ttl::from_secs(60).unwrap_or_default()))?);
        Ok(Self {
            url: servers.url(),
            servers: Mutex::new(servers),
        })
    }

    fn servers(&self) -> MutexGuard<'_, RedlockServers> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Redlock {
    fn name(&self) -> BackendName {
        BackendName::Redlock
    }

    fn location(&self) -> Option<String> {
        Some(self.url.clone())
    }

    fn subjects(&self) -> Vec<Box<dyn Subject>> {
        subjects_at(&self.url)
    }

    fn nodes(&self) -> usize {
        SERVERS
    }

    /// Pauses the last nodes, whose grants arrive last when all nodes are well.
    fn stop_nodes(&self, count: usize) -> Result<()> {
        self.servers().servers[SERVERS - count..]
            .iter_mut()
            .try_for_each(leasehold_integration::server::RedisServer::pause)
    }

    fn resume_nodes(&self) -> Result<()> {
        self.servers()
            .servers
            .iter_mut()
            .try_for_each(leasehold_integration::server::RedisServer::resume)
    }
}

pub(super) fn subjects_at(url: &str) -> Vec<Box<dyn Subject>> {
    let address = url.to_owned();
    let leasehold = Leasehold::new(move || {
        let address = address.clone();
        async move {
            leasehold_redis::redlock(&address)
                .await
                .map(LockClient::new)
        }
    });
    vec![Box::new(floor::Floor(url.to_owned())), Box::new(leasehold)]
}
