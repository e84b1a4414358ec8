use leasehold_core::{
    Ttl,
    quorum::{Provision, QuorumBackend},
};
use std::sync::Arc;

use super::{Persistence, RedisServer};
use crate::{HarnessError, Result};

/// Independent Redis servers, which make a quorum.
#[derive(Debug)]
#[must_use = "dropping it kills the servers"]
pub struct RedlockServers {
    /// Each of them, to be stopped and killed.
    pub servers: Vec<RedisServer>,
}

impl RedlockServers {
    /// Starts so many, which keep that through a restart.
    ///
    /// # Errors
    /// One cannot be started.
    pub fn start(count: usize, persistence: Persistence) -> Result<Self> {
        let servers = (0..count).map(|_| RedisServer::builder().persistence(persistence).start());
        Ok(Self {
            servers: servers.collect::<Result<_>>()?,
        })
    }

    /// `redlock://` with all of them.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self
            .servers
            .iter()
            .map(|server| server.addr().to_string())
            .collect();
        format!("redlock://{}/", hosts.join(","))
    }

    /// Attests them all, as nobody has used them yet, for locks of at most this TTL.
    ///
    /// # Errors
    /// One does not answer.
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
