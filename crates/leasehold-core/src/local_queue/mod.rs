//! The local queue: of all tasks of this client that wait for a key, one contends for it at the
//! backend.
//!
//! Each key has a queue of its own, served first come, first served. The task at the head contends
//! at the backend. The remaining tasks wait here and send nothing. An exclusive holder stays at the
//! head until it releases. Readers and permit holders leave the queue once they are granted.
//! Readers behind a granted reader contend together.
//!
//! If the backend orders releases, the next task starts as soon as the release ahead of it has been
//! *sent*. That is fast, but it would starve other processes. A process therefore has a fairness
//! quota for each key: once [`key_queue::QUOTA`] is used up, the next attempt yields, which means
//! that the backend refuses it if another process waits.

mod key_queue;
mod queues;

pub(crate) use self::queues::{LocalQueues, Place};
