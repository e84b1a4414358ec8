#![doc = include_str!("../README.md")]
//!
//! ## Where to start
//! - **Users**: [`LockClient`] makes [`Mutex`], [`RwLock`] and [`Semaphore`], whose [`LockGuard`]s execute a deadline and a
//!   [`FencingToken`].
//! - **Implementors**: [`LockBackend`] and [`Lease`]; [`session`] where many locks share one liveness; [`url`].
#![cfg_attr(docsrs, feature(doc_cfg))]

mod acquire;
mod asker;
mod retry;
mod backend;
mod background_releases;
mod capability;
mod client;
mod clock;
mod panics;
mod credentials;
mod complete_on_drop;
mod driver_thread;
mod error;
mod fencing;
mod local_queue;
mod guard;
mod held_lease;
mod inspection;
mod renewal;
mod key;
mod label;
mod lazy;
mod mode;
mod mutex;
mod options;
mod acquisition_id;
mod coarse_timeout;
pub mod quorum;
mod random;
mod reentrant;
mod release;
mod release_tracker;
mod request;
mod run;
mod runtime;
mod rwlock;
mod semaphore;
pub mod session;
mod signal;
mod telemetry;
pub mod text;
mod retry_budget;
mod ttl;
pub mod url;

pub use async_trait::async_trait;

pub use crate::{
    retry::acquire_with_retry,
    backend::{Attempt, BoxFuture, Contention, Lease, LockBackend, Released, SessionId, TokenVote, KeepAlive},
    capability::{Capabilities, Expiry, Fairness, Fencing, LossDetection, Restart, WaiterNotification},
    client::{LockClient, LockClientBuilder},
    clock::{Clock, Deadline, ClockDrift, AtomicDeadline, Timestamp, SystemClock, TestClock},
    panics::{contained, supervised},
    credentials::{Credentials, CredentialsProvider},
    driver_thread::{DriverThread, on_driver_thread},
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    guard::{LeaseInfo, LockGuard},
    inspection::{Broken, HolderConnection, HolderRef, Inspection, NodeStatus, Pong, WaiterRef},
    key::LockKey,
    label::default_label,
    lazy::LazyBackend,
    mode::Mode,
    mutex::Mutex,
    options::{Renewal, Wait},
    acquisition_id::AcquisitionId,
    coarse_timeout::{Elapsed, Patience, Within},
    reentrant::Owner,
    release_tracker::ReleaseTracker,
    request::{LossNotifier, Request},
    runtime::check_runtime,
    rwlock::RwLock,
    semaphore::Semaphore,
    signal::LossReason,
    retry_budget::RetryBudget,
    ttl::Ttl,
};
