//! Containment of panics in foreign code: backends, metrics recorders and tracing subscribers.
//!
//! A panic that unwound between a grant and the creation of its guard, or between a guard and its
//! release, would leave a lease without an owner. Panics of foreign code therefore never unwind
//! through the client. A panic in a call of a backend becomes an error of that call. A panic in a
//! recorder or a subscriber loses only the record.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};

use crate::error::{Error, ErrorKind, Result};

/// The delay before a task that panicked is restarted, so that a task that always panics does not
/// flood the log.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Runs foreign code. Returns `None` if it panicked, in which case the panic hook has reported it.
pub(crate) fn contain<T>(foreign: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(foreign)).ok()
}

/// Runs code of a backend and turns a panic into an error.
pub(crate) fn catch<T>(foreign: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(foreign)).map_err(|panic| panicked(&*panic))
}

/// Drives a future to completion and turns a panic into an error.
///
/// # For implementors
/// Use it in a background task whose results others wait for. They receive the error, and the task
/// continues.
///
/// # Errors
/// Returns [`ErrorKind::Indeterminate`] after a panic, and otherwise the error of `work`.
///
/// # Cancel safety
/// Cancel safe if `work` is.
pub async fn contained<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(work)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// A call of a backend. A panic becomes the error of the call, and the future is not polled again.
#[must_use]
pub(crate) struct Call<T>(Option<BoxFuture<'static, Result<T>>>);

impl<T: Send + 'static> Call<T> {
    /// Starts a call. A backend may panic before it returns a future.
    pub(crate) fn of(start: impl FnOnce() -> BoxFuture<'static, Result<T>>) -> Self {
        let call = catch(start);
        Self(Some(call.unwrap_or_else(|error| {
            Box::pin(std::future::ready(Err(error)))
        })))
    }
}

impl<T> Future for Call<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(call) = &mut self.0 else {
            return Poll::Pending;
        };
        let polled = catch(|| call.as_mut().poll(cx));
        if matches!(polled, Ok(Poll::Pending)) {
            return Poll::Pending;
        }
        let over = self.0.take();
        // The destructor of the future is code of the backend, too.
        let _dropped = contain(|| drop(over));
        polled.unwrap_or_else(|error| Poll::Ready(Err(error)))
    }
}

/// Runs a background task to completion. A task that panics is restarted after one second.
///
/// # For implementors
/// Use it for a task that the client needs as long as it lives. `start` is called for each run. A
/// run must be able to continue from the state that the previous run left.
///
/// # Cancel safety
/// Cancel safe if the task is.
pub async fn supervised<Fut: Future<Output = ()>>(mut start: impl FnMut() -> Fut) {
    while let Err(error) = contained(finished(&mut start)).await {
        contain(
            || tracing::error!(target: "leasehold", %error, "a background task panicked and is restarted"),
        );
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

/// Returns the error of a call that panicked.
fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&'static str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("no message");
    // The operation may have taken effect before the panic.
    Error::new(
        ErrorKind::Indeterminate,
        format!("the backend panicked: {text}"),
    )
}

/// Starts a task and runs it to completion. `start` may panic before it returns a future.
async fn finished<Fut: Future<Output = ()>>(start: &mut impl FnMut() -> Fut) -> Result<()> {
    start().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_until_it_ends() {
        let mut runs = 0;
        supervised(|| {
            runs += 1;
            assert!(runs != 1, "panics on purpose before its first poll");
            let run = runs;
            async move { assert!(run != 2, "panics on purpose") }
        })
        .await;
        assert_eq!(runs, 3);
    }
}
