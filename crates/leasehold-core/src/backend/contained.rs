//! [`Call`] and [`ContainedLease`]: calls of a backend whose panics become errors.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    backend::lease::{BoxFuture, KeepAlive, Lease, Released},
    clock::{Deadline, Timestamp},
    error::Result,
    fencing::FencingToken,
    panics::{contain, panicked},
};

/// A call of a backend. A panic becomes the error of the call, and the future is not polled again.
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
        // The destructor of the future is code of the backend, too.
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

    /// Returns the fencing token and the way of renewal, which never change.
    pub(crate) fn facts(&self) -> Result<(Option<FencingToken>, KeepAlive)> {
        let facts = catch_unwind(AssertUnwindSafe(|| {
            (self.0.fencing_token(), self.0.keep_alive())
        }));
        facts.map_err(|panic| panicked(&*panic))
    }

    /// Returns the deadline. If the lease panics, it counts as expired.
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
