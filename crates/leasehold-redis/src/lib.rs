#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod answer;
mod backend;
mod batch;
mod breaking;
mod config;
mod connection;
mod error;
mod exclusive;
mod gather;
mod holder;
mod inspect;
mod keys;
mod lease;
mod live;
mod location;
mod mark;
mod node;
mod notification_backoff;
mod probe;
mod redlock;
mod scripts;
mod sight;
mod stream;
mod undo;
mod vote;
mod wake;

pub use leasehold_core::{Error, ErrorKind, Result};
/// The driver.
pub use redis;

pub use crate::{
    backend::RedisBackend,
    config::{RedisConfig, WakeMode},
    redlock::{redlock, redlock_provisional_capabilities},
};
