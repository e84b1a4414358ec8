//! Properties that must not change unnoticed: auto traits, dyn-safety, and sizes that users pay
//! for.

use std::sync::Arc;

use leasehold_core::{
    Error, LeaseInfo, LockClient, LockGuard, LockKey, Mutex, ReentrantOwner, RwLock, Semaphore,
    SemaphorePermit,
    backend::{Lease, LockBackend, Request},
};

const fn send_sync_static<T: Send + Sync + 'static>() {}
const fn cloneable<T: Clone>() {}
const fn a_backend<T: LockBackend>() {}

const _: () = {
    send_sync_static::<LockClient>();
    send_sync_static::<LockGuard>();
    send_sync_static::<SemaphorePermit>();
    send_sync_static::<LeaseInfo>();
    send_sync_static::<Mutex>();
    send_sync_static::<RwLock>();
    send_sync_static::<Semaphore>();
    send_sync_static::<ReentrantOwner>();
    send_sync_static::<Error>();
    send_sync_static::<Request>();
    send_sync_static::<Arc<dyn LockBackend>>();
    send_sync_static::<Arc<dyn Lease>>();
    cloneable::<LockClient>();
    cloneable::<Error>();
    a_backend::<Arc<dyn LockBackend>>();
    a_backend::<Arc<Arc<dyn LockBackend>>>();
};

#[test]
fn futures_of_the_primitives_can_be_spawned() {
    fn send<T: Send>(_: &T) {}
    let client = LockClient::new(leasehold_local::MemoryBackend::new());
    let (mutex, rwlock, semaphore) = (
        client.mutex("a"),
        client.rwlock("a"),
        client.semaphore("a", 1),
    );
    send(&mutex.lock());
    send(&mutex.lock_timeout(std::time::Duration::ZERO));
    send(&mutex.run(async |_| ()));
    send(&rwlock.write());
    send(&semaphore.acquire());
    send(&client.close());
    send(&client.reentrant_owner().lock(LockKey::new("a").unwrap()));
}

#[test]
fn an_error_is_as_small_as_a_pointer() {
    assert_eq!(size_of::<Error>(), size_of::<usize>());
}
