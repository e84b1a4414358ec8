//! Real servers, each with a temporary folder and a free loopback port of its own.
//!
//! A kind of server is a module here that describes its files, arguments and address, and leaves starting, waiting,
//! signals and restarting to [`Process`].

mod etcd;
mod links;
mod process;
mod redis;
mod shared;

pub use etcd::{EtcdBuilder, EtcdCluster, EtcdMember};
pub use links::PeerLinks;
pub use process::Process;
pub use redis::{Persistence, RedisBuilder, RedisServer};
pub use shared::{SharedRedis, shared_redis};
