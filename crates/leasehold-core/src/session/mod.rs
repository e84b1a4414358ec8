//! What backends share whose servers give liveness to a *session*: an etcd lease, a ZooKeeper session, a Postgres
//! connection.
//!
//! | file | concept |
//! |---|---|
//! | `driver` | [`SessionDriver`]: what a backend brings |
//! | `sessions` | [`Sessions`]: one session per TTL, opened lazily, shared |
//! | `live` | [`Session`]: its deadline, its renewal, its end |
//! | `state` | what it knows of its claims |
//! | `upkeep` | the task that renews or closes it |
//! | `claim` | [`Claim`]: what one acquisition has in a session, or may have |
//! | `reconcile` | what the server says we own against what we know of |
//! | `afresh` | [`attempt_afresh`], [`queue_afresh`]: asking again in a new session when one ends |
//! | `gather` | [`Gather`]: what is asked for during a round trip goes out together in the next |

mod afresh;
mod claim;
mod driver;
mod gather;
mod in_place;
mod live;
mod reconcile;
mod sessions;
mod state;
mod upkeep;

pub use crate::attempts::cancelled;

pub use self::{
    afresh::{attempt_afresh, queue_afresh},
    claim::Claim,
    driver::{Opened, Owned, SessionDriver, SessionTime},
    gather::{Carrier, Gather, GatherLimits, Way},
    live::Session,
    sessions::{MAX_TTLS, Sessions},
};

#[cfg(test)]
mod tests;
