//! [`PostgresBackend`]: the entry point of the crate.

use std::{fmt, sync::Arc};

use leasehold_core::{
    Capabilities, ErrorKind, Expiry, Fairness, Fencing, HolderRef, Inspection, LockKey,
    LossDetection, Mode, Pong, Records, Restart, Result, Revocation, RevokeOutcome, Ttl,
    WaiterNotification,
    backend::{
        Attempt, Contention, Lease, LockBackend, RecordRead, RecordReading, Request, async_trait,
        support::check_runtime,
    },
    session::{Sessions, attempt_with_session_retry, queue_with_session_retry},
};
use sqlx::{PgPool, postgres::PgConnectOptions};

use crate::{
    admin,
    config::{ParsedUrl, PostgresConfig},
    connection::Connector,
    error::ERRORS,
    handshake,
    job::LockRequest,
    pending_lock::{AttemptOutcome, PendingLock},
    record::RecordReader,
    server::Server,
    session::PostgresSessions,
    waiters::WaiterRegistry,
};

/// The shortest TTL. A shorter one leaves too little time for an answer.
const MIN_TTL: u64 = 100;
/// The longest TTL. The time-outs of the server are milliseconds in 31 bits.
const MAX_TTL: u64 = i32::MAX as u64;

/// Leases on the advisory locks of a PostgreSQL database.
///
/// Up to 1 000 locks with the same TTL share one connection, and all waiters share another one. The
/// [crate documentation](crate) lists the guarantees.
///
/// ```no_run
/// # async fn example() -> Result<(), leasehold_postgres::Error> {
/// use leasehold_postgres::PostgresBackend;
///
/// let url = "postgres://shop:secret@10.0.0.1/shop?prefix=shop:";
/// let backend = PostgresBackend::connect(url).await?;
/// # Ok(()) }
/// ```
pub struct PostgresBackend {
    connector: Arc<Connector>,
    sessions: Sessions<PostgresSessions>,
    waiters: Arc<WaiterRegistry>,
    records: RecordReader,
    capabilities: Capabilities,
}

impl PostgresBackend {
    /// Connects to the server at `url`; the [crate](crate) lists the URL's options.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`] if the URL is invalid. The message names the problem.
    /// - [`ErrorKind::Unavailable`] if the server does not answer or has no connection left.
    /// - [`ErrorKind::Denied`] if the server refuses the user or the password, or if its
    ///   certificate is refused.
    /// - [`ErrorKind::Unsupported`] for a server before version 12, a standby, a pooler in
    ///   transaction or statement mode (see [Poolers](crate#poolers)), a database whose encoding is
    ///   not UTF8 or that computes other hashes of names, a sequence whose values may fall or be 0
    ///   or less, TLS without the feature `tls`, and TLS that the server does not offer.
    ///
    /// The sequence of the fencing tokens may be missing: the first acquisition creates it. If the
    /// role lacks the right to do so, that acquisition fails with [`ErrorKind::Denied`], and the
    /// message contains the SQL to run.
    ///
    /// # Cancel safety
    /// Safe. A cancelled call leaves nothing on the server.
    pub async fn connect(url: &str) -> Result<Arc<Self>> {
        let ParsedUrl { options, config } = ParsedUrl::parse(url)?;
        Self::from_options(&options, config).await
    }

    /// Connects with the options of the driver.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Safe. A cancelled call leaves nothing on the server.
    pub async fn from_options(
        options: &PgConnectOptions,
        config: PostgresConfig,
    ) -> Result<Arc<Self>> {
        check_runtime()?;
        let (connector, server) = handshake::connect(options, config).await?;
        let capabilities = capabilities(&connector, server);
        let waiters = WaiterRegistry::new(&connector);
        let sessions = Sessions::new(Arc::new(PostgresSessions {
            connector: Arc::clone(&connector),
            waiters: Arc::clone(&waiters),
        }));
        let records = RecordReader::new(&connector, &waiters);
        Ok(Arc::new(Self {
            connector,
            sessions,
            waiters,
            records,
            capabilities,
        }))
    }

    /// Connects with the options of `pool`. No connection of the pool is used, because a connection
    /// that holds locks must not return to a pool. Hooks of the pool do not run.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Safe. A cancelled call leaves nothing on the server.
    pub async fn from_pool(pool: &PgPool, config: PostgresConfig) -> Result<Arc<Self>> {
        Self::from_options(&pool.connect_options(), config).await
    }

    /// Returns the capabilities that every server at `url` has, without connecting to it. For use
    /// with a [`LazyBackend`](leasehold_core::backend::LazyBackend).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the URL is invalid.
    pub fn provisional_capabilities(url: &str) -> Result<Capabilities> {
        let ParsedUrl { options, config } = ParsedUrl::parse(url)?;
        Ok(capabilities(
            &Connector::new(&options, config)?,
            Server::WEAKEST,
        ))
    }

    /// Returns the keys of the request.
    fn lock_request(&self, request: &Request) -> Result<LockRequest> {
        let names = &self.connector.names;
        Ok(match request.mode() {
            Mode::Exclusive => LockRequest::Exclusive(names.lock(request.key())?),
            Mode::Shared => LockRequest::Shared(names.lock(request.key())?),
            Mode::Permit { of } => LockRequest::Permit(names.semaphore(request.key(), of.get())?),
            mode => {
                return Err(ERRORS.error(
                    ErrorKind::Unsupported,
                    "acquire",
                    format!("this backend has no {mode} locks"),
                ));
            }
        })
    }

    /// Makes one attempt, and registers a waiter if the request waits.
    async fn try_once(&self, request: &Request, lock_request: &LockRequest) -> Result<Attempt> {
        let pending = match PendingLock::new(&self.sessions, &self.waiters, request, lock_request)
            .await?
            .attempt()
            .await?
        {
            AttemptOutcome::Granted(lease) => return Ok(Attempt::Granted(lease)),
            AttemptOutcome::Refused(pending) => pending,
        };
        let retry_after = Some(
            self.connector
                .config
                .fallback_poll_interval
                .min(request.ttl().as_duration() / 8),
        );
        if !request.waiting().keeps_waiting {
            return Ok(Attempt::Contended(Contention {
                retry_after,
                ..Contention::default()
            }));
        }
        match pending.attempt_to_wait(&self.connector).await? {
            AttemptOutcome::Granted(lease) => Ok(Attempt::Granted(lease)),
            AttemptOutcome::Refused(waiter) => {
                let retry_after = Some(waiter.poll_after);
                let wake = async move { drop(waiter.notified().await) };
                Ok(Attempt::Contended(Contention {
                    retry_after,
                    last_token: None,
                    wake: Some(Box::pin(wake)),
                }))
            }
        }
    }

    /// Waits until the lock is granted.
    async fn wait(&self, request: &Request, lock_request: &LockRequest) -> Result<Arc<dyn Lease>> {
        let mut pending =
            match PendingLock::new(&self.sessions, &self.waiters, request, lock_request)
                .await?
                .attempt()
                .await?
            {
                AttemptOutcome::Granted(lease) => return Ok(lease),
                AttemptOutcome::Refused(pending) => pending,
            };
        request.set_contended();
        // Boxed, because most requests are granted at once and need no room for the waiting state.
        let waiting = async move {
            loop {
                match pending.attempt_to_wait(&self.connector).await? {
                    AttemptOutcome::Granted(lease) => return Ok(lease),
                    AttemptOutcome::Refused(waiter) => {
                        request.set_contended();
                        pending = waiter.notified().await?;
                    }
                }
            }
        };
        Box::pin(waiting).await
    }
}

#[async_trait]
impl LockBackend for PostgresBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        let lock_request = self.lock_request(&request)?;
        let tried = attempt_with_session_retry(request, |request| {
            let (backend, lock_request) = (&self, &lock_request);
            async move { backend.try_once(&request, lock_request).await }
        });
        tried.await.map_err(|error| ERRORS.named(error, "acquire"))
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let lock_request = self.lock_request(&request)?;
        let queued = queue_with_session_retry(request, |request| {
            let (backend, lock_request) = (&self, &lock_request);
            Box::pin(async move { backend.wait(&request, lock_request).await })
        });
        queued.await.map_err(|error| ERRORS.named(error, "acquire"))
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        let key = key.clone();
        self.connector
            .on_driver_thread("inspect", |connector| async move {
                admin::inspect(&connector, &key).await
            })
            .await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        let holder = holder.clone();
        self.connector
            .on_driver_thread("revoke", |connector| async move {
                admin::revoke(&connector, &holder, revocation).await
            })
            .await
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        self.records.read(read).await
    }

    /// Uses a new connection, so that it also fails if the server has no connection left.
    async fn ping(&self) -> Result<Pong> {
        self.connector
            .on_driver_thread("ping", |connector| async move { connector.ping().await })
            .await
            .map(|()| Pong::new())
    }

    async fn close(&self) -> Result<()> {
        self.waiters.close();
        self.records.close().await;
        self.sessions
            .close()
            .await
            .map_err(|error| ERRORS.named(error, "close"))
    }
}

/// Returns the capabilities of a server.
fn capabilities(connector: &Connector, server: Server) -> Capabilities {
    let mut capabilities = Capabilities::new(ERRORS.backend());
    capabilities.endpoint = connector.endpoint();
    capabilities.shared = true;
    capabilities.permits = true;
    capabilities.min_ttl = Ttl::from_millis(MIN_TTL).unwrap_or(Ttl::MIN);
    capabilities.max_ttl = Ttl::from_millis(MAX_TTL).unwrap_or(Ttl::MAX);
    capabilities.expiry = expiry(server);
    capabilities.fencing = match (connector.config.fencing, server.makes_tokens_durable()) {
        (false, _) => Fencing::None,
        (true, false) => Fencing::BestEffort,
        (true, true) => Fencing::Durable,
    };
    capabilities.fairness = Fairness::BestEffort;
    capabilities.waiter_notification = WaiterNotification::Pushed;
    capabilities.loss_detection = LossDetection::Renewal;
    capabilities.restart = Restart::FreesAtOnce;
    capabilities.pipelined_release = false;
    capabilities.inspect = true;
    capabilities.revoke = true;
    // A standby that lacks the last writes may be promoted.
    capabilities.records = if server.keeps_commits() {
        Records::Durable
    } else {
        Records::UntilDataLoss
    };
    capabilities
}

/// Returns how locks expire. Servers before version 14 do not end silent sessions: there the locks
/// of a session are free only when its connection ends.
fn expiry(server: Server) -> Expiry {
    if server.cuts_off_silent_sessions() {
        Expiry::Session
    } else {
        Expiry::ProcessDeath
    }
}

impl fmt::Display for PostgresBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.capabilities.endpoint)
    }
}

impl fmt::Debug for PostgresBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBackend")
            .field("connector", &self.connector)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_with_idle_session_timeout_have_an_expiry() {
        for (version, expected) in [
            (120_000, Expiry::ProcessDeath),
            (130_014, Expiry::ProcessDeath),
            (140_000, Expiry::Session),
            (170_002, Expiry::Session),
        ] {
            assert_eq!(
                expiry(Server {
                    version,
                    asynchronous_standbys: false,
                    syncs: true,
                    flushes: true
                }),
                expected,
                "{version}"
            );
        }
    }
}
