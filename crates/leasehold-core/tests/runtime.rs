//! The runtimes on which a client can be used.

use std::{sync::Arc, time::Duration};

use leasehold_core::{Error, ErrorKind, HolderRef, LockClient, LockKey, Revocation};
use leasehold_local::{FileBackend, MemoryBackend};

fn is_refused<T: std::fmt::Debug>(outcome: Result<T, Error>) {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongRuntime);
    assert!(error.message().contains("enable_time"), "{error}");
}

#[test]
fn a_runtime_without_a_timer_is_refused_typed() {
    let dir = tempfile::tempdir().unwrap();
    let files = LockClient::new(FileBackend::open(dir.path()).unwrap());
    let shared = Arc::new(MemoryBackend::new());
    let without = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for client in [LockClient::new(Arc::clone(&shared)), files] {
        without.block_on(async {
            let (mutex, owner, second) = (
                client.mutex("a"),
                client.reentrant_owner(),
                Duration::from_secs(1),
            );
            is_refused(mutex.lock().await);
            is_refused(mutex.try_lock().await);
            is_refused(mutex.lock_timeout(second).await);
            is_refused(mutex.lock_timeout(Duration::ZERO).await);
            is_refused(mutex.run(async |_| ()).await);
            is_refused(client.rwlock("a").read_timeout(second).await);
            is_refused(client.semaphore("a", 1).acquire_timeout(second).await);
            is_refused(owner.lock("a").await);
            is_refused(owner.lock_timeout("a", second).await);
            is_refused(client.inspect("a").await);
            is_refused(
                client
                    .revoke(
                        &HolderRef::new(LockKey::new("a").unwrap(), "x"),
                        Revocation::Immediate,
                    )
                    .await,
            );
            is_refused(client.close().await);
        });
    }
    // Nothing is left locked, and other clients can use the backend.
    let with = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    with.block_on(async {
        drop(
            LockClient::new(shared)
                .mutex("a")
                .try_lock()
                .await
                .unwrap()
                .unwrap(),
        );
    });
}
