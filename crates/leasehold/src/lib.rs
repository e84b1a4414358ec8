//! One distributed lock, every backend.
//!
//! Pick a backend that you already run, or none, and get the same lock with the same guarantees,
//! spelled the same way. This page is where the manual starts; [`LockClient`], [`Mutex`] and
//! [`LockGuard`] go on from here.
//!
//! # A first program
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "local")] {
//! let client = leasehold::connect("memory:").await?; // or "file:/var/lib/shop", "redis://127.0.0.1/?prefix=shop:"
//! let item = client.mutex("item/42");
//!
//! let guard = item.lock().await?; // waits; also try_lock, lock_timeout(duration)
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
//! - A **lease** is what every lock here is: granted for a [`Ttl`] (30 s unless you say otherwise),
//!   renewed in the background for as long as its guard lives, and over at its [`Deadline`] if
//!   renewals stop getting through. So a crashed holder blocks nobody for longer than that.
//! - The **deadline** is counted from before the request was sent, on a clock that goes on while
//!   the machine sleeps. A failed renewal is not a loss; the deadline is, and it is final.
//! - A **fencing token** is a number that grows from grant to grant of a name.
//! - A **backend** is what keeps the locks. What backends differ in is data: [`Capabilities`],
//!   which [`LockClient::capabilities`] returns and the command `leasehold info` prints.
//! - The **time-out** of a `lock_timeout` is how long you queue, the **TTL** how long you own. They
//!   have nothing to do with each other.
//!
//! # Loss and cancellation
//!
//! A holder can lose its lock: it was paused for too long, or the backend could not be reached
//! until the deadline. [`LockGuard`] reports it at once (`is_held()`, `lost()`, a
//! `cancellation_token()`), and [`Mutex::run`] drops the work *before* the lock could be another's.
//! Code that blocks without an `.await` cannot be cancelled by anyone.
//!
//! Futures of this crate may be dropped at any point, by a time-out or `select!`: what they asked
//! for is driven to its end in the background, and what was granted is given back.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "local")] {
//! use std::time::Duration;
//!
//! let client = leasehold::connect("memory:").await?;
//! let report = client.mutex("nightly-report");
//! let guard = report.lock().await?;
//!
//! let refused = report.lock_timeout(Duration::from_millis(10)).await?;
//! assert!(refused.is_none()); // contention is an outcome, not an error
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
//! What no lock can promise: that a write which *starts* while the lock is held *arrives* while it
//! is held. So hand the token to the resource, and let the resource refuse what is older than what
//! it has seen:
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
//! | `postgres` | `postgres` | `postgres://`, `postgresql://` | PostgreSQL ≥ 14; needs Rust 1.94 |
//! | `postgres-tls` | `postgres` | `…?sslmode=verify-full` | the same over TLS |
//! | `zookeeper` | `zookeeper` | `zookeeper://h1,h2,h3/PATH` | ZooKeeper ≥ 3.6 |
//! | `zookeeper-tls` | `zookeeper` | `zookeepers://` | the same over TLS |
//! | `metrics` | | | no backend: counts and times for the recorder of the crate `metrics`; see [Metrics](#metrics) |
//!
//! [`connect`] lists the URLs in full, and [`ConnectOptions`] sets a TTL and a label. A program
//! that needs more than a URL creates its backend itself and gives it to [`LockClient::new`]; each
//! module re-exports its crate, and the driver with it. [`backend`] is for those who implement a
//! backend.
//!
//! # A first program for each backend
//!
//! What changes is the URL; or the backend, where a URL says too little.
//!
//! **Files**, among the processes of one host. Nothing to install:
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "local")] {
//! let client = leasehold::connect("file:/var/lib/shop/locks").await?;
//! client.mutex("nightly-report").run(async |_lease| { /* the report */ }).await?;
//! # }
//! # Ok(()) }
//! ```
//!
//! **Redis.** The prefix keeps programs apart that share a server:
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "redis")] {
//! let client = leasehold::connect("redis://shop:secret@10.0.0.1/0?prefix=shop:").await?;
//! let guard = client.mutex("item/42").lock().await?;
//! # drop(guard);
//! # }
//! # Ok(()) }
//! ```
//!
//! **Redlock**, an odd number of independent Redis servers. Provision them once (`leasehold init`),
//! so that they vote on tokens:
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "redlock")] {
//! let client = leasehold::connect("redlock://10.0.0.1,10.0.0.2,10.0.0.3/?prefix=shop:").await?;
//! let guard = client.mutex("item/42").lock().await?;
//! # drop(guard);
//! # }
//! # Ok(()) }
//! ```
//!
//! **etcd.** With `names=exact` Go's `concurrency.Mutex` on the same name is the same lock:
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "etcd")] {
//! let client = leasehold::connect("etcd://10.0.0.1,10.0.0.2,10.0.0.3/?prefix=shop/").await?;
//! let guard = client.mutex("item-42").lock().await?;
//! # drop(guard);
//! # }
//! # Ok(()) }
//! ```
//!
//! **ZooKeeper.** Curator's `InterProcessMutex` on `/shop/locks/item-42` is the same lock. Say the
//! servers' `tickTime`, and holders may believe for longer:
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "zookeeper")] {
//! let client = leasehold::connect("zookeeper://10.0.0.1,10.0.0.2,10.0.0.3/shop/locks?tick=2s").await?;
//! let guard = client.mutex("item-42").lock().await?;
//! # drop(guard);
//! # }
//! # Ok(()) }
//! ```
//!
//! **Postgres.** `SELECT pg_advisory_lock(hashtextextended('shop:item/42', 0))` is the same lock:
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "postgres")] {
//! let client = leasehold::connect("postgres://shop:secret@10.0.0.1/shop?prefix=shop:").await?;
//! let guard = client.mutex("item/42").lock().await?;
//! # drop(guard);
//! # }
//! # Ok(()) }
//! ```
//!
//! # Operations
//!
//! - **One client per process**, cloned where it is needed. It keeps one connection, or one session
//!   per TTL, whatever the number of locks; it belongs to the runtime that it was made on.
//!   [`LockClient::close`] at the end releases everything at once.
//! - **The TTL** is how long the others wait when a holder dies, and how long a holder may be cut
//!   off before it loses: tens of seconds for most. Renewals come at a third of it. A TTL of a few
//!   round trips loses locks at the first hiccup.
//! - **Labels** say who holds: host, process and program by default,
//!   [`LockClientBuilder::with_label`] for another. `leasehold status --url URL NAME` shows holders
//!   and waiters; `leasehold revoke` ends a lock whose holder is gone for good.
//! - **What to watch**: events of the `tracing` target `leasehold`. Losses and late renewals are
//!   warnings. Spans for wait, hold, renewal and release are at debug, with key, backend, token and
//!   outcome. And the [metrics](#metrics).
//! - **Start and stop**: [`connect_lazily`] starts while the server is down. [`LockClient::ping`]
//!   is for health checks. [`LockClient::drain`] lets holders finish before [`LockClient::close`].
//! - **Errors**: contention is not an error; `try_lock` and `lock_timeout` return `None`.
//!   [`ErrorKind`] distinguishes unavailable, lost and indeterminate. [`Error::is_retryable`] says
//!   whether the same call may succeed later. An operation that failed leaves nothing locked for
//!   longer than a TTL.
//! - **Moving** to another backend, or restoring one from a backup, makes tokens fall: keep (epoch,
//!   token) at the resource, and raise the epoch then.
//!
//! # Metrics
//!
//! With the feature `metrics`, for whatever recorder the program has installed by way of the crate
//! [`metrics`](https://docs.rs/metrics) 0.24 (Prometheus, StatsD, OpenTelemetry, …). Install it
//! before the first client is made, which describes the metrics to it; without a recorder they go
//! nowhere, and without the feature they cost nothing. With it a pair of lock and release takes
//! about a microsecond more, and two or three with a Prometheus recorder.
//!
//! | name | kind | labels | unit | meaning |
//! |---|---|---|---|---|
//! | `leasehold_acquisitions_total` | counter | `backend`, `outcome` | acquisitions | those that have ended: `granted`, `contended` (one attempt, and another held it), `timed_out`, `cancelled` (the future was dropped), or what the [`ErrorKind`] is called. To re-enter within an owner is none |
//! | `leasehold_waiting` | gauge | `backend` | tasks | that have asked and have no answer yet |
//! | `leasehold_wait_seconds` | histogram | `backend` | seconds | from asking to the grant, for what was granted |
//! | `leasehold_held` | gauge | `backend` | locks | held now by this process |
//! | `leasehold_hold_seconds` | histogram | `backend` | seconds | from the grant until it was released or lost |
//! | `leasehold_renewals_total` | counter | `backend`, `outcome` | renewals | `renewed`, or the kind of the error. Where locks share a session, one renewal serves them all |
//! | `leasehold_losses_total` | counter | `backend`, `reason` | locks | `expired`, `replaced`, `session_ended`, `backend_reset`; `client_closed` for those that were held when the client was closed, which is no fault |
//! | `leasehold_releases_total` | counter | `backend`, `outcome` | releases | `freed`, `already_lost` (another may have held it), or the kind of the error after the last try: then it expires. A lock that was lost before is not counted again |
//! | `leasehold_quorum_node_up` | gauge | `node` | 1 or 0 | whether the node's last answer was one, as this process sees it; there is none before the node was asked |
//! | `leasehold_quorum_node_failures_total` | counter | `node`, `kind` | failures | requests to the node that failed, by the kind of the error: `unavailable`, `indeterminate`, `denied`; and `silent`, once, when a node that had answered does not |
//! | `leasehold_quorum_write_backs_total` | counter | `backend` | acquisitions | of a quorum, whose token took a second round trip to settle |
//!
//! `backend` is [`Capabilities::backend`], such as `redis` or `redlock`; `node` is where a node
//! lives, without user and password, as errors show it. Every counter is there from the start, at 0
//! and with each label that it can have, so that its first count is an increase. No label has a key
//! in it. What a quorum does at its nodes is not counted as locks of the nodes: one lock counts
//! once.
//!
//! Alerts that pay: any increase of `leasehold_losses_total` but `client_closed`;
//! `leasehold_quorum_node_up` at 0 for minutes, as the next failure may be one too many; a
//! `leasehold_waiting` that only grows; `already_lost` among the releases, which means work that
//! was done without the lock.
//!
//! # JSON
//!
//! With the feature `serde`, [`Capabilities`], [`Inspection`] and [`Pong`] implement `Serialize`.
//! [`Ttl`], [`FencingToken`], [`Mode`], [`ErrorKind`], [`LossReason`] and the enums of
//! [`Capabilities`] implement `Deserialize` as well. Names are in snake case and stable. A duration
//! is a number of milliseconds, and its name ends with `_ms`. `leasehold status --json` and
//! `leasehold info --json` print the same JSON.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod connect;
#[cfg(feature = "local")]
mod named;
mod redact;
mod scheme;

pub use leasehold_core::{
    AcquisitionId, Capabilities, Clock, ClockDrift, Credentials, CredentialsProvider, Deadline,
    Error, ErrorKind, Expiry, Fairness, Fencing, FencingToken, HolderConnection, HolderRef,
    Inspection, LeaseInfo, LockClient, LockClientBuilder, LockGuard, LockKey, LossDetection,
    LossReason, Mode, Mutex, NodeStatus, Pong, ReentrantOwner, Released, Renewal, Restart, Result,
    Revocation, RevokeOutcome, RwLock, Semaphore, SemaphorePermit, SystemClock, TestClock,
    Timestamp, Ttl, WaiterNotification, WaiterRef, default_label,
};
/// etcd. The driver is `leasehold::etcd::etcd_client`.
#[cfg(feature = "etcd")]
pub use leasehold_etcd as etcd;
/// Memory (one process) and files (one host).
#[cfg(feature = "local")]
pub use leasehold_local as local;
/// PostgreSQL. The driver is `leasehold::postgres::sqlx`.
#[cfg(feature = "postgres")]
pub use leasehold_postgres as postgres;
/// Redis and Valkey. The driver is `leasehold::redis::redis`.
#[cfg(feature = "redis")]
pub use leasehold_redis as redis;
/// ZooKeeper. The driver is `leasehold::zookeeper::zookeeper_client`.
#[cfg(feature = "zookeeper")]
pub use leasehold_zookeeper as zookeeper;

pub use crate::connect::{ConnectOptions, connect, connect_lazily};
#[cfg(feature = "local")]
pub use crate::scheme::file_options;

/// The contract of a backend, and tools to implement one. Start with
/// [`LockBackend`](backend::LockBackend).
pub mod backend {
    pub use leasehold_core::{
        AcquisitionId,
        backend::{
            AtomicDeadline, Attempt, BoxFuture, Contention, KeepAlive, LazyBackend, Lease,
            LockBackend, LossNotifier, Request, SessionId, acquire_with_retry, async_trait,
            support,
        },
        default_label, session, text, url,
    };

    pub use crate::connect::connect_backend as connect;
}

/// Redlock: one lock on a majority of independent servers.
pub mod quorum {
    pub use leasehold_core::quorum::*;

    #[cfg(feature = "redlock")]
    pub use crate::connect::redlock as connect;
}

/// The program in the workspace's README compiles and runs.
#[cfg(all(doctest, feature = "local"))]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
