//! Steps of tests that use a backend without a client. They panic if they fail.

use std::{sync::Arc, time::Instant};

use leasehold_core::{
    Released,
    backend::{Attempt, Lease, LockBackend, RecordWrite, Request},
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::steps::{SOON, is_a_fault, millis};

/// Acquires a lock, or waits for it.
///
/// # Panics
/// It is not granted within [`SOON`].
pub async fn acquired<B: LockBackend>(backend: &Arc<B>, request: Request) -> Arc<dyn Lease> {
    let acquired = timeout(SOON, Arc::clone(backend).acquire(request)).await;
    acquired.expect("not granted").unwrap()
}

/// Starts to acquire a lock.
pub fn acquiring<B: LockBackend>(backend: &Arc<B>, request: Request) -> JoinHandle<Arc<dyn Lease>> {
    let backend = Arc::clone(backend);
    tokio::spawn(async move { acquired(&backend, request).await })
}

/// Waits for the grant of a lock that a task [acquires](acquiring).
///
/// # Panics
/// It is not granted within [`SOON`].
pub async fn granted(acquiring: JoinHandle<Arc<dyn Lease>>) -> Arc<dyn Lease> {
    let granted = timeout(SOON, acquiring).await;
    granted.expect("not granted").unwrap()
}

/// Tries to acquire a lock, and returns whether it is refused. If it is granted, releases it.
///
/// # Panics
/// The attempt fails.
pub async fn is_refused<B: LockBackend>(backend: &Arc<B>, request: Request) -> bool {
    match Arc::clone(backend).try_acquire(request).await.unwrap() {
        Attempt::Contended(_) => true,
        Attempt::Granted(lease) => {
            free(lease).await;
            false
        }
    }
}

/// Releases a lease.
///
/// # Panics
/// It was lost before.
pub async fn free(lease: Arc<dyn Lease>) {
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
}

/// Returns a write of this value.
///
/// # Panics
/// The value is too long.
#[must_use]
pub fn write(sequence: u64, value: impl AsRef<[u8]>) -> RecordWrite {
    RecordWrite::new(sequence, value).unwrap()
}

/// Makes a write, and returns its version.
///
/// # Panics
/// It fails.
pub async fn written(lease: &Arc<dyn Lease>, write: RecordWrite) -> u64 {
    Arc::clone(lease).write_record(write).await.unwrap()
}

/// Repeats a write until it is answered, and returns its version.
///
/// # Panics
/// The error follows no fault, or [`SOON`] has passed.
pub async fn settled(lease: &Arc<dyn Lease>, write: &RecordWrite) -> u64 {
    let begun = Instant::now();
    loop {
        match Arc::clone(lease).write_record(write.clone()).await {
            Ok(version) => return version,
            Err(error) => assert!(
                is_a_fault(error.kind()) && begun.elapsed() < SOON,
                "{error:?}"
            ),
        }
        sleep(millis(20)).await;
    }
}
