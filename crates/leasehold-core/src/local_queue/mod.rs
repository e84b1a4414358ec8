//! The local queue: of all tasks of this process that want a key, one contends for it at the
//! backend.
//!
//! Each key has a queue of its own, served first come, first served. The task at the head contends
//! at the backend. The others wait here and cost the backend nothing. An exclusive holder stays at
//! the head until it releases. Readers and permit holders leave the queue once they are granted,
//! and readers behind a granted reader go together.
//!
//! The next task starts as soon as the release ahead of it has been *sent*, if the backend orders
//! releases. That is fast and would starve other processes. So a process has a fairness quota for
//! each key: once [`key_queue::QUOTA`] is used up, the next attempt yields, which means that the
//! backend refuses it if another process waits.

mod enter;
mod key_queue;
mod position;
mod queues;

pub(crate) use self::{position::Place, queues::LocalQueues};
