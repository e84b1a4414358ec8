//! One PostgreSQL server.

mod floor;
mod sqlx_pool;

use leasehold_core::LockClient;
use leasehold_integration::{Result, server::PostgresServer};
use leasehold_postgres::PostgresBackend;

use super::{Backend, BackendName};
use crate::subject::{Leasehold, Subject};

/// If set, the server waits for the disk at each commit, as in production. Otherwise the benchmark
/// measures the code and not the disk.
const FSYNC: &str = "LEASEHOLD_BENCH_FSYNC";

pub(super) struct Postgres(PostgresServer);

impl Postgres {
    pub(super) fn start() -> Result<Self> {
        let builder = PostgresServer::builder();
        let builder = if std::env::var_os(FSYNC).is_some() {
            builder.durable().on_disk()
        } else {
            builder
        };
        // Room for the locks of `held`: the table is sized per possible connection or transaction.
        builder
            .setting("max_locks_per_transaction", "512")
            .start()
            .map(Self)
    }
}

impl Backend for Postgres {
    fn name(&self) -> BackendName {
        BackendName::Postgres
    }

    fn location(&self) -> Option<String> {
        Some(self.0.url())
    }

    fn subjects(&self) -> Vec<Box<dyn Subject>> {
        subjects_at(&self.0.url())
    }
}

pub(super) fn subjects_at(url: &str) -> Vec<Box<dyn Subject>> {
    let address = url.to_owned();
    let leasehold = Leasehold::new(move || {
        let address = address.clone();
        async move {
            PostgresBackend::connect(&address)
                .await
                .map(LockClient::new)
        }
    });
    vec![
        Box::new(floor::Floor(url.to_owned())),
        Box::new(leasehold),
        Box::new(sqlx_pool::SqlxPool(url.to_owned())),
    ]
}
