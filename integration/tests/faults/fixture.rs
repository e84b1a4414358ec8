//! [`Fixture`]: a backend with servers and connections that a case can break.

use std::collections::BTreeSet;

use leasehold_core::{LockClient, Ttl};
use leasehold_integration::{Result, proxy::Proxy, stage::Stage, worker::client};

/// A backend under test. Dropping it ends its servers.
pub(crate) trait Fixture {
    /// Returns the URL of the servers.
    fn url(&self) -> String;

    /// Returns the TTL of all locks.
    fn ttl(&self) -> Ttl;

    /// Stops the servers without ending them. In effect when this returns.
    fn pause(&mut self);

    /// Lets the servers continue.
    fn resume(&mut self);

    /// Kills the servers.
    fn kill(&mut self);

    /// Starts the killed servers again, with the data that they keep.
    fn restart(&mut self);

    /// Returns a new route to the servers, which can be cut.
    fn route(&self) -> Route;

    /// Returns all locks that are held or waited for.
    fn leftovers(&self) -> Result<BTreeSet<String>>;
}

impl dyn Fixture + '_ {
    /// Connects a client.
    pub(crate) async fn client(&self) -> LockClient {
        self.client_at(&self.url()).await
    }

    /// Connects a client at a URL.
    pub(crate) async fn client_at(&self, url: &str) -> LockClient {
        client(url, self.ttl(), "test").await.unwrap()
    }

    /// Creates a stage for workers.
    pub(crate) fn stage(&self) -> Stage {
        Stage::on(&self.url(), self.ttl_ms())
    }

    pub(crate) fn ttl_ms(&self) -> u64 {
        u64::try_from(self.ttl().as_duration().as_millis()).expect("the TTL fits")
    }
}

/// A way to the servers over a proxy in front of each.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) url: String,
    pub(crate) proxies: Vec<Proxy>,
}

impl Route {
    /// Does the same to all connections.
    pub(crate) fn each(&self, act: impl FnMut(&Proxy)) {
        self.proxies.iter().for_each(act);
    }
}

/// A property of a backend that a case depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// It has servers, which can be paused, killed and cut off.
    Server,
    /// A lock whose holder stands still becomes free when its TTL has passed.
    Expiry,
    /// The lock of a process that has died is free at once.
    FreeAtDeath,
    /// The lock of a process that has died is held for its TTL.
    HeldAfterDeath,
    /// A lock outlives the connection of its holder.
    HeldOverReset,
    /// A lock outlives a restart of the server.
    HeldOverRestart,
    /// The tasks of a client that is dropped end long before its TTLs, also if the server is dead.
    EndsTasks,
    /// It keeps records beside its locks.
    Records,
    /// Waiters take their turns while others are stopped.
    SkipsStopped,
}

/// The TTL of the locks of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lease {
    /// A few seconds, for cases that wait for an expiry. A busy machine still renews in time.
    Short,
    /// An hour, for cases in which nothing may expire.
    Long,
}

/// A kind of backend.
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    /// Starts its servers.
    pub(crate) start: fn(Lease) -> Box<dyn Fixture>,
    /// The needs that it does not meet, and why.
    pub(crate) lacks: &'static [(Need, &'static str)],
}

impl Backend {
    /// Returns why the backend does not meet one of these needs.
    pub(crate) fn reason_against(&self, needs: &[Need]) -> Option<&'static str> {
        let lack = self.lacks.iter().find(|(need, _)| needs.contains(need));
        lack.map(|(_, reason)| *reason)
    }
}
