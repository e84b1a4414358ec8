//! [`FanOut`]: calls to several nodes, polled together.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use crate::{backend::lease::BoxFuture, error::Result, panics::Call};

/// Running calls, at most one per node, polled by the task that waits for them.
///
/// With few nodes, polling all of them costs no more than finding the one that is ready, and no
/// call needs a task of its own. A call that panics fails, and the remaining calls continue.
pub(super) struct FanOut<T> {
    pending: Vec<(usize, Call<T>)>,
}

impl<T: Send + 'static> FanOut<T> {
    pub(super) fn with_capacity(nodes: usize) -> Self {
        Self {
            pending: Vec::with_capacity(nodes),
        }
    }

    pub(super) fn push(
        &mut self,
        node: usize,
        start: impl FnOnce() -> BoxFuture<'static, Result<T>>,
    ) {
        self.pending.push((node, Call::of(start)));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns the nodes that have not answered.
    pub(super) fn nodes(&self) -> impl Iterator<Item = usize> + '_ {
        self.pending.iter().map(|(node, _)| *node)
    }

    /// Polls every call, and passes on the outcomes of those that have ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, mut ended: impl FnMut(usize, Result<T>)) {
        let mut at = 0;
        while let Some((_, call)) = self.pending.get_mut(at) {
            match Pin::new(call).poll(cx) {
                Poll::Ready(outcome) => {
                    let (node, _) = self.pending.remove(at);
                    ended(node, outcome);
                }
                Poll::Pending => at += 1,
            }
        }
    }

    /// Polls every call once, so that its request is sent before any later one.
    pub(super) fn send(&mut self, ended: impl FnMut(usize, Result<T>)) {
        self.poll(&mut Context::from_waker(Waker::noop()), ended);
    }

    pub(super) fn append(&mut self, mut others: Self) {
        self.pending.append(&mut others.pending);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn, ready},
        panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    };

    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_call_that_panics_fails_alone_and_is_not_polled_again() {
        let (mut calls, mut outcomes) = (FanOut::with_capacity(4), Vec::new());
        calls.push(0, || resume_unwind(Box::new("panics on purpose")));
        calls.push(1, || {
            Box::pin(poll_fn(|_| resume_unwind(Box::new("panics on purpose"))))
        });
        calls.push(2, || Box::pin(ready(Ok(()))));
        calls.push(3, || Box::pin(pending()));
        for _ in 0..3 {
            calls
                .send(|node, outcome| outcomes.push((node, outcome.map_err(|error| error.kind()))));
        }
        let panicked = Err(ErrorKind::Indeterminate);
        assert_eq!(outcomes, [(0, panicked), (1, panicked), (2, Ok(()))]);
        assert_eq!(calls.nodes().collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn call_whose_handler_panics_is_removed() {
        let mut calls = FanOut::with_capacity(1);
        calls.push(0, || Box::pin(ready(Ok(()))));
        let sent = catch_unwind(AssertUnwindSafe(|| {
            calls.send(|_, _| resume_unwind(Box::new("panics on purpose")));
        }));
        assert!(sent.is_err() && calls.is_empty());
    }
}
