//! What the tests of Leasehold break things with: real servers that are started, paused, killed and
//! restarted, a proxy that cuts and swallows connections at exact points, and processes that play
//! other programs.
//!
//! Nothing here is asynchronous and nothing runs on the caller's runtime, so a test may pause its
//! clock, block its thread or shut its runtime down and the faults still happen when they are asked
//! for. Everything started here dies with its handle, and also with the test process, however that
//! ends.
//!
//! | module | what it gives |
//! |---|---|
//! | [`server`] | [`RedisServer`](server::RedisServer) and others, and what they are built from |
//! | [`proxy`] | [`Proxy`](proxy::Proxy): cut, swallow, hold, delay, count |
//! | [`peer`] | [`Peer`](peer::Peer): another process of a test, spoken to line by line |
//! | [`child`] | [`OwnedChild`](child::OwnedChild): a process with signals that is reaped on drop |
//! | [`foreign`] | [`Foreign`](foreign::Foreign): a lock client of another language |
//! | [`held`] | [`Held`](held::Held): a lock or a permit |
//! | [`worker`] | processes that lock on command, and write down what they believe |
//! | [`checker`], [`leftovers`] | judges of what the processes believed, and of what is left over |
//! | [`certificates`] | a certificate authority and a server certificate for TLS tests |

pub mod bench;
pub mod certificates;
pub mod child;
mod error;
pub mod foreign;
pub mod held;
pub mod leftovers;
pub mod peer;
pub mod proxy;
pub mod server;
mod spawner;
pub mod worker;

pub use error::{HarnessError, Result};
pub use leasehold_testkit::history as checker;
