//! One ZooKeeper server.

mod driver;
mod floor;

use leasehold_core::LockClient;
use leasehold_integration::{HarnessError, Result, server::ZookeeperServer};
use leasehold_zookeeper::ZookeeperBackend;
use zookeeper_client::{Client, Error};

use super::{Backend, BackendName};
use crate::subject::{Leasehold, Subject};

/// The session timeout of all subjects.
const SESSION: std::time::Duration = std::time::Duration::from_secs(30);

/// About as long as Leasehold's default label, which has host, program and process.
const LABEL: &[u8] = b"host/floor/1234";

pub(super) struct Zookeeper(ZookeeperServer);

impl Zookeeper {
    pub(super) fn start() -> Result<Self> {
        Ok(Self(ZookeeperServer::start()?))
    }
}

impl Backend for Zookeeper {
    fn name(&self) -> BackendName {
        BackendName::Zookeeper
    }

    fn location(&self) -> Option<String> {
        Some(self.0.addr().to_string())
    }

    fn subjects(&self) -> Vec<Box<dyn Subject>> {
        subjects_at(&self.0.addr().to_string())
    }

    /// A pair with 256 tasks takes at least 40 ms.
    fn pace(&self) -> u32 {
        4
    }

    /// Returns the number of requests, including pings: one per session every ten seconds.
    fn commands(&self) -> Result<Option<u64>> {
        self.0.metric("zk_packets_received").map(Some)
    }
}

pub(super) fn subjects_at(address: &str) -> Vec<Box<dyn Subject>> {
    let url = format!("zookeeper://{address}");
    let leasehold = Leasehold::new(move || {
        let url = url.clone();
        async move { ZookeeperBackend::connect(&url).await.map(LockClient::new) }
    });
    let address = || address.to_owned();
    vec![
        Box::new(floor::Floor::new(address())),
        Box::new(leasehold),
        Box::new(floor::Floor::moving(address())),
        Box::new(driver::Driver(address())),
    ]
}

async fn connect(address: &str) -> Result<Client> {
    Client::connector()
        .with_session_timeout(SESSION)
        .connect(address)
        .await
        .map_err(failed)
}

/// Returns the parent node of the holder and the waiters of a lock.
fn parent(subject: &str, lock: &str) -> String {
    format!("/{subject}-{}", lock.replace('/', "-"))
}

fn failed(error: Error) -> HarnessError {
    HarnessError::caused_by("the bare driver failed", error)
}
