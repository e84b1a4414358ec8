//! The client: acquisition, the queue of this process, and release.

pub(crate) mod acquire;
pub(crate) mod asker;
pub(crate) mod background_releases;
pub(crate) mod complete_on_drop;
pub(crate) mod handle;
pub(crate) mod local_queue;
pub(crate) mod release;
