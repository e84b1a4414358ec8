//! One etcd server, with its data in memory.

mod floor;

use etcd_client::{Client, KvClient};
use leasehold_core::LockClient;
use leasehold_etcd::{EtcdBackend, etcd_client};
use leasehold_integration::{HarnessError, Result, server::EtcdCluster};

use super::{Backend, BackendName, Busy};
use crate::subject::{Leasehold, Subject};

pub(super) struct Etcd {
    server: EtcdCluster,
}

impl Etcd {
    pub(super) fn start() -> Result<Self> {
        // The benchmark compares clients and not disks.
        Ok(Self {
            server: EtcdCluster::builder().in_memory().start()?,
        })
    }
}

impl Backend for Etcd {
    fn name(&self) -> BackendName {
        BackendName::Etcd
    }

    fn location(&self) -> Option<String> {
        Some(self.server.url())
    }

    fn subjects(&self) -> Vec<Box<dyn Subject>> {
        subjects_at(&self.server.url())
    }

    /// A pair with 256 tasks takes at least 80 ms.
    fn pace(&self) -> u32 {
        4
    }

    /// Returns the number of messages. A request has one.
    fn commands(&self) -> Result<Option<u64>> {
        let metrics = self.server.at(0).metrics()?;
        Ok(Some(metrics.lines().filter_map(messages).sum()))
    }

    fn busy(&self, writes_per_second: u32) -> Result<Option<Busy>> {
        let address = endpoint(&self.server.url());
        let connect = async move { connect(&address).await.map(|client| client.kv_client()) };
        let write = |kv: &KvClient, n: u64| {
            let mut kv = kv.clone();
            // Models an application's data: other keys, written repeatedly.
            async move {
                kv.put(format!("unrelated/{}", n % 1_000), vec![b'x'; 100], None)
                    .await
                    .is_ok()
            }
        };
        Busy::start(writes_per_second, connect, write).map(Some)
    }
}

/// Returns the number in a metrics line that counts messages sent by clients.
fn messages(line: &str) -> Option<u64> {
    let counted = line.strip_prefix("grpc_server_msg_received_total{")?;
    counted
        .rsplit(' ')
        .next()?
        .parse::<f64>()
        .ok()
        .map(|count| count as u64)
}

pub(super) fn subjects_at(url: &str) -> Vec<Box<dyn Subject>> {
    let address = url.to_owned();
    let leasehold = Leasehold::new(move || {
        let address = address.clone();
        async move { EtcdBackend::connect(&address).await.map(LockClient::new) }
    });
    vec![Box::new(floor::Floor(endpoint(url))), Box::new(leasehold)]
}

/// Returns `host:port` of a URL of the harness.
fn endpoint(url: &str) -> String {
    url.trim_start_matches("etcd://")
        .trim_end_matches('/')
        .to_owned()
}

async fn connect(endpoint: &str) -> Result<Client> {
    Client::connect([endpoint], None).await.map_err(failed)
}

fn failed(error: etcd_client::Error) -> HarnessError {
    HarnessError::caused_by("etcd failed", error)
}
