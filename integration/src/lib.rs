//! The harness of Leasehold's integration tests: real servers that can be paused, killed and
//! restarted, a proxy that injects network faults at exact points, and child processes that act as
//! other programs.
//!
//! The harness does not use the caller's runtime, so a test may pause its clock, block its thread
//! or shut its runtime down, and faults still happen on time. Everything started by the harness
//! ends when its handle is dropped, and also when the test process ends for any reason.
//!
//! Each backend has a feature, which brings its servers and its driver.
//!
//! | module | content |
//! |---|---|
//! | [`server`] | [`RedisServer`](server::RedisServer) and the other servers |
//! | [`proxy`] | [`Proxy`](proxy::Proxy): cuts, swallows, holds back, delays and counts |
//! | [`peer`] | [`Peer`](peer::Peer): another process of a test, controlled by lines of text |
//! | [`child`] | [`OwnedChild`](child::OwnedChild): a process with signals that is reaped on drop |
//! | [`foreign`] | [`Foreign`](foreign::Foreign): a lock client in another language |
//! | [`leases`] | steps of tests that use a backend without a client |
//! | [`held`] | [`Held`](held::Held): a lock or a permit |
//! | [`worker`] | processes that lock on command and log when they consider the lock held |
//! | [`stage`] | [`Stage`](stage::Stage): such processes, with their logs and register |
//! | [`steps`] | steps that many tests share |
//! | [`panics`] | panics of the crates under test |
//! | [`checker`], [`leftovers`] | checks of these logs, and of what remains on the servers |
//! | [`record_history`] | holders and readers of a record during faults, and checks of what they saw |
//! | [`chosen`] | the backends, the seed and the duration that the environment chooses for a run |
//! | [`certificates`] | a certificate authority and a server certificate for TLS tests |

#[cfg(feature = "server")]
pub mod certificates;
pub mod child;
pub mod chosen;
mod error;
pub mod foreign;
pub mod held;
pub mod leases;
pub mod leftovers;
pub mod panics;
pub mod peer;
pub mod proxy;
pub mod record_history;
#[cfg(feature = "server")]
pub mod server;
mod spawner;
pub mod stage;
pub mod steps;
pub mod worker;

pub use error::{HarnessError, Result};
pub use leasehold_testkit::history as checker;
