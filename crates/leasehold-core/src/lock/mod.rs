//! The locks that users acquire, and their guards.

pub(crate) mod all;
pub(crate) mod guard;
pub(crate) mod mutex;
pub(crate) mod options;
pub(crate) mod reentrant;
pub(crate) mod run;
pub(crate) mod rwlock;
pub(crate) mod semaphore;
