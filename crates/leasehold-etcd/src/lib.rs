#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod authenticator;
mod backend;
mod batch;
mod config;
mod connection;
mod error;
mod inspect;
mod keys;
mod lease;
mod member;
mod pending_lock;
mod probe;
mod queue;
mod releases;
mod revoke;
mod session;
mod url;
mod waiters;

/// The driver.
pub use etcd_client;
pub use leasehold_core::{Credentials, CredentialsProvider, Error, ErrorKind, Result};

pub use crate::{backend::EtcdBackend, config::EtcdConfig};
