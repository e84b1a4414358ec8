//! Our locks against the lock clients of other languages, on the same servers: both directions,
//! held and waited for.
//!
//! Each pair is a test. The other clients are installed by `integration/setup.sh`.

mod curator;
mod flock;
mod kazoo;
mod node_redlock;
mod redis_py;
mod rounds;
