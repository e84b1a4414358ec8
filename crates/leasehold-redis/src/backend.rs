//! [`RedisBackend`]: the entry point of the crate.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use leasehold_core::{
    Capabilities, ErrorKind, Fairness, Fencing, HolderRef, Inspection, LockKey, LossDetection,
    Mode, Pong, Restart, Result, Revocation, RevokeOutcome, Ttl, WaiterNotification,
    backend::{
        Attempt, BoxFuture, Contention, Lease, LockBackend, Request, acquire_with_retry,
        async_trait, support::check_runtime,
    },
    quorum::VoteRequirements,
};
use redis::{Client, Cmd, Value};

use crate::{
    admin,
    cleanup::{self, CleanupQueue},
    commands::{self, Operation, TOKEN_LIMIT},
    config::{NotificationMode, ParsedUrl, RedisConfig},
    connection_manager::ConnectionManager,
    error::{self, BACKEND, SideEffect},
    handshake,
    keys::{Keys, Kind},
    lease::RedisLease,
    quorum::vote,
    reply::{AcquireReply, ObservedHolder, Refusal},
    value::LockValue,
    waiters::Generation,
};

/// The shortest TTL. Clock drift and network latency would use up a shorter one.
const MIN_TTL: u64 = 10;
/// The longest wait without a notification for a lock that never expires. Only other programs set
/// such locks.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// The longest time for which closing waits for the cleanup of attempts of unknown outcome.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval between the attempts of a waiter that is not notified.
const POLL: Duration = Duration::from_millis(50);
/// The longest interval between the attempts of a waiter. Each attempt renews the waiter's
/// registration, which expires after 5 s (`LIFE` in `waiters.lua`), so a waiter keeps its place if
/// one request is lost or late. A process that waits for 1 000 locks sends 500 requests per second.
const REFRESH: Duration = Duration::from_secs(2);

/// A backend that keeps locks on one Redis or Valkey server.
///
/// All operations share one multiplexed connection, which is replaced when it fails. The
/// [crate documentation](crate) lists the guarantees.
///
/// ```no_run
/// # async fn example() -> Result<(), leasehold_redis::Error> {
/// use leasehold_redis::RedisBackend;
///
/// let backend = RedisBackend::connect("redis://127.0.0.1/?prefix=shop:").await?;
/// # Ok(()) }
/// ```
pub struct RedisBackend {
    manager: Arc<ConnectionManager>,
    cleanup_queue: Arc<CleanupQueue>,
    capabilities: Capabilities,
}

impl RedisBackend {
    /// Connects to the server at `url`; the [crate](crate) lists the URL's options.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`] if the URL is invalid. The message names the problem.
    /// - [`ErrorKind::Unavailable`] if the server cannot be reached, [`ErrorKind::Denied`] if it
    ///   refuses the user or the password, or shows a wrong certificate.
    /// - [`ErrorKind::Unsupported`] for a server before 6.2, a read-only replica, or TLS without
    ///   the feature `tls`.
    ///
    /// # Cancel safety
    /// Safe. A cancelled call leaves nothing on the server.
    pub async fn connect(url: &str) -> Result<Arc<Self>> {
        let ParsedUrl { client, config } = ParsedUrl::parse(url)?;
        Self::from_client(&client, config).await
    }

    /// Connects with the settings of `client`. Its RESP version does not matter: RESP3 is used if
    /// the server has it.
    ///
    /// The connection is a new one, because other users could close or block a shared one.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect), except for an invalid URL.
    ///
    /// # Cancel safety
    /// Safe. A cancelled call leaves nothing on the server.
    pub async fn from_client(client: &Client, config: RedisConfig) -> Result<Arc<Self>> {
        check_runtime()?;
        let backend = Self::unconnected(client, config)?;
        let conn = backend.manager.connection().await?;
        Ok(Arc::new(Self {
            capabilities: capabilities(backend.manager.endpoint.clone(), conn.pushes, conn.restart),
            ..backend
        }))
    }

    /// Returns the capabilities that every server at `url` has, without connecting to it. A
    /// [`LazyBackend`](leasehold_core::backend::LazyBackend) reports them until it is connected.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the URL is invalid.
    pub fn provisional_capabilities(url: &str) -> Result<Capabilities> {
        let ParsedUrl { client, config } = ParsedUrl::parse(url)?;
        Ok(Self::weakest(&client, config)?.capabilities)
    }

    /// Returns a backend that is not connected, with the capabilities of the weakest server.
    pub(crate) fn weakest(client: &Client, config: RedisConfig) -> Result<Self> {
        let backend = Self::unconnected(client, config)?;
        let capabilities = capabilities(
            backend.manager.endpoint.clone(),
            false,
            Restart::FreesAtOnce,
        );
        Ok(Self {
            capabilities,
            ..backend
        })
    }

    /// Connects as [`from_client`](Self::from_client), but accepts a server that cannot be used
    /// now, because it may become usable later.
    pub(crate) async fn from_client_if_usable(
        client: &Client,
        config: RedisConfig,
    ) -> Result<Arc<Self>> {
        check_runtime()?;
        let backend = Self::unconnected(client, config)?;
        match backend.manager.connection().await {
            Ok(conn) => Ok(Arc::new(Self {
                capabilities: capabilities(
                    backend.manager.endpoint.clone(),
                    conn.pushes,
                    conn.restart,
                ),
                ..backend
            })),
            Err(error) if error.kind() == ErrorKind::InvalidInput => Err(error),
            Err(_) => Ok(Arc::new(backend)),
        }
    }

    /// Returns a backend that is not connected, with the capabilities of most servers.
    fn unconnected(client: &Client, config: RedisConfig) -> Result<Self> {
        let client = config.apply_to(&handshake::with_resp3(client)?)?;
        config.name()?;
        let endpoint = endpoint_of(&client);
        let pushes = config.notifications == NotificationMode::Pushed;
        let manager = ConnectionManager::new(client, config, endpoint);
        let capabilities = capabilities(manager.endpoint.clone(), pushes, Restart::AsPersisted);
        Ok(Self {
            manager,
            cleanup_queue: Arc::default(),
            capabilities,
        })
    }

    pub(crate) fn manager(&self) -> &Arc<ConnectionManager> {
        &self.manager
    }

    /// Makes one attempt. `requirements` are those of a quorum, if this is a vote. `registered`
    /// means that an earlier attempt of this acquisition has registered it as a waiter.
    pub(crate) async fn attempt(
        &self,
        request: Request,
        requirements: Option<&VoteRequirements>,
        registered: bool,
    ) -> Result<Attempt> {
        let prefix = &self.manager.config.prefix;
        Keys::check(prefix, request.key()).map_err(in_acquire)?;
        if requirements
            .is_some_and(|requirements| requirements.token_floor.get() >= TOKEN_LIMIT - 2)
        {
            return Err(error::plain(
                ErrorKind::InvalidInput,
                "acquire",
                "a token floor must stay below 2^53",
            ));
        }
        let keys = Keys::new(prefix, request.key());
        let mut before = self.generation(request.mode(), &keys);
        let mut sent = request.now();
        let mut answer = self
            .ask(&request, requirements, &keys, registered, false)
            .await;
        let mut again = false;
        // Without pushes, a closed connection is noticed only when it is used.
        if answer.as_ref().is_err_and(error::broke)
            && Box::pin(cleanup::undone(&self.manager, &request)).await
        {
            (before, sent, again) = (self.generation(request.mode(), &keys), request.now(), true);
            answer = Box::pin(self.ask(&request, requirements, &keys, registered, again)).await;
        }
        let answer = answer.and_then(|answer| AcquireReply::read(&answer, request.mode()));
        match answer {
            Ok(AcquireReply::RefusedNoInfo) => Ok(Attempt::Contended(Contention::default())),
            Ok(AcquireReply::Granted(token)) => Ok(Attempt::Granted(Arc::new(RedisLease::new(
                &self.manager,
                request,
                token,
                sent,
            )))),
            Ok(AcquireReply::Refused(refusal, left, found)) => {
                let mut contention = self.contention(&request, &keys, before, refusal, left);
                if request.waiting().keeps_waiting {
                    self.put_off(&mut contention, &request, found);
                }
                Ok(Attempt::Contended(contention))
            }
            Ok(AcquireReply::Mismatch { theirs }) => Err(error::plain(
                ErrorKind::Conflict,
                "acquire",
                format!(
                    "`{}` is held as permit of {theirs} and was asked for as {}; say the same count everywhere",
                    request.key(),
                    request.mode()
                ),
            )),
            Err(error) => {
                if error::may_have_taken(&error) || again && request.waiting().keeps_waiting {
                    self.cleanup_queue.add(&self.manager, &request);
                }
                Err(error)
            }
        }
    }

    /// Sends one attempt. `again` means that the attempt was sent before and may have registered a
    /// waiter.
    async fn ask(
        &self,
        request: &Request,
        requirements: Option<&VoteRequirements>,
        keys: &Keys<'_>,
        registered: bool,
        again: bool,
    ) -> Result<Value> {
        let registered = registered || again && request.waiting().keeps_waiting;
        match (requirements, request.mode()) {
            (Some(requirements), Mode::Exclusive | Mode::Shared) => {
                Box::pin(vote::acquire(
                    &self.manager,
                    request,
                    requirements,
                    keys,
                    again,
                ))
                .await
            }
            (_, Mode::Exclusive) => self.exclusive(request, keys, registered).await,
            (_, Mode::Shared | Mode::Permit { .. }) => {
                let options = commands::options(request, registered);
                // Boxed, so that rare cases do not enlarge the usual future.
                Box::pin(self.acquire_by_script(request, keys, &options)).await
            }
            // The client refuses a mode that the capabilities do not have.
            _ => Err(error::protocol("acquire")),
        }
    }

    /// Makes one exclusive attempt. The answer nil is a refusal that does not say when to retry.
    async fn exclusive(
        &self,
        request: &Request,
        keys: &Keys<'_>,
        registered: bool,
    ) -> Result<Value> {
        match self
            .manager
            .operate(Operation::Acquire { registered }, request)
            .await?
        {
            // The refusal came from commands that neither request a notification nor register a
            // waiter. The script does both.
            Value::Nil if request.waiting().keeps_waiting || request.waiting().yields => {
                let options = commands::options(request, registered);
                Box::pin(self.acquire_by_script(request, keys, &options)).await
            }
            // Granted, but the token counter was lost.
            Value::Okay => Box::pin(self.draw_token(request, keys)).await,
            answer => Ok(answer),
        }
    }

    async fn acquire_by_script(
        &self,
        request: &Request,
        keys: &Keys<'_>,
        options: &[&str],
    ) -> Result<Value> {
        let (mode, conn) = (
            request.mode(),
            self.manager.connection_flushed("acquire").await?,
        );
        let arguments = |cmd: &mut Cmd| {
            commands::acquire_arguments(cmd, keys, request, options, conn.run_id());
        };
        let script = commands::acquire_script(mode);
        let answer = self
            .manager
            .run_on(&conn, script, "acquire", SideEffect::Writes, arguments)
            .await?;
        if let (Mode::Exclusive, Value::BulkString(_)) = (mode, &answer) {
            conn.mark_seeded(keys.slot());
        }
        Ok(answer)
    }

    /// Draws the token of a lock that is held and has no token yet.
    async fn draw_token(&self, request: &Request, keys: &Keys<'_>) -> Result<Value> {
        self.acquire_by_script(request, keys, &["draw_token"])
            .await
            .map_err(|error| match error.kind() {
                // The script has released the lock.
                ErrorKind::UnexpectedResponse => error,
                _ => error::plain(
                    ErrorKind::Indeterminate,
                    "acquire",
                    "the lock was taken, but its token could not be drawn",
                )
                .with_source(error),
            })
    }

    /// Waits until the lock is granted. `first` is the result of an attempt that was already made.
    async fn wait(
        &self,
        request: Request,
        first: Option<Result<Attempt>>,
    ) -> Result<Arc<dyn Lease>> {
        // The request that is registered as a waiter, so that a failed wait can withdraw it. Its
        // owner changes after an attempt of unknown outcome. The first attempt may have registered
        // the request even if it is cancelled by now and not tried again.
        let registered = matches!(first, Some(Ok(Attempt::Contended(_)))).then(|| request.clone());
        let (first, waiter) = (Mutex::new(first), Mutex::new(registered));
        let (first, waiter) = (&first, &waiter);
        let acquired = acquire_with_retry(request, |request| async move {
            let waiting = || waiter.lock().unwrap_or_else(PoisonError::into_inner);
            let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let attempt = match first {
                Some(attempt) => attempt,
                None => {
                    let registered = waiting()
                        .as_ref()
                        .is_some_and(|waiter| waiter.owner() == request.owner());
                    // A registered waiter asks in order even without a notification, because the
                    // server passes over a waiter that does not take a free lock in time.
                    self.attempt(
                        request
                            .clone()
                            .with_waiting(|waiting| waiting.in_order = registered),
                        None,
                        registered,
                    )
                    .await
                }
            };
            if let Ok(Attempt::Contended(_)) = attempt {
                *waiting() = Some(request);
            }
            attempt
        })
        .await;
        if acquired.is_err() {
            let waiter = waiter.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(request) = waiter {
                self.withdraw_waiter(&request).await;
            }
        }
        acquired
    }

    /// Removes a waiter's registration, now or as soon as the server can be reached.
    async fn withdraw_waiter(&self, request: &Request) {
        let withdrawn = match self.manager.current_connection() {
            Some(conn) => {
                cleanup::stop_waiting(&self.manager, &conn, request, LockValue::of(request))
                    .await
                    .is_ok()
            }
            None => false,
        };
        if !withdrawn {
            self.cleanup_queue.add(&self.manager, request);
        }
    }

    fn generation(&self, mode: Mode, keys: &Keys<'_>) -> Generation {
        let waiters = &self.manager.waiters;
        match mode {
            Mode::Shared => waiters.generation([keys.lock(), keys.derived(Kind::Writers)]),
            Mode::Permit { .. } => waiters.generation([keys.derived(Kind::Permits)]),
            _ => waiters.generation([keys.lock()]),
        }
    }

    fn contention(
        &self,
        request: &Request,
        keys: &Keys<'_>,
        before: Generation,
        refusal: Refusal,
        left: i64,
    ) -> Contention {
        // If there is no connection, it has just broken. The generation has changed since, so the
        // waiter is notified at once.
        let pushes = self.manager.config.notifications == NotificationMode::Pushed
            && self
                .manager
                .current_connection()
                .is_none_or(|conn| conn.pushes);
        let waiters = &self.manager.waiters;
        let wake = pushes.then(|| match request.mode() {
            Mode::Shared => waiters.register([keys.lock(), keys.derived(Kind::Writers)], before),
            Mode::Permit { .. } => waiters.register([keys.derived(Kind::Permits)], before),
            _ => waiters.register([keys.lock()], before),
        });
        // A waiter that only renews its registration asks as if it had been notified, so that it
        // keeps its place in a quorum, too.
        let refresh = self
            .manager
            .config
            .fallback_poll_interval
            .unwrap_or(REFRESH);
        let wake = wake.map(|wake| {
            let (manager, waiter) = (Arc::clone(&self.manager), request.waiting().id);
            let refreshed = async move {
                if tokio::time::timeout(refresh, wake).await.is_ok() {
                    manager.notification_backoff.notified(waiter);
                }
            };
            Box::pin(refreshed) as BoxFuture<'static, ()>
        });
        // Spreads the attempts of waiters for the same deadline.
        let spread = Duration::from_micros((request.owner().as_u128() % 4_000) as u64);
        let left = u64::try_from(left).map_or(MAX_WAIT, Duration::from_millis);
        let mut retry_after = match refusal {
            // A member of a sorted set expires without a push, so its expiry is the only signal.
            Refusal::Offered | Refusal::Writers => left,
            Refusal::Held if request.mode().is_permit() => left,
            Refusal::Held => self.manager.config.fallback_poll_interval.unwrap_or(left),
        } + spread;
        if !pushes {
            retry_after = retry_after.min(POLL / 2 + spread * 8);
        }
        Contention {
            retry_after: Some(retry_after),
            last_token: None,
            wake,
        }
    }

    /// Delays the next notification if the previous ones were needless.
    fn put_off(&self, contention: &mut Contention, request: &Request, found: ObservedHolder) {
        let pause = self
            .manager
            .notification_backoff
            .refused(request.waiting().id, found);
        if pause.is_zero() {
            return;
        }
        let not_before = tokio::time::Instant::now() + pause;
        if let Some(wake) = contention.wake.take() {
            contention.wake = Some(Box::pin(async move {
                wake.await;
                tokio::time::sleep_until(not_before).await;
            }));
        }
    }
}

#[async_trait]
impl LockBackend for RedisBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        // An earlier attempt may have registered the waiter, which is not known here.
        let registered = request.waiting().keeps_waiting;
        self.attempt(request, None, registered).await
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let request = request.with_waiting(|waiting| waiting.keeps_waiting = true);
        if request.is_cancelled() {
            return Box::pin(self.wait(request, None)).await;
        }
        // Most requests are granted at once and need none of a waiter's state.
        match self.attempt(request.clone(), None, false).await {
            Ok(Attempt::Granted(lease)) => Ok(lease),
            other => Box::pin(self.wait(request, Some(other))).await,
        }
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        admin::inspect(&self.manager, key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        admin::revoke(&self.manager, holder, revocation).await
    }

    async fn ping(&self) -> Result<Pong> {
        let conn = self.manager.connection_flushed("ping").await?;
        match conn.send(&redis::cmd("PING")).await {
            Ok(_) => Ok(Pong::new()),
            // The server has answered. A user without the right to `PING` may still use locks.
            Err(error)
                if error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoPerm) =>
            {
                Ok(Pong::new())
            }
            Err(error) => Err(self
                .manager
                .map_error(&conn, error, "ping", SideEffect::None)),
        }
    }

    async fn close(&self) -> Result<()> {
        // The cleanup of attempts of unknown outcome needs the connection.
        drop(tokio::time::timeout(CLOSE_TIMEOUT, self.cleanup_queue.removed()).await);
        self.manager.close();
        Ok(())
    }
}

fn in_acquire(error: leasehold_core::Error) -> leasehold_core::Error {
    error.with_backend(BACKEND).with_operation("acquire")
}

fn capabilities(endpoint: String, pushes: bool, restart: Restart) -> Capabilities {
    let mut capabilities = Capabilities::new(BACKEND);
    capabilities.endpoint = endpoint;
    capabilities.shared = true;
    capabilities.permits = true;
    capabilities.min_ttl = Ttl::from_millis(MIN_TTL).unwrap_or(Ttl::MIN);
    capabilities.fencing = Fencing::Clocked;
    // Without notifications, a waiter cannot know whether earlier waiters have had their chance.
    capabilities.fairness = if pushes {
        Fairness::BestEffort
    } else {
        Fairness::None
    };
    capabilities.waiter_notification = if pushes {
        WaiterNotification::Pushed
    } else {
        WaiterNotification::Polled(POLL)
    };
    capabilities.loss_detection = LossDetection::Renewal;
    capabilities.restart = restart;
    capabilities.pipelined_release = true;
    capabilities.inspect = true;
    capabilities.revoke = true;
    capabilities
}

/// Returns the server's address without secrets.
fn endpoint_of(client: &Client) -> String {
    let info = client.get_connection_info();
    let db = info.redis_settings().db();
    match info.addr() {
        redis::ConnectionAddr::Unix(path) => format!("redis+unix://{}?db={db}", path.display()),
        redis::ConnectionAddr::TcpTls { host, port, .. } => {
            format!("rediss://{}:{port}/{db}", bracketed(host))
        }
        redis::ConnectionAddr::Tcp(host, port) => {
            format!("redis://{}:{port}/{db}", bracketed(host))
        }
        other => format!("redis://{other}/{db}"),
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

impl fmt::Display for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.manager.endpoint)
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("manager", &self.manager)
            .field("config", &self.manager.config)
            .finish_non_exhaustive()
    }
}
