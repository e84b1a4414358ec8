//! [`Asker`]: the task or thread that requests a lock.

use std::thread::{self, ThreadId};

use tokio::task;

/// The current task, or the current thread outside a task, as in the body of `#[tokio::main]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    Task(task::Id),
    Thread(ThreadId),
}

impl Asker {
    pub(crate) fn current() -> Self {
        task::try_id().map_or_else(|| Self::Thread(thread::current().id()), Self::Task)
    }
}
