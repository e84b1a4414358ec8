#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod alone;
mod session_tasks;
mod backend;
mod revoke;
mod pending_lock;
mod config;
mod connection;
mod crowd;
mod diagnosis;
mod error;
mod batch;
mod inspect;
mod keys;
mod lease;
mod loss_watch;
mod liveness;
mod queue;
mod session;
mod thread;
mod used_up;
mod predecessor;
mod wake;

pub use leasehold_core::{Error, ErrorKind, Result};
/// The driver.
pub use zookeeper_client;

pub use crate::{
    backend::ZookeeperBackend,
    config::{Access, ExclusiveNodes, ZookeeperConfig},
};
