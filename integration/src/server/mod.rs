//! Real servers, each with its own temporary folder and free loopback port.
//!
//! Each kind of server has a module that describes its files, arguments and address. [`Process`]
//! starts, signals and restarts them.

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

/// Returns a free port that no other server of this process uses.
fn free_port() -> Result<u16> {
    leasehold_testkit::free_port()
        .map_err(|error| HarnessError::caused_by("cannot find a free port", error))
}
