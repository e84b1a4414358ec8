//! [`PostgresBackend`].

use std::{fmt, sync::Arc};

use leasehold_core::{
    Capabilities, ErrorKind, Expiry, Fairness, Fencing, HolderRef, Inspection, LockKey,
    LossDetection, Mode, Pong, Restart, Result, Revocation, RevokeOutcome, Ttl, WaiterNotification,
    backend::{
        Attempt, Contention, Lease, LockBackend, Request, async_trait, support::check_runtime,
    },
    session::{Sessions, attempt_with_session_retry, queue_with_session_retry},
};
use sqlx::{PgPool, postgres::PgConnectOptions};

use crate::{
    batch::Want,
    config::PostgresConfig,
    connection::Link,
    error::{self, BACKEND, named},
    inspect,
    queue::{PendingLock, Tried},
    revoke,
    server::Server,
    session::PostgresSessions,
    url::ParsedUrl,
    waiters::WaiterRegistry,
};

/// Shorter ones leave too little time for an answer.
const MIN_TTL: u64 = 100;
/// The server's time-outs are milliseconds in 31 bits.
const MAX_TTL: u64 = i32::MAX as u64;

/// Advisory locks of a PostgreSQL database, as leases.
///
/// All locks of one TTL live in one connection, up to about 1 000, and all waiters share one more.
/// See the [crate](crate) for what is guaranteed.
///
/// ```no_run
/// # async fn example() -> Result<(), leasehold_postgres::Error> {
/// use leasehold_postgres::PostgresBackend;
///
/// let backend = PostgresBackend::connect("postgres://shop:secret@10.0.0.1/shop?prefix=shop:").await?;
/// # Ok(()) }
/// ```
pub struct PostgresBackend {
    link: Arc<Link>,
    sessions: Sessions<PostgresSessions>,
    waiters: Arc<WaiterRegistry>,
    capabilities: Capabilities,
}

impl PostgresBackend {
    /// Connects to the server at `url`; the [crate](crate) lists the URL's options.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`] for the URL, naming what is wrong with it.
    /// - [`ErrorKind::Unavailable`] if the server does not answer or has no connection left,
    ///   [`ErrorKind::Denied`] if it refuses the user or the password, or its certificate is
    ///   refused.
    /// - [`ErrorKind::Unsupported`] for a server before version 12, a standby, a pooler in
    ///   transaction or statement mode (see [Poolers](crate#poolers)), a database whose encoding is
    ///   not UTF8 or that hashes text in its own way, a sequence whose values may fall or be 0 or
    ///   less, and for TLS without the feature `tls` or that the server does not offer.
    ///
    /// The sequence of the fencing tokens may be missing: the first acquisition creates it. If the
    /// role may not, that acquisition fails with [`ErrorKind::Denied`], and the error says what to
    /// run.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn connect(url: &str) -> Result<Arc<Self>> {
        let ParsedUrl { options, config } = ParsedUrl::parse(url)?;
        Self::from_options(&options, config).await
    }

    /// Connects with the driver's own options.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn from_options(
        options: &PgConnectOptions,
        config: PostgresConfig,
    ) -> Result<Arc<Self>> {
        check_runtime()?;
        let (link, server) = Link::connected(options, config).await?;
        let capabilities = capabilities(&link, server);
        let waiters = WaiterRegistry::new(&link);
        let sessions = Sessions::new(Arc::new(PostgresSessions {
            link: Arc::clone(&link),
            waiters: Arc::clone(&waiters),
        }));
        Ok(Arc::new(Self {
            link,
            sessions,
            waiters,
            capabilities,
        }))
    }

    /// Connects to where `pool` connects. None of the pool's connections is used: what holds locks
    /// must not go back into a pool. Hooks of the pool do not run.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn from_pool(pool: &PgPool, config: PostgresConfig) -> Result<Arc<Self>> {
        Self::from_options(&pool.connect_options(), config).await
    }

    /// Returns what any server at `url` does, without connecting to it. For a
    /// [`LazyBackend`](leasehold_core::backend::LazyBackend).
    ///
    /// # Errors
    /// As [`connect`](Self::connect) for the URL.
    pub fn provisional_capabilities(url: &str) -> Result<Capabilities> {
        let ParsedUrl { options, config } = ParsedUrl::parse(url)?;
        Ok(capabilities(&Link::new(&options, config)?, Server::WEAKEST))
    }

    fn check(&self, request: &Request) -> Result<Want> {
        self.capabilities
            .check(request.mode(), request.ttl())
            .map_err(|error| error.with_operation("acquire"))?;
        let names = &self.link.names;
        Ok(match request.mode() {
            Mode::Exclusive => Want::Exclusive(names.lock(request.key())?),
            Mode::Shared => Want::Shared(names.lock(request.key())?),
            Mode::Permit { of } => Want::Permit(names.semaphore(request.key(), of.get())?),
            mode => {
                return Err(error::plain(
                    ErrorKind::Unsupported,
                    "acquire",
                    format!("this backend has no {mode} locks"),
                ));
            }
        })
    }

    async fn try_once(&self, request: &Request, want: &Want) -> Result<Attempt> {
        let pending = match PendingLock::new(&self.sessions, &self.waiters, request, want)
            .await?
            .attempt()
            .await?
        {
            Tried::Granted(lease) => return Ok(Attempt::Granted(lease)),
            Tried::Refused(pending) => pending,
        };
        let retry_after = Some(
            self.link
                .config
                .fallback_poll_interval
                .min(request.ttl().as_duration() / 8),
        );
        if !request.is_waiting() {
            return Ok(Attempt::Contended(Contention {
                retry_after,
                ..Contention::default()
            }));
        }
        match pending.attempt_to_wait(&self.link).await? {
            Tried::Granted(lease) => Ok(Attempt::Granted(lease)),
            Tried::Refused(waiter) => {
                let retry_after = Some(waiter.net);
                let wake = async move { drop(waiter.woken().await) };
                Ok(Attempt::Contended(Contention {
                    retry_after,
                    last_token: None,
                    wake: Some(Box::pin(wake)),
                }))
            }
        }
    }

    /// Waits until granted.
    async fn wait(&self, request: &Request, want: &Want) -> Result<Arc<dyn Lease>> {
        let mut pending = match PendingLock::new(&self.sessions, &self.waiters, request, want)
            .await?
            .attempt()
            .await?
        {
            Tried::Granted(lease) => return Ok(lease),
            Tried::Refused(pending) => pending,
        };
        request.set_contended();
        // Apart: most are granted at once, and need no room for what waiting needs.
        let waits = async move {
            loop {
                match pending.attempt_to_wait(&self.link).await? {
                    Tried::Granted(lease) => return Ok(lease),
                    Tried::Refused(waiter) => {
                        request.set_contended();
                        pending = waiter.woken().await?;
                    }
                }
            }
        };
        Box::pin(waits).await
    }
}

#[async_trait]
impl LockBackend for PostgresBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        let want = self.check(&request)?;
        let tried = attempt_with_session_retry(request, |request| {
            let (backend, want) = (&self, &want);
            async move { backend.try_once(&request, want).await }
        });
        tried.await.map_err(|error| named(error, "acquire"))
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let want = self.check(&request)?;
        let queued = queue_with_session_retry(request, |request| {
            let (backend, want) = (&self, &want);
            Box::pin(async move { backend.wait(&request, want).await })
        });
        queued.await.map_err(|error| named(error, "acquire"))
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        let key = key.clone();
        self.link
            .on_driver_thread("inspect", |link| async move {
                inspect::inspect(&link, &key).await
            })
            .await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        let holder = holder.clone();
        self.link
            .on_driver_thread("break", |link| async move {
                revoke::revoke(&link, &holder, revocation).await
            })
            .await
    }

    /// Asks on a connection of its own, so that it also tells when the server has no connection
    /// left.
    async fn ping(&self) -> Result<Pong> {
        self.link
            .on_driver_thread("ping", |link| async move { link.ping().await })
            .await
            .map(|()| Pong::new())
    }

    async fn close(&self) -> Result<()> {
        self.waiters.close();
        self.sessions
            .close()
            .await
            .map_err(|error| named(error, "close"))
    }
}

fn capabilities(link: &Link, server: Server) -> Capabilities {
    let mut capabilities = Capabilities::new(BACKEND);
    capabilities.endpoint = link.endpoint();
    capabilities.shared = true;
    capabilities.permits = true;
    capabilities.min_ttl = Ttl::from_millis(MIN_TTL).unwrap_or(Ttl::MIN);
    capabilities.max_ttl = Ttl::from_millis(MAX_TTL).unwrap_or(Ttl::MAX);
    capabilities.expiry = expiry(server);
    capabilities.fencing = match (link.config.fencing, server.makes_tokens_durable()) {
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
    capabilities
}

/// Older servers do not cut off a session that has fallen silent: only its connection's end frees
/// what it holds.
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
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_cut_off_the_silent_have_an_expiry() {
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
