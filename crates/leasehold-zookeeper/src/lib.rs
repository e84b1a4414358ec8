#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod batch;
mod candidate;
mod config;
mod connection;
mod contended;
mod diagnosis;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod inspect;
mod keys;
mod lease;
mod liveness;
mod loss_watch;
mod node_data;
mod pending_lock;
mod predecessor;
mod proclaim;
mod queue;
mod record;
mod revoke;
mod session;
mod session_tasks;
mod thread;
mod used_up;
mod wake;
mod watch_queue;

pub use leasehold_core::{Error, ErrorKind, Result};
/// The driver.
pub use zookeeper_client;

pub use crate::{
    backend::ZookeeperBackend,
    config::{Access, ElectionNodes, ExclusiveNodes, ZookeeperConfig},
};
