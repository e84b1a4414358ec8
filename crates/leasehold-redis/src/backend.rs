//! [`RedisBackend`].

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
    cleanup::{self, CleanupQueue},
    commands::{self, Operation, TOKEN_LIMIT},
    config::{NotificationMode, RedisConfig},
    connection::Link,
    error::{self, BACKEND, Effect},
    handshake, inspect,
    keys::{Keys, Kind},
    lease::RedisLease,
    reply::{Answer, Refusal, ServerInfo},
    revoke, scripts,
    url::ParsedUrl,
    value::Holder,
    vote,
    waiters::Generation,
};

/// Below this, drift and network leave nothing to work with.
const MIN_TTL: u64 = 10;
/// How long to wait at most for a holder that has no end (another program's), unless it is woken.
const NET: Duration = Duration::from_secs(30);
/// How long closing waits at most for the server to be reached, where something may have been left
/// there.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// How often waiters ask where nothing can wake them.
const POLL: Duration = Duration::from_millis(50);
/// How often a waiter asks at least, and so renews its registration. That is well within the 5 s
/// that a registration lives (LIFE in waiters.lua), so that a request that is lost or late costs no
/// waiter its place. A process that waits for 1 000 locks sends 500 requests a second.
const REFRESH: Duration = Duration::from_secs(2);

/// Locks on one Redis or Valkey server.
///
/// All operations share one multiplexed connection, which is replaced when it fails. See the
/// [crate](crate) for what is guaranteed.
///
/// ```no_run
/// # async fn example() -> Result<(), leasehold_redis::Error> {
/// use leasehold_redis::RedisBackend;
///
/// let backend = RedisBackend::connect("redis://127.0.0.1/?prefix=shop:").await?;
/// # Ok(()) }
/// ```
pub struct RedisBackend {
    link: Arc<Link>,
    orphans: Arc<CleanupQueue>,
    capabilities: Capabilities,
}

impl RedisBackend {
    /// Connects to the server at `url`; the [crate](crate) lists the URL's options.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`] for the URL, naming what is wrong with it.
    /// - [`ErrorKind::Unavailable`] if the server cannot be reached, [`ErrorKind::Denied`] if it
    ///   refuses the user or the password, or shows a wrong certificate.
    /// - [`ErrorKind::Unsupported`] for a server before 6.2, a read-only replica, or TLS without
    ///   the feature `tls`.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn connect(url: &str) -> Result<Arc<Self>> {
        let ParsedUrl { client, config } = ParsedUrl::parse(url)?;
        Self::from_client(&client, config).await
    }

    /// Connects as `client` does. Its RESP version does not matter: RESP3 is used where the server
    /// has it.
    ///
    /// The connection is a new one: a connection that others use could be closed or blocked by
    /// them.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), except for the URL.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind.
    pub async fn from_client(client: &Client, config: RedisConfig) -> Result<Arc<Self>> {
        check_runtime()?;
        let backend = Self::unconnected(client, config)?;
        let live = backend.link.live().await?;
        Ok(Arc::new(Self {
            capabilities: capabilities(backend.link.endpoint.clone(), live.pushes, live.restart),
            ..backend
        }))
    }

    /// Returns what any server at `url` does, without connecting to it. For a
    /// [`LazyBackend`](leasehold_core::backend::LazyBackend).
    ///
    /// # Errors
    /// As [`connect`](Self::connect) for the URL.
    pub fn provisional_capabilities(url: &str) -> Result<Capabilities> {
        let ParsedUrl { client, config } = ParsedUrl::parse(url)?;
        Ok(Self::weakest(&client, config)?.capabilities)
    }

    /// Not connected, and with the capabilities of the weakest server.
    pub(crate) fn weakest(client: &Client, config: RedisConfig) -> Result<Self> {
        let backend = Self::unconnected(client, config)?;
        let capabilities = capabilities(backend.link.endpoint.clone(), false, Restart::FreesAtOnce);
        Ok(Self {
            capabilities,
            ..backend
        })
    }

    /// As [`from_client`](Self::from_client), but a server that cannot be used now, for whatever
    /// reason, may be cured later.
    pub(crate) async fn from_client_if_usable(
        client: &Client,
        config: RedisConfig,
    ) -> Result<Arc<Self>> {
        check_runtime()?;
        let backend = Self::unconnected(client, config)?;
        match backend.link.live().await {
            Ok(live) => Ok(Arc::new(Self {
                capabilities: capabilities(
                    backend.link.endpoint.clone(),
                    live.pushes,
                    live.restart,
                ),
                ..backend
            })),
            Err(error) if error.kind() == ErrorKind::InvalidInput => Err(error),
            Err(_) => Ok(Arc::new(backend)),
        }
    }

    /// Not yet connected, and so with the capabilities of most servers.
    fn unconnected(client: &Client, config: RedisConfig) -> Result<Self> {
        let client = config.apply_to(&handshake::with_resp3(client)?)?;
        config.name()?;
        let endpoint = endpoint_of(&client);
        let pushes = config.notifications == NotificationMode::Pushed;
        let link = Link::new(client, config, endpoint);
        let capabilities = capabilities(link.endpoint.clone(), pushes, Restart::AsPersisted);
        Ok(Self {
            link,
            orphans: Arc::default(),
            capabilities,
        })
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Makes one attempt. `requirements`: for a quorum. `registered`: an earlier attempt of this
    /// acquisition has registered it as a waiter.
    pub(crate) async fn attempt(
        &self,
        request: Request,
        requirements: Option<&VoteRequirements>,
        registered: bool,
    ) -> Result<Attempt> {
        let prefix = &self.link.config.prefix;
        Keys::check(prefix, request.key()).map_err(in_acquire)?;
        self.capabilities
            .check(request.mode(), request.ttl())
            .map_err(in_acquire)?;
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
        // An idle connection without pushes is found closed only when it is used.
        if answer.as_ref().is_err_and(error::broke)
            && Box::pin(cleanup::undone(&self.link, &request)).await
        {
            (before, sent, again) = (self.generation(request.mode(), &keys), request.now(), true);
            answer = Box::pin(self.ask(&request, requirements, &keys, registered, again)).await;
        }
        let answer = answer.and_then(|answer| Answer::read(&answer, request.mode()));
        match answer {
            Ok(Answer::RefusedBriefly) => Ok(Attempt::Contended(Contention::default())),
            Ok(Answer::Granted(token)) => Ok(Attempt::Granted(Arc::new(RedisLease::new(
                &self.link, request, token, sent,
            )))),
            Ok(Answer::Refused(refusal, left, found)) => {
                let mut contention = self.contention(&request, &keys, before, refusal, left);
                if request.is_waiting() {
                    self.put_off(&mut contention, &request, found);
                }
                Ok(Attempt::Contended(contention))
            }
            Ok(Answer::Mismatch { theirs }) => Err(error::plain(
                ErrorKind::Conflict,
                "acquire",
                format!(
                    "`{}` is held as permit of {theirs} and was asked for as {}; say the same count everywhere",
                    request.key(),
                    request.mode()
                ),
            )),
            Err(error) => {
                if error::may_have_taken(&error) || again && request.is_waiting() {
                    self.orphans.add(&self.link, &request);
                }
                Err(error)
            }
        }
    }

    /// `again`: the first asking may have registered it as a waiter.
    async fn ask(
        &self,
        request: &Request,
        requirements: Option<&VoteRequirements>,
        keys: &Keys<'_>,
        registered: bool,
        again: bool,
    ) -> Result<Value> {
        let registered = registered || again && request.is_waiting();
        match (requirements, request.mode()) {
            (Some(requirements), Mode::Exclusive | Mode::Shared) => {
                Box::pin(vote::acquire(
                    &self.link,
                    request,
                    requirements,
                    keys,
                    again,
                ))
                .await
            }
            (_, Mode::Exclusive) => self.exclusive(request, keys, registered).await,
            // Boxed, here and elsewhere, is what would make the usual way's future larger than
            // malloc has at hand.
            (_, Mode::Shared) => Box::pin(self.shared(request, keys, registered)).await,
            (_, Mode::Permit { of }) => {
                Box::pin(self.permit(request, keys, registered, of.get())).await
            }
            // A mode that this version does not know was refused by the capabilities.
            _ => Err(error::protocol("acquire")),
        }
    }

    /// Nil: refused, and nobody asked about when to try again.
    async fn exclusive(
        &self,
        request: &Request,
        keys: &Keys<'_>,
        registered: bool,
    ) -> Result<Value> {
        match self
            .link
            .operate(Operation::Acquire { registered }, request)
            .await?
        {
            // Refused by a way that neither arms the wake-up, registers, nor says why: who waits
            // asks once more.
            Value::Nil if request.is_waiting() || request.yields_to_waiters() => {
                Box::pin(self.acquire_by_script(
                    request,
                    keys,
                    commands::flags(request, registered),
                ))
                .await
            }
            // Granted, but the counter is gone.
            Value::Okay => Box::pin(self.draw_token(request, keys)).await,
            answer => Ok(answer),
        }
    }

    async fn acquire_by_script(
        &self,
        request: &Request,
        keys: &Keys<'_>,
        flags: &str,
    ) -> Result<Value> {
        let live = self.link.live_in_order("acquire").await?;
        let arguments = |cmd: &mut Cmd| commands::acquire_arguments(cmd, keys, request, flags);
        let answer = self
            .link
            .run_on(
                &live,
                &scripts::ACQUIRE,
                "acquire",
                Effect::Writes,
                arguments,
            )
            .await?;
        if let Value::BulkString(_) = answer {
            live.warm(keys.slot());
        }
        Ok(answer)
    }

    /// The lock is ours, and has no token yet.
    async fn draw_token(&self, request: &Request, keys: &Keys<'_>) -> Result<Value> {
        self.acquire_by_script(request, keys, "t")
            .await
            .map_err(|error| match error.kind() {
                // The script gives the lock back.
                ErrorKind::UnexpectedResponse => error,
                _ => error::plain(
                    ErrorKind::Indeterminate,
                    "acquire",
                    "the lock was taken, but its token could not be drawn",
                )
                .with_source(error),
            })
    }

    async fn shared(&self, request: &Request, keys: &Keys<'_>, registered: bool) -> Result<Value> {
        let holder = Holder::of(request);
        let live = self.link.live_in_order("acquire").await?;
        let arguments = |cmd: &mut Cmd| {
            cmd.arg(2).arg(keys.lock()).arg(keys.derived(Kind::Writers));
            cmd.arg(holder.parts())
                .arg(request.ttl().as_millis())
                .arg(keys.token());
            cmd.arg(commands::flags(request, registered))
                .arg(keys.base())
                .arg(live.run_id());
        };
        self.link
            .run_on(
                &live,
                &scripts::ACQUIRE_SHARED,
                "acquire",
                Effect::Writes,
                arguments,
            )
            .await
    }

    async fn permit(
        &self,
        request: &Request,
        keys: &Keys<'_>,
        registered: bool,
        of: u32,
    ) -> Result<Value> {
        let holder = Holder::of(request);
        let arguments = |cmd: &mut Cmd| {
            cmd.arg(1)
                .arg(keys.derived(Kind::Permits))
                .arg(holder.parts())
                .arg(request.ttl().as_millis());
            cmd.arg(keys.derived(Kind::Queue))
                .arg(commands::flags(request, registered))
                .arg(of);
        };
        let live = self.link.live_in_order("acquire").await?;
        self.link
            .run_on(
                &live,
                &scripts::ACQUIRE_PERMIT,
                "acquire",
                Effect::Writes,
                arguments,
            )
            .await
    }

    /// Waits, after a first attempt that ended so.
    async fn wait(
        &self,
        request: Request,
        first: Option<Result<Attempt>>,
    ) -> Result<Arc<dyn Lease>> {
        // The request that is registered as a waiter; its owner changes after an attempt of unknown
        // outcome. The first attempt may have registered it, also if it is cancelled by now and
        // never tried again.
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
                    // Also if it was not woken: the server passes over whoever does not take a free
                    // lock in time.
                    self.attempt(request.clone().with_order(registered), None, registered)
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

    /// Strikes a waiter off: now, or as soon as the server can be reached.
    async fn withdraw_waiter(&self, request: &Request) {
        let withdrawn = match self.link.live_now() {
            Some(live) => cleanup::stop_waiting(&self.link, &live, request, Holder::of(request))
                .await
                .is_ok(),
            None => false,
        };
        if !withdrawn {
            self.orphans.add(&self.link, request);
        }
    }

    fn generation(&self, mode: Mode, keys: &Keys<'_>) -> Generation {
        let registry = &self.link.registry;
        match mode {
            Mode::Shared => registry.generation([keys.lock(), keys.derived(Kind::Writers)]),
            Mode::Permit { .. } => registry.generation([keys.derived(Kind::Permits)]),
            _ => registry.generation([keys.lock()]),
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
        // Without a connection there is one that just broke, and the generation has moved: the
        // wake-up comes at once.
        let pushes = self.link.config.notifications == NotificationMode::Pushed
            && self.link.live_now().is_none_or(|live| live.pushes);
        let registry = &self.link.registry;
        let wake = pushes.then(|| match request.mode() {
            Mode::Shared => registry.arm([keys.lock(), keys.derived(Kind::Writers)], before),
            Mode::Permit { .. } => registry.arm([keys.derived(Kind::Permits)], before),
            _ => registry.arm([keys.lock()], before),
        });
        // Whoever asks again to stay registered does so as one that was woken: it keeps its place
        // in a quorum, too.
        let refresh = self.link.config.fallback_poll_interval.unwrap_or(REFRESH);
        let wake = wake.map(|wake| {
            let (link, waiter) = (Arc::clone(&self.link), request.waiter());
            let refreshed = async move {
                if tokio::time::timeout(refresh, wake).await.is_ok() {
                    link.notification_backoff.notified(waiter);
                }
            };
            Box::pin(refreshed) as BoxFuture<'static, ()>
        });
        // Spread, so that those who wait for one deadline do not ask in the same instant.
        let spread = Duration::from_micros((request.owner().as_u128() % 4_000) as u64);
        let left = u64::try_from(left).map_or(NET, Duration::from_millis);
        let mut retry_after = match refusal {
            // A member of a set expires without a push: that time is not a net, it is the signal.
            Refusal::Offered | Refusal::Writers => left,
            Refusal::Held if request.mode().is_permit() => left,
            Refusal::Held => self.link.config.fallback_poll_interval.unwrap_or(left),
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

    /// Lets a wake-up wait if those before it were needless.
    fn put_off(&self, contention: &mut Contention, request: &Request, found: ServerInfo) {
        let pause = self
            .link
            .notification_backoff
            .refused(request.waiter(), found);
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
        // Whether an earlier attempt has registered is not known here.
        let registered = request.is_waiting();
        self.attempt(request, None, registered).await
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let request = request.with_waiting(true);
        if request.is_cancelled() {
            return Box::pin(self.wait(request, None)).await;
        }
        // Most are granted at once, and need nothing of what waiting needs.
        match self.attempt(request.clone(), None, false).await {
            Ok(Attempt::Granted(lease)) => Ok(lease),
            other => Box::pin(self.wait(request, Some(other))).await,
        }
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        inspect::inspect(&self.link, key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        revoke::revoke(&self.link, holder, revocation).await
    }

    async fn ping(&self) -> Result<Pong> {
        let live = self.link.live_in_order("ping").await?;
        match live.send(&redis::cmd("PING")).await {
            Ok(_) => Ok(Pong::new()),
            // It has answered. A user whom nobody allowed PING may still lock.
            Err(error)
                if error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoPerm) =>
            {
                Ok(Pong::new())
            }
            Err(error) => Err(self.link.failed(&live, error, "ping", Effect::None)),
        }
    }

    async fn close(&self) -> Result<()> {
        // What it may have left at the server is removed before the connection goes.
        drop(tokio::time::timeout(CLOSE_PATIENCE, self.orphans.removed()).await);
        self.link.close();
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
    // Who is not woken cannot tell whether those who came earlier had their chance.
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

/// The address without secrets.
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
        f.write_str(&self.link.endpoint)
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("link", &self.link)
            .field("config", &self.link.config)
            .finish_non_exhaustive()
    }
}
