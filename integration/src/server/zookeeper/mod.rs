//! Real ZooKeeper servers, single or as an ensemble.

mod builder;
mod ensemble;
mod java;
mod links;
mod log;
mod server;

pub use builder::ZookeeperBuilder;
pub use ensemble::ZookeeperEnsemble;
pub use java::{JARS, classpath, jvm};
pub use server::ZookeeperServer;
