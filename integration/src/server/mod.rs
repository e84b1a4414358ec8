//! Real servers, each with a temporary folder and a free loopback port of its own.
//!
//! A kind of server is a module here that describes its files, arguments and address, and leaves
//! starting, waiting, signals and restarting to [`Process`].

mod etcd;
mod lender;
mod links;
mod pgbouncer;
mod postgres;
mod process;
mod redis;
mod redlock;
mod shared;
mod zookeeper;

pub use etcd::{EtcdBuilder, EtcdCluster, EtcdMember, later_etcd};
pub use lender::{LendingPooler, Loan};
pub use links::PeerLinks;
pub use pgbouncer::{PgBouncer, PoolMode};
pub use postgres::{PostgresBuilder, PostgresServer, Psql, SharedPostgres, shared_postgres};
pub use process::Process;
pub use redis::{Persistence, RedisBuilder, RedisServer};
pub use redlock::RedlockServers;
pub use shared::{SharedRedis, shared_redis};
pub use zookeeper::{JARS, ZookeeperBuilder, ZookeeperEnsemble, ZookeeperServer, classpath, jvm};

use crate::{HarnessError, Result};

/// A port for a server, which is this process's alone.
fn free_port() -> Result<u16> {
    leasehold_testkit::free_port()
        .map_err(|error| HarnessError::caused_by("a server has no port", error))
}
