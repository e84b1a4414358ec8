//! Real PostgreSQL servers.

mod builder;
mod data;
mod programs;
mod psql;
mod server;
mod shared;

pub use builder::PostgresBuilder;
pub(super) use programs::{give_to_owner, unprivileged};
pub use psql::Psql;
pub use server::PostgresServer;
pub use shared::{SharedPostgres, shared_postgres};
