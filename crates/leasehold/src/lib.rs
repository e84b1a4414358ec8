//! One distributed lock, every backend.
//!
//! Pick a backend that you already run, or none, and get the same lock with the same guarantees, spelled the same way.
//! This page is where the manual starts; [`LockClient`], [`Mutex`] and [`LockGuard`] go on from here.
//!
//! # A first program
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "local")] {
//! let client = leasehold::connect("memory:").await?; // or "file:/var/lib/shop", "redis://127.0.0.1/?prefix=shop:"
//! let item = client.mutex("item/42");
//!
//! let guard = item.lock().await?; // waits; also try_lock, lock_within(duration)
//! assert!(guard.is_held());
//! guard.release().await?; // dropping it releases too, in the background
//!
//! let sold = item.run(async |lease| lease.is_held()).await?; // locks, works, releases
//! assert!(sold);
//!
//! let _reader = client.rwlock("price list").read().await?; // also write
//! let _permit = client.semaphore("gpu", 4).acquire().await?; // at most 4 at a time
//! client.close().await?; // releases everything, and waits for it
//! # }
//! # Ok(()) }
//! ```
//!
//! # The words
//!
//! - A **lease** is what every lock here is: granted for a [`Ttl`] (30 s unless you say otherwise), renewed in the
//!   background for as long as its guard lives, and over at its [`Deadline`] if renewals stop getting through. So a
//!   crashed holder blocks nobody for longer than that.
//! - The **deadline** is counted from before the request was sent, on a clock that goes on while the machine sleeps.
//!   A failed renewal is not a loss; the deadline is, and it is final.
//! - A **fencing token** is a number that grows from grant to grant of a name.
//! - A **backend** is what keeps the locks. What backends differ in is data: [`Capabilities`], which
//!   [`LockClient::capabilities`] returns and the command `leasehold caps` prints.
//! - **Wait** is how long you queue ([`Wait`]), **TTL** how long you own ([`Ttl`]). They have nothing to do with each other.
//!
//! # Loss and cancellation
//!
//! A holder can lose its lock: it was paused for too long, or the backend could not be reached until the deadline.
//! [`LockGuard`] tells at once (`is_held()`, `lost()`, a `cancellation_token()`), and [`Mutex::run`] drops the work
//! *before* the lock could be another's. Code that blocks without an `.await` cannot be cancelled by anyone.
//!
//! Futures of this crate may be dropped at any point, by a time-out or `select!`: what they asked for is driven to its end in
//! the background, and what was granted is given back.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "local")] {
//! use std::time::Duration;
//! use leasehold::ErrorKind;
//!
//! let client = leasehold::connect("memory:").await?;
//! let report = client.mutex("nightly-report");
//! let guard = report.lock().await?;
//!
//! let refused = report.lock_within(Duration::from_millis(10)).await.unwrap_err();
//! assert_eq!(refused.kind(), ErrorKind::TimedOut);
//!
//! tokio::select! {
//!     reason = guard.lost() => eprintln!("stop, the lock is gone: {reason}"),
//!     () = async { /* the work */ } => {}
//! }
//! # }
//! # Ok(()) }
//! ```
//!
//! # Tokens at the resource
//!
//! What no lock can promise: that a write which *starts* while the lock is held *arrives* while it is held. So hand the
//! token to the resource, and let the resource refuse what is older than what it has seen:
//!
//! ```
//! use leasehold::FencingToken;
//!
//! struct Stock { left: u32, newest: FencingToken }
//!
//! impl Stock {
//!     fn write(&mut self, left: u32, token: FencingToken) -> Result<(), FencingToken> {
//!         if token < self.newest {
//!             return Err(self.newest); // the writer was overtaken
//!         }
//!         (self.left, self.newest) = (left, token);
//!         Ok(())
//!     }
//! }
//!
//! let mut stock = Stock { left: 2, newest: FencingToken::new(0) };
//! assert!(stock.write(1, FencingToken::new(8)).is_ok());
//! assert!(stock.write(1, FencingToken::new(7)).is_err());
//! ```
//!
//! # Backends, features and URLs
//!
//! | feature | module | URLs | |
//! |---|---|---|---|
//! | `local` (default) | `local` | `memory:`, `memory:NAME`, `file:`, `file:DIR` | one process; one host |
//! | `redis` | `redis` | `redis://`, `redis+unix://` | Redis ≥ 6.2 and Valkey |
//! | `redis-tls` | `redis` | `rediss://` | the same over TLS |
//! | `redlock` | `quorum` | `redlock://` | an odd number of independent Redis servers; `redlocks://` with `redis-tls` |
//! | `etcd` | `etcd` | `etcd://h1,h2,h3` | etcd ≥ 3.4; building it needs `protoc` |
//! | `etcd-tls` | `etcd` | `etcds://` | the same over TLS |
//!
//! [`connect`] has the URLs in full. A program that needs more than a URL makes its backend itself and gives it to
//! [`LockClient::new`]; each module re-exports its crate, and the driver with it. Planned backends
//! (`zookeeper://`, `postgres://`) are refused by name.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod connect;
#[cfg(feature = "local")]
mod named;
mod scheme;
mod shown;

pub use leasehold_core::*;
/// etcd. The driver is `leasehold::etcd::etcd_client`.
#[cfg(feature = "etcd")]
pub use leasehold_etcd as etcd;
/// Memory (one process) and files (one host).
#[cfg(feature = "local")]
pub use leasehold_local as local;
/// Redis and Valkey. The driver is `leasehold::redis::redis`.
#[cfg(feature = "redis")]
pub use leasehold_redis as redis;

#[cfg(feature = "redlock")]
pub use crate::connect::redlock;
pub use crate::connect::{backend, builder, connect};
#[cfg(feature = "local")]
pub use crate::scheme::file_dir;

/// The program in the workspace's README compiles and runs.
#[cfg(all(doctest, feature = "local"))]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
