//! [`InlineCall`]: work that the task which asks for it drives itself, until another wants its place.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use tokio::{runtime::Handle, sync::oneshot};

use crate::backend::BoxFuture;

/// One work at a time. It ends also if who asked for it stops polling, or goes away: then it is
/// taken to a task of its own.
pub(super) struct InlineCall<T: Send + 'static>(Mutex<Place<T>>);

enum Place<T> {
    Free,
    /// Polled by who asked for it, who is woken by this.
    Here(BoxFuture<'static, T>, Waker),
    /// In a task of its own.
    Away(oneshot::Receiver<T>),
}

impl<T: Send + 'static> InlineCall<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Place::Free))
    }

    /// Drives `work` to its end, from here unless the place is `wanted`; `None` if the runtime
    /// shuts down. Nobody else does at the same time.
    pub(super) async fn drive(
        &self,
        work: BoxFuture<'static, T>,
        wanted: impl Fn() -> bool,
    ) -> Option<T> {
        *self.lock() = Place::Here(work, Waker::noop().clone());
        let _leaving = Leaving(self);
        poll_fn(|cx| {
            let mut place = self.lock();
            // The place is free while its work is polled: work that panics is dropped, and never
            // polled again.
            let polled = match std::mem::replace(&mut *place, Place::Free) {
                Place::Here(mut work, mut waker) => {
                    let polled = work.as_mut().poll(cx);
                    if polled.is_pending() {
                        waker.clone_from(cx.waker());
                        *place = Place::Here(work, waker);
                    }
                    polled.map(Some)
                }
                Place::Away(mut answered) => {
                    let polled = Pin::new(&mut answered).poll(cx);
                    if polled.is_pending() {
                        *place = Place::Away(answered);
                    }
                    polled.map(Result::ok)
                }
                Place::Free => Poll::Ready(None),
            };
            drop(place);
            // Who wants it may have come before it was taken.
            if polled.is_pending() && wanted() {
                self.take_away();
            }
            polled
        })
        .await
    }

    /// Takes what is driven in place to a task of its own.
    pub(super) fn take_away(&self) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut place = self.lock();
        match std::mem::replace(&mut *place, Place::Free) {
            Place::Here(work, waker) => {
                let (answer, answered) = oneshot::channel();
                *place = Place::Away(answered);
                drop(runtime.spawn(async move { drop(answer.send(work.await)) }));
                // From now on it waits for the answer.
                waker.wake();
            }
            other => *place = other,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Place<T>> {
        // Every change under it is complete if something panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Leaving<'a, T: Send + 'static>(&'a InlineCall<T>);

impl<T: Send + 'static> Drop for Leaving<'_, T> {
    fn drop(&mut self) {
        // Who asked may go away half-way: then it goes on elsewhere.
        self.0.take_away();
        *self.0.lock() = Place::Free;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, resume_unwind},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
    };

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn work_that_panics_is_not_polled_again() {
        let (place, polls) = (InlineCall::new(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&polls);
        let work = Box::pin(poll_fn(move |_| -> Poll<()> {
            counted.fetch_add(1, SeqCst);
            resume_unwind(Box::new("told to panic"))
        }));
        assert!(
            AssertUnwindSafe(place.drive(work, || false))
                .catch_unwind()
                .await
                .is_err()
        );
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(polls.load(SeqCst), 1);
        assert_eq!(
            place
                .drive(Box::pin(async { 7 }).map(drop).boxed(), || false)
                .await,
            Some(())
        );
    }
}
