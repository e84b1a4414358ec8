//! The tokio runtime that the client needs.

use std::{panic::catch_unwind, time::Duration};

use tokio::runtime::Handle;

use crate::error::{Error, ErrorKind, Result};

/// Checks that a runtime of tokio with a timer is entered. Without one a driver would panic.
///
/// # For implementors
/// Call it before you connect. The client calls it before each operation.
///
/// # Errors
/// [`ErrorKind::Runtime`], with the remedy.
///
/// ```
/// use leasehold_core::{ErrorKind, check_runtime};
///
/// assert_eq!(check_runtime().unwrap_err().kind(), ErrorKind::Runtime);
/// ```
pub fn check_runtime() -> Result<()> {
    current()?;
    if has_timer() {
        Ok(())
    } else {
        Err(without_timer())
    }
}

/// Returns the runtime that is entered.
pub(crate) fn current() -> Result<Handle> {
    Handle::try_current().map_err(|source| {
        Error::new(
            ErrorKind::Runtime,
            "locks need a tokio runtime with its timer enabled; none is entered here",
        )
        .with_source(source)
    })
}

pub(crate) fn without_timer() -> Error {
    Error::new(
        ErrorKind::Runtime,
        "this tokio runtime has no timer, and no lock would be renewed; build it with `enable_time` or `enable_all`",
    )
}

/// Returns whether the current runtime has a timer. Tokio has no way to ask: without one, a sleep
/// panics, and the panic hook prints that.
pub(crate) fn has_timer() -> bool {
    catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok()
}
