#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod authenticator;
mod backend;
mod revoke;
mod pending_lock;
mod config;
mod connection;
mod error;
mod batch;
mod inspect;
mod keys;
mod lease;
mod url;
mod member;
mod probe;
mod queue;
mod releases;
mod session;
mod waiters;

/// The driver.
pub use etcd_client;
pub use leasehold_core::{Credentials, CredentialsProvider, Error, ErrorKind, Result};

pub use crate::{backend::EtcdBackend, config::EtcdConfig};
