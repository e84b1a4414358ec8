//! [`Calls`]: a call to each of several nodes, polled together.

use std::task::{Context, Poll, Waker};

use crate::backend::BoxFuture;

/// Calls under way, at most one per node, polled in the task that waits for them. Five are polled as quickly as one is found
/// among five, and none costs a task.
pub(super) struct Calls<T> {
    pending: Vec<(usize, BoxFuture<'static, T>)>,
}

impl<T> Calls<T> {
    pub(super) fn with_capacity(nodes: usize) -> Self {
        Self { pending: Vec::with_capacity(nodes) }
    }

    pub(super) fn push(&mut self, node: usize, call: BoxFuture<'static, T>) {
        self.pending.push((node, call));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The nodes that have not answered.
    pub(super) fn nodes(&self) -> impl Iterator<Item = usize> + '_ {
        self.pending.iter().map(|(node, _)| *node)
    }

    /// Polls every call, and hands over what has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, mut ended: impl FnMut(usize, T)) {
        let mut at = 0;
        while let Some((node, call)) = self.pending.get_mut(at) {
            match call.as_mut().poll(cx) {
                Poll::Ready(outcome) => {
                    ended(*node, outcome);
                    drop(self.pending.remove(at));
                }
                Poll::Pending => at += 1,
            }
        }
    }

    /// Polls every call once, so that what it sends is on its way before anything that is sent later.
    pub(super) fn send(&mut self, ended: impl FnMut(usize, T)) {
        self.poll(&mut Context::from_waker(Waker::noop()), ended);
    }

    pub(super) fn append(&mut self, mut others: Self) {
        self.pending.append(&mut others.pending);
    }
}
