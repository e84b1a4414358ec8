//! The test that every pair of clients runs.

use leasehold_core::{LockClient, Mutex, Released};
use leasehold_integration::{foreign::Foreign, steps::SOON};

use crate::support::{A_WHILE, keeps_waiting};

/// Asserts mutual exclusion on one lock between the library and another client: each refuses and
/// keeps waiting while the other holds, and each is granted when the other releases.
pub(crate) async fn exclude_each_other(client: &LockClient, name: &str, foreign: &mut Foreign) {
    let mutex = client.mutex(name);

    foreign.lock().await.unwrap();
    assert!(mutex.try_lock().await.unwrap().is_none());
    let guard = taken_after(&mutex, async {
        assert!(
            foreign.release().await.unwrap(),
            "the other client did not hold the lock"
        );
    })
    .await;

    assert!(
        !foreign.try_lock().await.unwrap(),
        "the library holds the lock"
    );
    foreign.begin_lock().unwrap();
    keeps_waiting(foreign).await;
    assert!(guard.is_held());
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
}

/// Waits in the library while another client holds, and asserts the grant after `release`.
async fn taken_after(
    mutex: &Mutex,
    release: impl Future<Output = ()>,
) -> leasehold_core::LockGuard {
    let waiting = tokio::spawn({
        let mutex = mutex.clone();
        async move { mutex.lock().await }
    });
    tokio::time::sleep(A_WHILE).await;
    assert!(!waiting.is_finished(), "another client holds the lock");
    release.await;
    tokio::time::timeout(SOON, waiting)
        .await
        .expect("the free lock was not granted")
        .unwrap()
        .unwrap()
}
