//! Our locks against the lock clients of other languages, on the same servers: both directions, held and waited for.
//!
//! Each pair is a test. The other clients are installed by `integration/setup.sh`.

mod flock;
mod node_redlock;
mod redis_py;
mod rounds;
