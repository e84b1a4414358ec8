//! Clients for the backend at a URL.

use std::{path::PathBuf, sync::Arc, time::Duration};

use leasehold::{LockClient, backend::LockBackend, local::FileBackend};
use tokio::time::timeout;

use crate::{exit::Failure, schemes, stderr};

/// Longer than a backend needs that answers at all.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// A backend that has not closed after this time must answer a ping within this time.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// The time between two looks whether a directory exists.
const CREATION_INTERVAL: Duration = Duration::from_secs(1);

/// Opens the backend at `url`.
///
/// A program that is started while a file lock is held inherits the lock: if this command is
/// killed, the program still holds it.
pub(crate) async fn open(url: &str) -> Result<Arc<dyn LockBackend>, Failure> {
    schemes::check(url)?;
    match leasehold::file_options(url)? {
        Some((dir, config)) => Ok(Arc::new(FileBackend::open_with(
            dir,
            config.with_inherited_by_children(true),
        )?)),
        None => Ok(leasehold::backend::connect(url).await?),
    }
}

/// Opens the backend at `url` for a client that takes no locks.
///
/// Such a client creates no directory. If the one of a `file:` URL does not exist, this is
/// reported, and the result is `None`. A lock whose directory was removed while it was held is not
/// found.
pub(crate) async fn client(url: &str) -> Result<Option<LockClient>, Failure> {
    schemes::check(url)?;
    if let Some(dir) = missing_directory(url)? {
        stderr::report(&format!(
            "the directory {} does not exist; the first `leasehold run` creates it",
            dir.display()
        ));
        return Ok(None);
    }
    Ok(Some(LockClient::new(open(url).await?)))
}

/// Waits until the directory of a `file:` URL exists, and opens the backend there.
pub(crate) async fn client_once_created(url: &str) -> Result<LockClient, Failure> {
    while missing_directory(url)?.is_some() {
        tokio::time::sleep(CREATION_INTERVAL).await;
    }
    Ok(LockClient::new(open(url).await?))
}

/// Returns the directory of a `file:` URL if it does not exist.
fn missing_directory(url: &str) -> Result<Option<PathBuf>, Failure> {
    let dir = leasehold::file_options(url)?.map(|(dir, _)| dir);
    Ok(dir.filter(|dir| matches!(dir.try_exists(), Ok(false))))
}

/// Closes the client. Locks that a slow backend cannot release in time expire, and a backend that
/// does not answer is not waited for.
pub(crate) async fn close(client: &LockClient) {
    tokio::select! {
        biased;
        // The command ends: nothing could be done about a failure.
        closed = timeout(CLOSE_TIMEOUT, client.close()) => drop(closed),
        () = silence(client.backend().as_ref()) => {
            stderr::report("the backend does not answer; a lock or a wait that it still has expires");
        }
    }
}

/// Completes if the backend does not answer.
async fn silence(backend: &dyn LockBackend) {
    tokio::time::sleep(ANSWER_TIMEOUT).await;
    let is_silent = match timeout(ANSWER_TIMEOUT, backend.ping()).await {
        Ok(answer) => answer.is_err_and(|error| error.is_retryable()),
        Err(_elapsed) => true,
    };
    if !is_silent {
        std::future::pending::<()>().await;
    }
}
