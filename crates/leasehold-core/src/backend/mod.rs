//! The contract of backends: [`LockBackend`] grants [`Lease`]s.
//!
//! A backend implements these two traits. It reads a [`Request`], answers with an [`Attempt`], and
//! keeps the deadline of a lease in an [`AtomicDeadline`]. Types that users need as well, such as
//! [`Capabilities`](crate::Capabilities), are in the root of the crate. The module
//! [`session`](crate::session) helps backends whose server has sessions.

pub(crate) mod acquisition_id;
pub(crate) mod attempt;
pub(crate) mod backend_errors;
pub(crate) mod batch;
pub(crate) mod capability;
pub(crate) mod contract;
pub(crate) mod credentials;
pub(crate) mod driver_thread;
pub(crate) mod inspection;
pub(crate) mod lazy;
pub(crate) mod lease;
pub(crate) mod record;
pub(crate) mod release_tracker;
pub(crate) mod request;
pub(crate) mod retry;
pub(crate) mod stored_record;

pub use async_trait::async_trait;

pub use self::{
    attempt::{Attempt, Contention},
    contract::LockBackend,
    lease::{BoxFuture, KeepAlive, Lease, Released, SessionId},
    record::{RecordRead, RecordReading, RecordWrite},
};
pub use crate::{
    backend::{
        lazy::LazyBackend,
        request::{LossNotifier, Request, Waiting},
        retry::acquire_with_retry,
    },
    clock::AtomicDeadline,
};

/// Helpers that the backends of this workspace share. A backend may use them, and none has to.
pub mod support {
    pub use crate::{
        backend::{
            backend_errors::{BackendErrors, SideEffect},
            batch::{BatchExecutor, BatchLimits, Batcher},
            driver_thread::{DriverThread, on_driver_thread},
            release_tracker::ReleaseTracker,
            retry::RetryBudget,
            stored_record::{StoredRecord, record_label},
        },
        panics::{contained, supervised},
        runtime::check_runtime,
    };
}
