//! placeholder
#![cfg_attr(docsrs, feature(doc_cfg))]

mod memory;

pub use leasehold_core::{self, *};

pub use crate::memory::{MemoryBackend, MemoryLease};
