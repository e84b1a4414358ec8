//! One program for every backend. Only the URL changes.
//!
//! For each URL, the program acquires a mutex and prints its token, is refused while another client
//! holds it, waits until it is released, shares a read lock, acquires permits, and runs work under
//! the lock.
//!
//! ```console
//! $ cargo run --release --example swap_backend
//! $ cargo run --release --example swap_backend --features redis -- redis://127.0.0.1/
//! $ cargo run --release --example swap_backend --features etcd,redis -- \
//!       etcd://127.0.0.1:2379 redis://127.0.0.1/
//! ```
//!
//! Without a URL it uses memory and lock files, which need no server. If a backend does not support
//! an operation, as Redlock does not support permits, the program prints the error.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use leasehold::{ErrorKind, LockClient, Result};

#[tokio::main]
async fn main() -> ExitCode {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut urls: Vec<String> = std::env::args().skip(1).collect();
    if urls.is_empty() {
        // Two clients share a memory backend with a name.
        urls = vec![
            "memory:swap".into(),
            format!("file:{}", folder.path().display()),
        ];
    }
    let mut code = ExitCode::SUCCESS;
    for url in urls {
        // The error contains the URL without its password.
        if let Err(error) = show(&url).await {
            eprintln!("swap_backend: {error}");
            code = ExitCode::FAILURE;
        }
    }
    code
}

/// Runs the program on one backend. Nothing in it depends on the backend.
async fn show(url: &str) -> Result<()> {
    let (client, other) = (
        leasehold::connect(url).await?,
        leasehold::connect(url).await?,
    );
    let capabilities = client.capabilities();
    println!(
        "{}: tokens {}, order {}",
        capabilities.endpoint, capabilities.fencing, capabilities.fairness
    );

    // Each run uses a name of its own, so that runs do not disturb each other.
    let name = format!("swap-backend/{}", std::process::id());
    let guard = client.mutex(&name).lock().await?;
    println!(
        "  held under token {:?}",
        guard.fencing_token().map(leasehold::FencingToken::get)
    );

    let refused = other.mutex(&name).try_lock().await?.is_none();
    println!(
        "  another client: {}",
        if refused { "refused" } else { "NOT REFUSED" }
    );

    let waiting = tokio::spawn({
        let other = other.mutex(&name);
        async move { other.lock().await.map(|guard| (Instant::now(), guard)) }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let released = Instant::now();
    guard.release().await?;
    let (granted, guard) = waiting.await.expect("the task does not panic")?;
    println!(
        "  a waiter was granted the lock {:.1?} after the release began",
        granted - released
    );
    guard.release().await?;

    let ran = client
        .mutex(&name)
        .run(async |lease| lease.is_held())
        .await?;
    println!("  work ran under the lease: {ran}");

    report(
        "two readers at a time",
        readers(&client, &other, &name).await,
    )?;
    report("two permits of three", permits(&client, &name).await)?;

    client.close().await?;
    other.close().await
}

async fn readers(client: &LockClient, other: &LockClient, name: &str) -> Result<()> {
    let name = format!("{name}/catalogue");
    let _one = client.rwlock(&name).read().await?;
    let _two = other.rwlock(&name).read().await?;
    Ok(())
}

async fn permits(client: &LockClient, name: &str) -> Result<()> {
    let name = format!("{name}/tills");
    let _one = client.semaphore(&name, 3).acquire().await?;
    let _two = client.semaphore(&name, 3).acquire().await?;
    Ok(())
}

/// Prints whether an operation is supported. Returns all other errors.
fn report(what: &str, outcome: Result<()>) -> Result<()> {
    match outcome {
        Ok(()) => println!("  {what}: yes"),
        Err(error) if error.kind() == ErrorKind::Unsupported => println!("  {what}: no, {error}"),
        Err(error) => return Err(error),
    }
    Ok(())
}
