//! Real servers, each with its own temporary folder and free loopback port.
//!
//! Each kind of server has a module that describes its files, arguments and address. [`Process`]
//! starts, signals and restarts them.

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "postgres")]
mod lender;
#[cfg(feature = "etcd")]
mod links;
#[cfg(feature = "postgres")]
mod pgbouncer;
#[cfg(feature = "postgres")]
mod postgres;
mod process;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redlock")]
mod redlock;
#[cfg(feature = "redis")]
mod shared;
#[cfg(feature = "zookeeper")]
mod zookeeper;

#[cfg(feature = "etcd")]
pub use etcd::{EtcdBuilder, EtcdCluster, EtcdMember, later_etcd};
#[cfg(feature = "postgres")]
pub use lender::{LendingPooler, Loan};
#[cfg(feature = "etcd")]
pub use links::PeerLinks;
#[cfg(feature = "postgres")]
pub use pgbouncer::{PgBouncer, PoolMode};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresBuilder, PostgresServer, Psql, SharedPostgres, shared_postgres};
pub use process::Process;
#[cfg(feature = "redis")]
pub use redis::{Persistence, RedisBuilder, RedisServer};
#[cfg(feature = "redlock")]
pub use redlock::RedlockServers;
#[cfg(feature = "redis")]
pub use shared::{SharedRedis, shared_redis};
#[cfg(feature = "zookeeper")]
pub use zookeeper::{JARS, ZookeeperBuilder, ZookeeperEnsemble, ZookeeperServer, classpath, jvm};

use crate::{HarnessError, Result};

/// Returns a free port that no other server of this process uses.
fn free_port() -> Result<u16> {
    leasehold_testkit::free_port()
        .map_err(|error| HarnessError::caused_by("cannot find a free port", error))
}
