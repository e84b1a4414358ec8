//! Clients for the backend at a URL.

use std::{sync::Arc, time::Duration};

use leasehold::{LockClient, backend::LockBackend, local::FileBackend};

use crate::{exit::Failure, schemes};

/// Longer than a backend needs that answers at all.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

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
pub(crate) async fn client(url: &str) -> Result<LockClient, Failure> {
    Ok(LockClient::new(open(url).await?))
}

/// Closes the client. Locks that a slow backend cannot release in time expire.
pub(crate) async fn close(client: &LockClient) {
    // The command ends: nothing could be done about a failure.
    drop(tokio::time::timeout(CLOSE_TIMEOUT, client.close()).await);
}
