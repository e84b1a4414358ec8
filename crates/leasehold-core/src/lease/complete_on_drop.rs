//! [`CompleteOnDrop`]: a backend's future that is completed in the background if it is dropped.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{
    backend::{
        attempt::Attempt,
        contained::{Call, ContainedLease},
        inspection::{Inspection, Pong, RevokeOutcome},
        lease::{BoxFuture, Lease},
        request::Request,
    },
    context::ClientContext,
    error::{ErrorKind, Result},
    lease::detached_release::release_grant,
};

/// The outcome of a backend's operation, with the lease to release if the caller is gone.
pub(crate) trait IntoLease: Send + 'static {
    fn lease(self) -> Option<Arc<dyn Lease>>;
}

impl IntoLease for Arc<dyn Lease> {
    fn lease(self) -> Option<Arc<dyn Lease>> {
        Some(self)
    }
}

impl IntoLease for Attempt {
    fn lease(self) -> Option<Arc<dyn Lease>> {
        match self {
            Self::Granted(lease) => Some(lease),
            Self::Contended(_) => None,
        }
    }
}

macro_rules! without_lease {
    ($($outcome:ty),*) => {$(
        impl IntoLease for $outcome {
            fn lease(self) -> Option<Arc<dyn Lease>> {
                None
            }
        }
    )*};
}
without_lease!((), Inspection, RevokeOutcome, Pong);

/// A future of a backend that completes in the background if the caller drops it.
///
/// If an acquisition is dropped, its request is cancelled, and a lock that is granted nevertheless
/// is released. An operation that panics ends with an error and is not polled again.
#[must_use]
pub(crate) struct CompleteOnDrop<'a, T: IntoLease> {
    context: &'a Arc<ClientContext>,
    /// The request to cancel, if the operation is an acquisition.
    request: Option<&'a Request>,
    operation: Option<Call<T>>,
}

impl<'a, T: IntoLease> CompleteOnDrop<'a, T> {
    pub(crate) fn acquisition(
        context: &'a Arc<ClientContext>,
        request: &'a Request,
        operation: impl FnOnce() -> BoxFuture<'static, Result<T>>,
    ) -> Self {
        Self {
            context,
            request: Some(request),
            operation: Some(Call::of(operation)),
        }
    }

    /// Wraps an operation that is not an acquisition and ends by itself.
    pub(crate) fn short(context: &'a Arc<ClientContext>, operation: Call<T>) -> Self {
        Self {
            context,
            request: None,
            operation: Some(operation),
        }
    }
}

impl<T: IntoLease> Future for CompleteOnDrop<'_, T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(operation) = &mut this.operation else {
            return Poll::Pending;
        };
        match Pin::new(operation).poll(cx) {
            Poll::Ready(outcome) => {
                this.operation = None;
                Poll::Ready(outcome.map_err(|error| {
                    let refusal = this
                        .context
                        .refusal()
                        .filter(|_| error.kind() == ErrorKind::Cancelled);
                    if let Some(refusal) = refusal {
                        refusal
                    } else if error.backend().is_none() {
                        error.with_backend(this.context.capabilities.backend)
                    } else {
                        error
                    }
                }))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T: IntoLease> Drop for CompleteOnDrop<'_, T> {
    fn drop(&mut self) {
        let Some(operation) = self.operation.take() else {
            return;
        };
        let request = self.request.cloned();
        if let Some(request) = &request {
            request.cancel();
        }
        // Spawn the operation itself: if this value were spawned, a runtime that is shutting down
        // would drop it again, without end.
        let context = Arc::clone(self.context);
        self.context.in_background(async move {
            if let (Some(lease), Some(request)) =
                (operation.await.ok().and_then(IntoLease::lease), request)
            {
                release_grant(&context, ContainedLease::new(lease), &request).await;
            }
        });
    }
}
