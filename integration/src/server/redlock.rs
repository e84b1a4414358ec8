use leasehold_core::{
    Ttl,
    quorum::{Provision, QuorumBackend},
};
use std::sync::Arc;

use super::{Persistence, RedisServer};
use crate::{HarnessError, Result};

/// Independent Redis servers that form a quorum.
#[derive(Debug)]
#[must_use = "dropping it kills the servers"]
pub struct RedlockServers {
    /// The servers, to be paused and killed one by one.
    pub servers: Vec<RedisServer>,
}

impl RedlockServers {
    /// Starts `count` servers with this persistence.
    ///
    /// # Errors
    /// A server cannot be started.
    pub fn start(count: usize, persistence: Persistence) -> Result<Self> {
        let servers = (0..count).map(|_| RedisServer::builder().persistence(persistence).start());
        Ok(Self {
            servers: servers.collect::<Result<_>>()?,
        })
    }

    /// Returns the `redlock://` URL of all servers.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self
            .servers
            .iter()
            .map(|server| server.addr().to_string())
            .collect();
        format!("redlock://{}/", hosts.join(","))
    }

    /// Provisions all servers as unused, for locks of at most this TTL.
    ///
    /// # Errors
    /// A server does not answer.
    pub async fn provision(&self, largest_ttl: Ttl) -> Result<Arc<QuorumBackend>> {
        let failed = |error| HarnessError::caused_by("cannot provision the quorum", error);
        let quorum = leasehold_redis::redlock(&self.url())
            .await
            .map_err(failed)?;
        let provision = Provision::new(largest_ttl).with_never_used(true);
        quorum.provision(&provision).await.map_err(failed)?;
        Ok(quorum)
    }
}
