#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod file;
mod memory;

pub use leasehold_core::{Error, ErrorKind, Result};

pub use crate::{
    file::{FileBackend, FileConfig, FileLease},
    memory::{MemoryBackend, MemoryLease},
};
