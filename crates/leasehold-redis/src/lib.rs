#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod acquire;
mod admin;
mod backend;
mod batch;
mod cleanup;
mod commands;
mod config;
mod connection;
mod connection_manager;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod job;
mod keys;
mod lease;
mod quorum;
mod record;
mod redlock;
mod scripts;
mod shared_call;
mod stream;
mod waiters;

pub use leasehold_core::{Error, ErrorKind, Result};
/// The driver.
pub use redis;

pub use crate::{
    backend::RedisBackend,
    config::{NotificationMode, RedisConfig},
    redlock::{redlock, redlock_provisional_capabilities},
};
