//! The contract, the client and the primitives of Leasehold.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod attempts;
mod backend;
mod capability;
mod clock;
mod error;
mod fencing;
mod inspection;
mod key;
mod mode;
mod owner;
mod request;
mod signal;
mod ttl;

pub use async_trait::async_trait;

pub use crate::{
    attempts::acquire_by_attempts,
    backend::{Attempt, BoxFuture, Contention, Lease, LockBackend, Released, SessionId, TokenVote, Upkeep},
    capability::{Capabilities, Expiry, Fairness, Fencing, LossSignal, Restart, Wakeup},
    clock::{Clock, Deadline, Drift, LiveDeadline, Moment, SystemClock, TestClock},
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    inspection::{Broken, HolderRef, Inspection, WaiterRef},
    key::LockKey,
    mode::Mode,
    owner::OwnerId,
    request::{LossSink, Request},
    signal::LossReason,
    ttl::Ttl,
};
