#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod alone;
mod attend;
mod backend;
mod breaking;
mod candidate;
mod config;
mod connection;
mod crowd;
mod diagnosis;
mod error;
mod gather;
mod inspect;
mod keys;
mod lease;
mod loss;
mod pulse;
mod queue;
mod session;
mod thread;
mod used_up;
mod waiting;
mod wake;

pub use leasehold_core::{Error, ErrorKind, Result};
/// The driver.
pub use zookeeper_client;

pub use crate::{
    backend::ZookeeperBackend,
    config::{Access, ExclusiveNodes, ZookeeperConfig},
};
