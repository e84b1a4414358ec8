//! Sessions: shared by backends whose server ties the lifetime of locks to a session, such as an
//! etcd lease, a ZooKeeper session or a PostgreSQL connection.
//!
//! | file | concept |
//! |---|---|
//! | `manager` | [`Sessions`]: one session per TTL, opened lazily and shared |
//! | `session` | [`SessionDriver`]: the trait that a backend implements; [`Session`]: its deadline, its claims, its end |
//! | `driver` | what a driver is given and returns |
//! | `renewal` | renews a session |
//! | `state` | the claims of a session |
//! | `keep_alive` | the task that renews or closes a session |
//! | `registration` | [`Claim`]: the registration of one acquisition in a session |
//! | `reconcile` | compares what the server lists for a session with what this process owns |
//! | `retry` | [`attempt_with_session_retry`], [`queue_with_session_retry`]: retry in a new session |

mod driver;
mod keep_alive;
mod manager;
mod reconcile;
mod registration;
mod renewal;
mod retry;
#[expect(clippy::module_inception, reason = "its file holds `Session`")]
mod session;
mod state;

pub use crate::backend::retry::cancelled;

pub use self::{
    driver::{Opened, Owned, SessionClock},
    manager::{MAX_TTLS, Sessions},
    registration::Claim,
    retry::{attempt_with_session_retry, queue_with_session_retry},
    session::{Session, SessionDriver},
};

#[cfg(test)]
mod tests;
