#![doc = include_str!("../README.md")]
//!
//! ## Where to start
//! - **Users**: [`LockClient`] makes [`Mutex`], [`RwLock`] and [`Semaphore`], whose [`LockGuard`]s
//!   carry a deadline and a [`FencingToken`].
//! - **Implementors**: [`backend`] has the contract. [`session`] helps where many locks belong to
//!   one session, and [`url`] with URLs.
//! - **Quorums**: [`quorum`] makes one lock of an odd number of backends.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod acquire;
mod acquisition_id;
mod asker;
pub mod backend;
mod background_releases;
mod capability;
mod client;
mod clock;
mod complete_on_drop;
mod credentials;
mod driver_thread;
mod error;
mod fencing;
mod guard;
mod held_lease;
mod inspection;
mod key;
mod label;
mod lazy;
mod local_queue;
mod mode;
mod mutex;
mod options;
mod panics;
pub mod quorum;
mod random;
mod reentrant;
mod release;
mod release_tracker;
mod renewal;
mod request;
mod retry;
mod retry_budget;
mod run;
mod runtime;
mod rwlock;
mod semaphore;
#[cfg(feature = "serde")]
mod serde_impls;
pub mod session;
mod signal;
mod telemetry;
pub mod text;
mod ttl;
pub mod url;

/// For traits that users implement, such as [`CredentialsProvider`].
pub use async_trait::async_trait;

pub use crate::{
    acquisition_id::AcquisitionId,
    backend::Released,
    capability::{
        Capabilities, Expiry, Fairness, Fencing, LossDetection, Restart, WaiterNotification,
    },
    client::{LockClient, LockClientBuilder},
    clock::{Clock, ClockDrift, Deadline, SystemClock, TestClock, Timestamp},
    credentials::{Credentials, CredentialsProvider},
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    guard::{LeaseInfo, LockGuard, SemaphorePermit},
    inspection::{
        HolderConnection, HolderRef, Inspection, NodeStatus, Pong, Revocation, RevokeOutcome,
        WaiterRef,
    },
    key::LockKey,
    label::default_label,
    mode::Mode,
    mutex::Mutex,
    options::Renewal,
    reentrant::ReentrantOwner,
    rwlock::RwLock,
    semaphore::Semaphore,
    signal::LossReason,
    ttl::Ttl,
};
