//! Mutual exclusion with lock clients in other languages on the same servers, in both directions,
//! for held locks and for waiters.
//!
//! Each pair is a test. `integration/setup.sh` installs the other clients.

mod curator;
mod elections;
mod flock;
mod kazoo;
mod node_redlock;
mod redis_py;
mod rounds;
mod support;
