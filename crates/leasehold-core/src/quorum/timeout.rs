//! The timeouts of single calls to nodes.

use std::time::Duration;

use crate::{
    error::{Error, ErrorKind, Result},
    panics::contained,
};

/// The time within which a node must report its state. A node that does not is read again later.
pub(super) const STATE_TIMEOUT: Duration = Duration::from_secs(3);

/// Waits at most `timeout` for a call. A call that takes longer continues in the background.
pub(super) async fn within<T: Send + 'static>(
    timeout: Duration,
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::time::timeout(timeout, tokio::spawn(contained(call))).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(Error::new(
            ErrorKind::Unavailable,
            "the runtime is shutting down",
        )),
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("no answer within {timeout:?}"),
        )),
    }
}
