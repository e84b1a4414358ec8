//! Checks of the tokio runtime, and [`Asker`], the task that requests a lock.

use std::{
    panic::catch_unwind,
    thread::{self, ThreadId},
    time::Duration,
};

use tokio::{runtime::Handle, task};

use crate::error::{Error, ErrorKind, Result};

/// Checks that the caller runs in a tokio runtime with a timer. Without one, a driver would panic.
///
/// # For implementors
/// Call it before you connect. The client calls it before each operation.
///
/// # Errors
/// Returns [`ErrorKind::WrongRuntime`] with instructions.
///
/// ```
/// use leasehold_core::{ErrorKind, backend::support::check_runtime};
///
/// assert_eq!(check_runtime().unwrap_err().kind(), ErrorKind::WrongRuntime);
/// ```
pub fn check_runtime() -> Result<()> {
    current()?;
    if has_timer() {
        Ok(())
    } else {
        Err(without_timer())
    }
}

/// Returns the current runtime.
pub(crate) fn current() -> Result<Handle> {
    Handle::try_current().map_err(|source| {
        Error::new(
            ErrorKind::WrongRuntime,
            "locks need a tokio runtime with its timer enabled; none is entered here",
        )
        .with_source(source)
    })
}

pub(crate) fn without_timer() -> Error {
    Error::new(
        ErrorKind::WrongRuntime,
        "this tokio runtime has no timer, so no lock would be renewed; build it with `enable_time` or `enable_all`",
    )
}

/// Returns whether the current runtime has a timer. Tokio has no API for this: a sleep panics
/// without a timer, and the panic hook prints it.
pub(crate) fn has_timer() -> bool {
    catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok()
}

/// The task that requests a lock, or the thread outside of a task, as in the body of
/// `#[tokio::main]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Asker {
    Task(task::Id),
    Thread(ThreadId),
}

impl Asker {
    pub(crate) fn current() -> Self {
        task::try_id().map_or_else(|| Self::Thread(thread::current().id()), Self::Task)
    }
}
