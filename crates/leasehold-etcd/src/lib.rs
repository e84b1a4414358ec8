#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod admin;
mod authenticator;
mod backend;
mod batch;
mod channel;
mod config;
mod connection;
mod connector;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod keys;
mod lease;
mod member;
mod pending_lock;
mod proposal;
mod queue;
mod record;
mod session;
mod versions;
mod waiters;

/// The driver.
pub use etcd_client;
pub use leasehold_core::{Credentials, CredentialsProvider, Error, ErrorKind, Result};

pub use crate::{backend::EtcdBackend, config::EtcdConfig};
