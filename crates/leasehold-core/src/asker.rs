//! [`Asker`]: who asks for a lock.

use std::thread::{self, ThreadId};

use tokio::task;

/// A task; outside of one, as in the body of `#[tokio::main]`, the thread.
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
