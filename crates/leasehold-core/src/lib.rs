#![doc = include_str!("../README.md")]
//!
//! ## Where to start
//! - **Users**: [`LockClient`] makes [`Mutex`], [`RwLock`] and [`Semaphore`], whose [`LockGuard`]s
//!   carry a deadline and a [`FencingToken`]. [`LockClient::all`] locks several keys together, and
//!   [`LockClient::election`] makes one of several processes the leader.
//! - **Implementors**: [`backend`] has the contract. [`session`] helps where many locks belong to
//!   one session, and [`url`] with URLs.
//! - **Quorums**: [`quorum`] makes one lock of an odd number of backends.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
mod client;
mod clock;
mod context;
mod election;
mod error;
mod fencing;
mod key;
mod label;
mod lease;
mod local_queue;
mod lock;
mod mode;
pub mod once;
mod panics;
pub mod quorum;
mod runtime;
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
    backend::{
        acquisition_id::AcquisitionId,
        capability::{
            Capabilities, Expiry, Fairness, Fencing, LossDetection, Records, Restart,
            WaiterNotification,
        },
        credentials::{Credentials, CredentialsProvider},
        inspection::{
            HolderConnection, HolderRef, Inspection, NodeStatus, Pong, Revocation, RevokeOutcome,
            WaiterRef,
        },
        lease::Released,
        record::Record,
    },
    client::{builder::LockClientBuilder, handle::LockClient, record::RecordWatch},
    clock::{Clock, ClockDrift, Deadline, SystemClock, TestClock, Timestamp},
    election::{
        handle::Election,
        leader::{Leader, Leaders},
        term::{Term, TermInfo},
    },
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    key::LockKey,
    label::default_label,
    lease::held_lease::Renewal,
    lock::{
        all::{All, AllGuard, AllInfo},
        guard::{LeaseInfo, LockGuard, SemaphorePermit},
        mutex::Mutex,
        reentrant::ReentrantOwner,
        rwlock::RwLock,
        semaphore::Semaphore,
    },
    mode::Mode,
    signal::LossReason,
    ttl::Ttl,
};
