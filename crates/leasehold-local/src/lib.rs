#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod file;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::file::fuzzing::{beside, proc_locks};
}
mod memory;

pub use leasehold_core::{Error, ErrorKind, Result};

pub use crate::{
    file::{FileBackend, FileConfig, FileLease},
    memory::{MemoryBackend, MemoryLease},
};
