//! From a URL to a backend.

use std::{sync::Arc, time::Duration};

use leasehold::{LockBackend, LockClient, local::FileBackend};

use crate::{exit::Failure, schemes};

/// Longer than any time-out of a backend that answers at all.
const PATIENCE: Duration = Duration::from_secs(2);

/// The backend at this URL. Programs that are started while a file lock is held inherit it: if we
/// are killed, they hold on.
pub(crate) async fn open(url: &str) -> Result<Arc<dyn LockBackend>, Failure> {
    schemes::check(url)?;
    match leasehold::file_options(url)? {
        Some((dir, config)) => Ok(Arc::new(FileBackend::open_with(
            dir,
            config.with_inherited_by_children(true),
        )?)),
        None => Ok(leasehold::backend(url).await?),
    }
}

/// A client for questions.
pub(crate) async fn client(url: &str) -> Result<LockClient, Failure> {
    Ok(LockClient::new(open(url).await?))
}

/// Gives everything back, unless the backend takes too long: what is held then expires.
pub(crate) async fn close(client: &LockClient) {
    // There is nobody left who could do better.
    drop(tokio::time::timeout(PATIENCE, client.close()).await);
}
