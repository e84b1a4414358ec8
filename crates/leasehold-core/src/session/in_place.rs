//! [`InPlace`]: work that the task which asks for it drives itself, until another wants its place.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use tokio::{runtime::Handle, sync::oneshot};

use crate::backend::BoxFuture;

/// One work at a time. It ends also if who asked for it stops polling, or goes away: then it is taken to a task of its own.
pub(super) struct InPlace<T: Send + 'static>(Mutex<Place<T>>);

enum Place<T> {
    Free,
    /// Polled by who asked for it, who is woken by this.
    Here(BoxFuture<'static, T>, Waker),
    /// In a task of its own.
    Away(oneshot::Receiver<T>),
}

impl<T: Send + 'static> InPlace<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Place::Free))
    }

    /// Drives `work` to its end, from here unless the place is `wanted`; `None` if the runtime shuts down. Nobody else does at the
    /// same time.
    pub(super) async fn drive(&self, work: BoxFuture<'static, T>, wanted: impl Fn() -> bool) -> Option<T> {
        *self.lock() = Place::Here(work, Waker::noop().clone());
        let _leaving = Leaving(self);
        poll_fn(|cx| {
            let mut place = self.lock();
            let polled = match &mut *place {
                Place::Here(work, waker) => {
                    waker.clone_from(cx.waker());
                    work.as_mut().poll(cx).map(Some)
                }
                Place::Away(answered) => Pin::new(answered).poll(cx).map(Result::ok),
                Place::Free => Poll::Ready(None),
            };
            if polled.is_ready() {
                *place = Place::Free;
            }
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
        let Ok(runtime) = Handle::try_current() else { return };
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

struct Leaving<'a, T: Send + 'static>(&'a InPlace<T>);

impl<T: Send + 'static> Drop for Leaving<'_, T> {
    fn drop(&mut self) {
        // Who asked may go away half-way: then it goes on elsewhere.
        self.0.take_away();
        *self.0.lock() = Place::Free;
    }
}
