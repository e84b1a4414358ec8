//! Containment of panics in foreign code: backends, metrics recorders and tracing subscribers.
//!
//! A panic that unwinds between a grant and its guard, or between a guard and its release, leaves a
//! lease without an owner. So foreign code never unwinds through the client. A panic in a backend's
//! call is an error of that call. A panic in a recorder or a subscriber loses what it should
//! record.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt;

use crate::{
    backend::{BoxFuture, KeepAlive, Lease, Released},
    clock::{Deadline, Timestamp},
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
};

/// The pause before a task that panicked is started again. A task that panics at once fills no log.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Runs foreign code. Returns `None` if it panicked, which the panic hook has reported by then.
pub(crate) fn contain<T>(foreign: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(foreign)).ok()
}

/// Drives a future to its end. A panic in it becomes its error.
///
/// # For implementors
/// For what others wait for, in a background task: they are told of the error, and the task goes
/// on.
///
/// # Errors
/// [`ErrorKind::Indeterminate`] after a panic; otherwise as `work`.
///
/// # Cancel safety
/// That of `work`.
pub async fn contained<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(work)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// Runs a background task to its end. After a panic the task is started again, with a pause of one
/// second.
///
/// # For implementors
/// For a task that the client needs for as long as it lives. `start` is called for each run, and
/// finds what the last run has left: the task must be able to go on from there.
///
/// # Cancel safety
/// That of the task.
pub async fn supervised<Fut: Future<Output = ()>>(mut start: impl FnMut() -> Fut) {
    while let Err(error) = contained(finished(&mut start)).await {
        contain(
            || tracing::error!(target: "leasehold", %error, "a background task panicked and is started again"),
        );
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

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

/// Starts a task and runs it to its end. It may panic before there is a future.
async fn finished<Fut: Future<Output = ()>>(start: &mut impl FnMut() -> Fut) -> Result<()> {
    start().await;
    Ok(())
}

/// A call of a backend. A panic in it becomes its error, and its future is never polled again.
#[must_use]
pub(crate) struct Call<T>(Option<BoxFuture<'static, Result<T>>>);

impl<T: Send + 'static> Call<T> {
    /// Starts a call. A backend may panic before it returns a future.
    pub(crate) fn of(start: impl FnOnce() -> BoxFuture<'static, Result<T>>) -> Self {
        let call = catch_unwind(AssertUnwindSafe(start));
        Self(Some(call.unwrap_or_else(|panic| {
            Box::pin(std::future::ready(Err(panicked(&*panic))))
        })))
    }
}

impl<T> Future for Call<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(call) = &mut self.0 else {
            return Poll::Pending;
        };
        let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)));
        if matches!(polled, Ok(Poll::Pending)) {
            return Poll::Pending;
        }
        let over = self.0.take();
        // The destructor is the backend's code, too.
        let _dropped = contain(|| drop(over));
        polled.unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))))
    }
}

/// A lease whose methods do not panic.
#[derive(Clone, Debug)]
pub(crate) struct ContainedLease(Arc<dyn Lease>);

impl ContainedLease {
    pub(crate) fn new(lease: Arc<dyn Lease>) -> Self {
        Self(lease)
    }

    /// Returns the token and the keep_alive, which never change.
    pub(crate) fn facts(&self) -> Result<(Option<FencingToken>, KeepAlive)> {
        let facts = catch_unwind(AssertUnwindSafe(|| {
            (self.0.fencing_token(), self.0.keep_alive())
        }));
        facts.map_err(|panic| panicked(&*panic))
    }

    /// Returns the deadline. A lease that panics instead has expired.
    pub(crate) fn valid_until(&self) -> Deadline {
        contain(|| self.0.valid_until()).unwrap_or(Deadline::at(Timestamp::from_nanos(0)))
    }

    /// Calls [`Lease::renew`].
    pub(crate) fn renew(&self) -> Call<()> {
        Call::of(|| Arc::clone(&self.0).renew())
    }

    /// Calls [`Lease::release`].
    pub(crate) fn release(&self) -> Call<Released> {
        Call::of(|| Arc::clone(&self.0).release())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_until_it_ends() {
        let mut runs = 0;
        supervised(|| {
            runs += 1;
            assert!(runs != 1, "told to panic before its first poll");
            let run = runs;
            async move { assert!(run != 2, "told to panic") }
        })
        .await;
        assert_eq!(runs, 3);
    }
}
