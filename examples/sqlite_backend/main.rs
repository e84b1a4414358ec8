//! Uses a third-party backend, which stores locks in a SQLite file (`backend.rs`).
//!
//! The program acquires a lock, shows that another client is refused meanwhile, and lets eight
//! tasks count under the lock.
//!
//! ```console
//! $ cargo run --release --example sqlite_backend
//! $ cargo run --release --example sqlite_backend -- locks.db
//! ```
//!
//! Two processes that are started with the same file exclude each other.

use leasehold::{LockClient, Result};
use leasehold_sqlite_example::SqliteBackend;

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = std::env::args_os()
        .nth(1)
        .map_or_else(|| folder.path().join("locks.db"), Into::into);
    let client = LockClient::new(SqliteBackend::open(&path).await?);
    let other = LockClient::new(SqliteBackend::open(&path).await?);
    println!("{}", client.capabilities().endpoint);

    let guard = client.mutex("count").lock().await?;
    println!(
        "one client holds `count` under token {}",
        guard
            .fencing_token()
            .map_or(0, leasehold::FencingToken::get)
    );
    let refused = other.mutex("count").try_lock().await?;
    assert!(refused.is_none());
    println!("another client is refused");
    guard.release().await?;

    let count = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let (client, count) = (
            if task % 2 == 0 {
                client.clone()
            } else {
                other.clone()
            },
            count.clone(),
        );
        tasks.spawn(async move {
            for _ in 0..5 {
                let guard = client.mutex("count").lock().await?;
                // A separate read and write are safe only under the lock.
                let read = count.load(std::sync::atomic::Ordering::Relaxed);
                tokio::task::yield_now().await;
                count.store(read + 1, std::sync::atomic::Ordering::Relaxed);
                guard.release().await?;
            }
            Ok(())
        });
    }
    tasks.join_all().await.into_iter().collect::<Result<()>>()?;
    println!(
        "8 tasks of two clients counted to {} of 40",
        count.load(std::sync::atomic::Ordering::Relaxed)
    );
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 40);
    client.close().await?;
    other.close().await
}
