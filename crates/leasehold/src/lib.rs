//! Distributed locks with one API over Redis, Redlock, etcd, ZooKeeper, PostgreSQL, lock files and
//! in-process memory.
//!
//! Choose a backend that you already run, or files or memory, which need no server. This page is
//! the start of the manual. [`LockClient`], [`Mutex`] and [`LockGuard`] have the details.
//!
//! # A first program
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "local")] {
//! // Or "file:/var/lib/shop", "redis://127.0.0.1/?prefix=shop:".
//! let client = leasehold::connect("memory:").await?;
//! let item = client.mutex("item/42");
//!
//! let guard = item.lock().await?; // waits; see also try_lock and lock_timeout(duration)
//! assert!(guard.is_held());
//! guard.release().await?; // dropping it also releases, in the background
//!
//! let sold = item.run(async |lease| lease.is_held()).await?; // locks, runs the closure, releases
//! assert!(sold);
//!
//! let _reader = client.rwlock("price list").read().await?; // see also write
//! let _permit = client.semaphore("gpu", 4).acquire().await?; // at most 4 holders
//! client.close().await?; // releases everything
//! # }
//! # Ok(()) }
//! ```
//!
//! # Concepts
//!
//! - A **lease** is a lock that is granted for a limited time. Every lock here is one. It is
//!   granted for a [`Ttl`] (30 s by default) and renewed in the background until its guard is
//!   dropped. If renewals fail, it ends at its [`Deadline`], so a crashed holder blocks others for
//!   at most a TTL.
//! - The **deadline** is counted from before the request was sent, on a clock that does not stop
//!   while the machine is suspended. A failed renewal is not a loss. Reaching the deadline is a
//!   loss, and it is final.
//! - A **fencing token** is a number that increases with each grant of a key.
//! - A **backend** is the service that stores the locks. Its [`Capabilities`] describe how it
//!   differs from other backends. [`LockClient::capabilities`] returns them, and the command
//!   `leasehold info` prints them.
//! - The **timeout** of a `lock_timeout` limits how long a caller waits for the lock. The **TTL**
//!   limits how long a grant is valid without a renewal. The two are independent.
//!
//! # Loss and cancellation
//!
//! A holder can lose its lock if it is paused for too long, or if the backend cannot be reached
//! until the deadline. [`LockGuard`] reports a loss through `is_held()`, `lost()` and
//! `cancellation_token()`. [`Mutex::run`] drops the work *before* the lock can be granted to
//! another holder. Code that blocks without an `.await` cannot be cancelled.
//!
//! All futures of this crate may be dropped at any point, for example by a timeout or by `select!`.
//! A request that is already running is driven to completion in the background, and a lock that it
//! was granted is released.
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
//!     reason = guard.lost() => eprintln!("the lock was lost: {reason}"),
//!     () = async { /* the work */ } => {}
//! }
//! # }
//! # Ok(()) }
//! ```
//!
//! # Several locks at once
//!
//! [`LockClient::all`] acquires several locks under one guard, all or none. Its callers never wait
//! for each other in a cycle, whatever the order in which they name the keys. Each lock has its own
//! fencing token. A program that moves money between two accounts:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "local")] {
//! let client = leasehold::connect("memory:").await?;
//! let transfer = client.all(["account/7", "account/4"]).with_shared(["exchange rates"]);
//!
//! let guard = transfer.lock().await?; // also try_lock, lock_timeout and run
//! for lease in guard.leases() {
//!     println!("{} is locked with the token {:?}", lease.key(), lease.fencing_token());
//! }
//! guard.release().await?; // for each key, whether it was still held
//! # }
//! # Ok(()) }
//! ```
//!
//! Locks that are acquired one after the other need an order that all programs share. In debug
//! builds the client warns of tasks whose orders differ.
//! [`with_order_warnings`](ConnectOptions::with_order_warnings) switches this on or off.
//!
//! # Fencing tokens
//!
//! No lock can guarantee that a write which *starts* while the lock is held *arrives* while it is
//! held. Pass the fencing token to the resource with each write. The resource refuses writes with a
//! token that is smaller than the largest one that it has seen:
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
//! # Records
//!
//! A record is a value of up to 16 KiB beside a lock. Only the exclusive holder writes it, in one
//! step with the check of the server that it still holds the lock. Anyone reads it, and it outlives
//! the lock. The next holder learns from it how far the last one came, for example:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "local")] {
//! let client = leasehold::connect("memory:").await?;
//! let import = client.mutex("import");
//!
//! let guard = import.lock().await?;
//! let next_page = match client.record("import").await? {
//!     Some(record) => String::from_utf8_lossy(&record.value).parse().unwrap_or(0),
//!     None => 0_u32, // the first import
//! };
//! // Import the page here, under the token of the guard.
//! guard.write_record((next_page + 1).to_string()).await?;
//! guard.release().await?;
//!
//! let mut watch = client.watch("import"); // for others: the present record, then each change
//! let record = watch.next().await?.expect("it was written");
//! assert_eq!((record.value.as_slice(), record.version), (b"1".as_slice(), 1));
//! # }
//! # Ok(()) }
//! ```
//!
//! - [`Capabilities::records`] says whether the backend keeps records, and which faults they
//!   survive. Without records, all of these calls fail with [`ErrorKind::Unsupported`].
//! - A write whose answer was lost may be repeated: the same value counts once.
//! - A record is kept without a limit of time. Do not make a new lock name for each run.
//! - A record is written with the speed of the server's commits. It is meant for results and
//!   positions, not for each step of a busy loop.
//!
//! # Work that runs once
//!
//! A lock alone does not make scheduled work run once: if a quick run ends before a slow clock
//! fires, the second replica acquires the lock and runs the work again. [`LockClient::once`]
//! identifies a run by the instant for which it was scheduled, and keeps in the record what has
//! been decided. Start this in every replica:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "local")] {
//! use std::time::Duration;
//! use leasehold::once::{Every, Turn};
//!
//! let client = leasehold::connect("memory:").await?; // or a server that keeps records
//! let report = client.once("report").with_schedule(Every::new(Duration::from_secs(60))?);
//!
//! // Runs what is due now, if no other replica has run it. `serve` does so for ever.
//! match report.run_due(async |run| send_report(run.attempt()).await).await? {
//!     Turn::Ran(mails) => println!("sent {mails} mails"),
//!     Turn::Failed(error) => eprintln!("failed, which is recorded: {error}"),
//!     turn => println!("nothing to do here: {turn:?}"),
//! }
//!
//! for run in report.history().await?.runs {
//!     println!("{:?}: {} by {}", run.occurrence, run.state, run.by);
//! }
//! # }
//! # Ok(()) }
//! # #[cfg(feature = "local")]
//! async fn send_report(attempt: u32) -> std::io::Result<u32> {
//!     Ok(12 / attempt)
//! }
//! ```
//!
//! - What is due is judged by the clock of the server. [`Once`](once::Once) states the guarantees.
//! - If the runner crashes, a replica that waits takes over. [`Retry`](once::Retry) says how often.
//!   With no crashes and no failures allowed, the work begins at most once.
//! - [`Missed`](once::Missed) and [`Overlap`](once::Overlap) say what happens to occurrences that
//!   nobody ran in time, or that fall due during a run.
//! - The feature `cron` has schedules such as `0 3 * * *` in a time zone.
//! - Work that a scheduler of your own starts, or that has a name instead of an instant, is run by
//!   [`Once::run`](once::Once::run).
//!
//! # Elections
//!
//! An election makes one of several processes the leader, and every process can see which one. It
//! is the exclusive lock of its name together with a value, such as the address of the leader.
//! Start this in every replica:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "local")] {
//! use std::ops::ControlFlow;
//!
//! let client = leasehold::connect("memory:").await?; // or a server that keeps records
//! let election = client.election("scheduler");
//!
//! // Campaigns, works, and campaigns again after a loss, until the work returns `Break`.
//! let jobs = election
//!     .lead("10.0.0.7:8080", async |term| {
//!         // Pass `term.fencing_token()` to the resources that the leader writes.
//!         if term.is_held() { ControlFlow::Break(3) } else { ControlFlow::Continue(()) }
//!     })
//!     .await?;
//! assert_eq!(jobs, 3);
//!
//! // Anyone sees who leads; see also `observe`, which follows the leaders.
//! let term = election.campaign("10.0.0.7:8080").await?;
//! let leader = election.leader().await?.expect("this process leads");
//! assert_eq!(leader.value, b"10.0.0.7:8080");
//! term.resign().await?;
//! # }
//! # Ok(()) }
//! ```
//!
//! - The work of a leader is dropped before another candidate can lead. [`Election`] states what is
//!   guaranteed.
//! - [`Election::with_standby`] lets a process lead only if no other process does for a while.
//! - Values, [`Election::leader`] and [`Election::observe`] need a backend with
//!   [records](Capabilities::records). Without them, an election with an empty value still elects.
//!
//! # Backends, features and URLs
//!
//! | feature | module | URLs | |
//! |---|---|---|---|
//! | `local` (default) | `local` | `memory:`, `memory:NAME`, `file:`, `file:DIR` | one process, or one host |
//! | `redis` | `redis` | `redis://`, `redis+unix://` | Redis ≥ 6.2 and Valkey |
//! | `redis-tls` | `redis` | `rediss://` | the same over TLS |
//! | `redlock` | `quorum` | `redlock://` | an odd number of independent Redis servers; `redlocks://` with `redis-tls` |
//! | `etcd` | `etcd` | `etcd://h1,h2,h3` | etcd ≥ 3.4; building it needs `protoc` |
//! | `etcd-tls` | `etcd` | `etcds://` | the same over TLS |
//! | `postgres` | `postgres` | `postgres://`, `postgresql://` | PostgreSQL ≥ 14; needs Rust 1.94 |
//! | `postgres-tls` | `postgres` | `…?sslmode=verify-full` | the same over TLS |
//! | `zookeeper` | `zookeeper` | `zookeeper://h1,h2,h3/PATH` | ZooKeeper ≥ 3.6 |
//! | `zookeeper-tls` | `zookeeper` | `zookeepers://` | the same over TLS |
//! | `cron` | | | no backend, but [`Cron`](once), schedules as text in a time zone |
//! | `metrics` | | | no backend, but [metrics](#metrics) for the recorder of the crate `metrics` |
//! | `serde` | | | no backend, but [JSON](#json) for capabilities, inspections and errors |
//!
//! [`connect`] lists the URLs in full, and [`ConnectOptions`] sets a TTL and a label. A program
//! that needs options which a URL does not have creates the backend itself and passes it to
//! [`LockClient::new`]. Each module re-exports the crate of its backend, which re-exports its
//! driver. The module [`backend`] is for implementors of backends.
//!
//! # A first program for each backend
//!
//! The programs differ only in the URL.
//!
//! **Files**, for the processes of one host. No server is needed:
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
//! **Redis.** The prefix separates the keys of programs that share a server:
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
//! **Redlock**, with an odd number of independent Redis servers. Provision them once with
//! `leasehold init`, so that they vote on fencing tokens:
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
//! **etcd.** With the option `names=exact`, Go's `concurrency.Mutex` of the same name is the same
//! lock:
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
//! **ZooKeeper.** Curator's `InterProcessMutex` on `/shop/locks/item-42` is the same lock. If the
//! option `tick` is the servers' `tickTime`, deadlines are later:
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
//! # #[cfg(feature = "zookeeper")] {
//! let url = "zookeeper://10.0.0.1,10.0.0.2,10.0.0.3/shop/locks?tick=2s";
//! let client = leasehold::connect(url).await?;
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
//! - **Create one client per process** and clone it where it is needed. It keeps one connection, or
//!   one session per TTL, for any number of locks. It belongs to the runtime on which it was
//!   created. At the end, [`LockClient::close`] releases everything at once.
//! - **Choose a TTL** of tens of seconds for most programs. It is how long other processes wait if
//!   a holder dies, and how long a holder can be disconnected before it loses its lock. The first
//!   renewal starts after at most a third of the TTL. With a TTL of a few round trips, one slow
//!   response loses a lock.
//! - **Labels** identify holders. The default has host, process id and program;
//!   [`LockClientBuilder::with_label`] sets another. `leasehold status --url URL NAME` shows
//!   holders and waiters. `leasehold revoke` ends a lock whose holder will not return.
//! - **Monitor** the events of the `tracing` target `leasehold`, and the [metrics](#metrics).
//!   Losses and late renewals are warnings. The spans of waits, held locks, renewals,
//!   releases and writes of records have the level debug and the fields key, backend, token and
//!   outcome.
//!   An acquisition of several keys is one wait, whose span has the number of keys.
//! - **Start and stop**: [`connect_lazily`] lets a program start while the server is down.
//!   [`LockClient::ping`] is for health checks. [`LockClient::drain`] lets holders finish before
//!   [`LockClient::close`].
//! - **Errors**: contention is not an error; `try_lock` and `lock_timeout` return `None`.
//!   [`ErrorKind`] distinguishes unavailable, lost and indeterminate. [`Error::is_retryable`]
//!   returns whether the same call may succeed later. A failed operation leaves no lock for longer
//!   than a TTL.
//! - **A move** to another backend, or a restore from a backup, makes tokens decrease. Store the
//!   pair (epoch, token) at the resource, and increase the epoch then.
//!
//! # Metrics
//!
//! With the feature `metrics`, the client reports to the recorder that the program has installed
//! with the crate [`metrics`](https://docs.rs/metrics) 0.24 (Prometheus, StatsD, OpenTelemetry, …).
//! Install the recorder before the first client is created, which describes the metrics to it.
//! Without the feature, metrics cost nothing. With it, a lock and its release take about a
//! microsecond longer, or two to three with a Prometheus recorder.
//!
//! | name | kind | labels | unit | meaning |
//! |---|---|---|---|---|
//! | `leasehold_acquisitions_total` | counter | `backend`, `outcome` | acquisitions | acquisitions that ended: `granted`, `contended` (a single attempt was refused), `timed_out`, `cancelled` (the future was dropped), or the name of the [`ErrorKind`]. A re-entrant acquisition is not counted |
//! | `leasehold_waiting` | gauge | `backend` | tasks | tasks that wait for a lock |
//! | `leasehold_wait_seconds` | histogram | `backend` | seconds | time from the call to the grant |
//! | `leasehold_held` | gauge | `backend` | locks | locks that this process holds |
//! | `leasehold_hold_seconds` | histogram | `backend` | seconds | time from the grant until the lock was released or lost |
//! | `leasehold_renewals_total` | counter | `backend`, `outcome` | renewals | renewals that ended: `renewed`, or the name of the [`ErrorKind`]. Locks that share a session have one renewal |
//! | `leasehold_losses_total` | counter | `backend`, `reason` | locks | lost locks: `expired`, `replaced`, `session_ended`, `backend_reset`, or `client_closed` for locks that were held when the client was closed, which is not a fault |
//! | `leasehold_releases_total` | counter | `backend`, `outcome` | releases | releases that ended: `freed`, `already_lost` (another holder may have had the lock), or the name of the [`ErrorKind`] of the last attempt, after which the lock expires. A lock that was counted as lost is not counted again |
//! | `leasehold_record_writes_total` | counter | `backend`, `outcome` | writes | writes of [records](#records) that were sent and have ended: `written`, or the name of the [`ErrorKind`] |
//! | `leasehold_once_runs_total` | counter | `backend`, `outcome` | runs | runs of [`once`](#work-that-runs-once) that this process began and that have ended: `ok`, `failed`, `overtime`, or the name of the [`ErrorKind`]: `lost` if the lock was lost at work, `indeterminate` if the end could not be recorded |
//! | `leasehold_terms_total` | counter | `backend` | terms | terms of [elections](#elections) that this process has begun to lead |
//! | `leasehold_quorum_node_up` | gauge | `node` | 1 or 0 | whether the node answered the last request of this process. Absent before the first request |
//! | `leasehold_quorum_node_failures_total` | counter | `node`, `kind` | failures | failed requests to the node, by the [`ErrorKind`]: `unavailable`, `indeterminate` or `denied`. Also `silent`, counted once when a node stops answering |
//! | `leasehold_quorum_write_backs_total` | counter | `backend` | acquisitions | acquisitions of a quorum whose token needed a second round trip |
//!
//! `backend` is [`Capabilities::backend`], such as `redis` or `redlock`. `node` is the address of a
//! node without user and password, as errors show it. Every counter exists from the start at 0 with
//! each label that it can have, so that its first count is an increase. No label contains a key. A
//! lock of a quorum is counted once, not once per node.
//!
//! Useful alerts are:
//!
//! - any increase of `leasehold_losses_total` except with the reason `client_closed`
//! - `leasehold_quorum_node_up` at 0 for minutes, because one more failure may be too many
//! - a `leasehold_waiting` that only grows
//! - releases with the outcome `already_lost`, which means that work was done without the lock
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

/// Work that runs once per occurrence. [`LockClient::once`] is its start.
pub use leasehold_core::once;
pub use leasehold_core::{
    AcquisitionId, All, AllGuard, AllInfo, Capabilities, Clock, ClockDrift, Credentials,
    CredentialsProvider, Deadline, Election, Error, ErrorKind, Expiry, Fairness, Fencing,
    FencingToken, HolderConnection, HolderRef, Inspection, Leader, Leaders, LeaseInfo, LockClient,
    LockClientBuilder, LockGuard, LockKey, LossDetection, LossReason, Mode, Mutex, NodeStatus,
    Pong, Record, RecordWatch, Records, ReentrantOwner, Released, Renewal, Restart, Result,
    Revocation, RevokeOutcome, RwLock, Semaphore, SemaphorePermit, SystemClock, Term, TermInfo,
    TestClock, Timestamp, Ttl, WaiterNotification, WaiterRef, default_label,
};
/// The etcd backend. Its driver is `leasehold::etcd::etcd_client`.
#[cfg(feature = "etcd")]
pub use leasehold_etcd as etcd;
/// The memory backend (one process) and the file backend (one host).
#[cfg(feature = "local")]
pub use leasehold_local as local;
/// The PostgreSQL backend. Its driver is `leasehold::postgres::sqlx`.
#[cfg(feature = "postgres")]
pub use leasehold_postgres as postgres;
/// The backend for Redis and Valkey. Its driver is `leasehold::redis::redis`.
#[cfg(feature = "redis")]
pub use leasehold_redis as redis;
/// The ZooKeeper backend. Its driver is `leasehold::zookeeper::zookeeper_client`.
#[cfg(feature = "zookeeper")]
pub use leasehold_zookeeper as zookeeper;

pub use crate::connect::{ConnectOptions, connect, connect_lazily};
#[cfg(feature = "local")]
pub use crate::scheme::file_options;

/// The contract of backends, and tools to implement one. Start with
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

/// The program in the workspace's README, which is compiled and run as a doctest.
#[cfg(all(doctest, feature = "local"))]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
