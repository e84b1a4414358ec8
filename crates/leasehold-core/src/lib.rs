#![doc = include_str!("../README.md")]
//!
//! ## Where to start
//! - **Users**: [`LockClient`] makes [`Mutex`], [`RwLock`] and [`Semaphore`], whose [`LockGuard`]s carry a deadline and a
//!   [`FencingToken`].
//! - **Implementors**: [`LockBackend`] and [`Lease`]; [`session`] where many locks share one liveness; [`url`].
#![cfg_attr(docsrs, feature(doc_cfg))]

mod acquire;
mod asker;
mod attempts;
mod backend;
mod backlog;
mod capability;
mod client;
mod clock;
mod contain;
mod credentials;
mod driven;
mod driver_thread;
mod error;
mod fencing;
mod gate;
mod guard;
mod hold;
mod inspection;
mod keeper;
mod key;
mod label;
mod lazy;
mod mode;
mod mutex;
mod options;
mod owner;
mod patience;
pub mod quorum;
mod random;
mod reentrant;
mod release;
mod release_state;
mod request;
mod run;
mod runtime;
mod rwlock;
mod semaphore;
pub mod session;
mod signal;
mod telemetry;
pub mod text;
mod trouble;
mod ttl;
pub mod url;

pub use async_trait::async_trait;

pub use crate::{
    attempts::acquire_by_attempts,
    backend::{Attempt, BoxFuture, Contention, Lease, LockBackend, Released, SessionId, TokenVote, Upkeep},
    capability::{Capabilities, Expiry, Fairness, Fencing, LossSignal, Restart, Wakeup},
    client::{LockClient, LockClientBuilder},
    clock::{Clock, Deadline, Drift, LiveDeadline, Moment, SystemClock, TestClock},
    contain::{contained, supervised},
    credentials::{Credentials, CredentialsProvider},
    driver_thread::{DriverThread, on_driver_thread},
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    guard::{LeaseView, LockGuard},
    inspection::{Broken, HolderConnection, HolderRef, Inspection, NodeStatus, Pong, WaiterRef},
    key::LockKey,
    label::default_label,
    lazy::LazyBackend,
    mode::Mode,
    mutex::Mutex,
    options::{Renewal, Wait},
    owner::OwnerId,
    patience::{Elapsed, Patience, Within},
    reentrant::Owner,
    release_state::ReleaseState,
    request::{LossSink, Request},
    runtime::check_runtime,
    rwlock::RwLock,
    semaphore::Semaphore,
    signal::LossReason,
    trouble::Trouble,
    ttl::Ttl,
};
