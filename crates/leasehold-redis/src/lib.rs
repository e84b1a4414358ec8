#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod reply;
mod backend;
mod batch;
mod revoke;
mod config;
mod connection;
mod error;
mod commands;
mod batcher;
mod value;
mod inspect;
mod keys;
mod lease;
mod conn;
mod url;
mod marker;
mod node;
mod notification_backoff;
mod handshake;
mod redlock;
mod scripts;
mod node_state;
mod stream;
mod cleanup;
mod vote;
mod waiters;

pub use leasehold_core::{Error, ErrorKind, Result};
/// The driver.
pub use redis;

pub use crate::{
    backend::RedisBackend,
    config::{RedisConfig, NotificationMode},
    redlock::{redlock, redlock_provisional_capabilities},
};
