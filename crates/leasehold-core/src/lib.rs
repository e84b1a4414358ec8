#![doc = include_str!("../README.md")]
//!
//! ## Where to start
//! - **Users**: [`LockClient`] makes [`Mutex`], [`RwLock`] and [`Semaphore`], whose [`LockGuard`]s
//!   execute a deadline and a [`FencingToken`].
//! - **Implementors**: [`LockBackend`] and [`Lease`]; [`session`] where many locks share one
//!   liveness; [`url`].
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

pub use async_trait::async_trait;

pub use crate::{
    acquisition_id::AcquisitionId,
    backend::{Attempt, BoxFuture, Contention, KeepAlive, Lease, LockBackend, Released, SessionId},
    capability::{
        Capabilities, Expiry, Fairness, Fencing, LossDetection, Restart, WaiterNotification,
    },
    client::{LockClient, LockClientBuilder},
    clock::{AtomicDeadline, Clock, ClockDrift, Deadline, SystemClock, TestClock, Timestamp},
    credentials::{Credentials, CredentialsProvider},
    driver_thread::{DriverThread, on_driver_thread},
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    guard::{LeaseInfo, LockGuard, SemaphorePermit},
    inspection::{
        HolderConnection, HolderRef, Inspection, NodeStatus, Pong, Revocation, RevokeOutcome,
        WaiterRef,
    },
    key::LockKey,
    label::default_label,
    lazy::LazyBackend,
    mode::Mode,
    mutex::Mutex,
    options::Renewal,
    panics::{contained, supervised},
    reentrant::ReentrantOwner,
    release_tracker::ReleaseTracker,
    request::{LossNotifier, Request},
    retry::acquire_with_retry,
    retry_budget::RetryBudget,
    runtime::check_runtime,
    rwlock::RwLock,
    semaphore::Semaphore,
    signal::LossReason,
    ttl::Ttl,
};
