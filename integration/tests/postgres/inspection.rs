//! Inspection of names that are not keys of the scheme.

use leasehold_core::{ErrorKind, Mode};
use leasehold_integration::{panics::nothing_panicked, server::PostgresServer};

use crate::support::client_of;

const TTL: u64 = 3000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semaphore_is_listed_although_its_name_is_no_lock_key() {
    let server = PostgresServer::start().unwrap();
    for keys in ["int64", "int32-pair"] {
        let client = client_of(&format!("{}?keys={keys}", server.url()), TTL).await;
        assert_eq!(
            client.mutex("gpu").try_lock().await.unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        let seen = client.inspect("gpu").await.unwrap();
        assert!(
            seen.holders.is_empty() && seen.waiters.is_empty(),
            "{keys}: {seen:?}"
        );
        let permit = client
            .semaphore("gpu", 2)
            .try_acquire()
            .await
            .unwrap()
            .unwrap();
        let seen = client.inspect("gpu").await.unwrap();
        let [holder] = &seen.holders[..] else {
            panic!("{keys}: {seen:?}")
        };
        assert!(
            matches!(holder.mode, Some(Mode::Permit { of }) if of.get() == 2),
            "{keys}: {holder:?}"
        );
        permit.release().await.unwrap();
        // Valid names can be inspected as usual.
        let name = if keys == "int64" { "42" } else { "4,2" };
        let guard = client.mutex(name).lock().await.unwrap();
        let seen = client.inspect(name).await.unwrap();
        assert_eq!(
            seen.holders
                .iter()
                .map(|holder| holder.mode)
                .collect::<Vec<_>>(),
            [Some(Mode::Exclusive)],
            "{keys}"
        );
        guard.release().await.unwrap();
    }
    nothing_panicked();
}
