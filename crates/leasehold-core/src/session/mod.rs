//! What backends share whose servers give liveness to a *session*: an etcd lease, a ZooKeeper
//! session, a Postgres connection.
//!
//! | file | concept |
//! |---|---|
//! | `driver` | [`SessionDriver`]: what a backend brings |
//! | `sessions` | [`Sessions`]: one session per TTL, opened lazily, shared |
//! | `live` | [`Session`]: its deadline, its renewal, its end |
//! | `state` | what it knows of its claims |
//! | `keep_alive` | the task that renews or closes it |
//! | `claim` | [`Claim`]: what one acquisition has in a session, or may have |
//! | `reconcile` | what the server says we own against what we know of |
//! | `afresh` | [`attempt_with_session_retry`], [`queue_with_session_retry`]: asking again in a new session when one ends |
//! | `gather` | [`Batcher`]: what is asked for during a round trip goes out together in the next |

mod batch;
mod driver;
mod keep_alive;
mod manager;
mod reconcile;
mod registration;
mod retry;
mod session;
mod state;

pub use crate::retry::cancelled;

pub use self::{
    batch::{BatchExecutor, BatchLimits, Batcher},
    driver::{Opened, Owned, SessionDriver, SessionTime},
    manager::{MAX_TTLS, Sessions},
    registration::Claim,
    retry::{attempt_with_session_retry, queue_with_session_retry},
    session::Session,
};

#[cfg(test)]
mod tests;
