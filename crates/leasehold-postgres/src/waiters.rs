//! [`WaiterRegistry`]: who waits in this process, and the one connection on which the server tells of releases.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use leasehold_core::{
    Error, ErrorKind,
    backend::support::{contained, supervised},
};
use sqlx::{
    AssertSqlSafe, Row,
    postgres::{PgListener, PgNotification, PgPoolOptions},
};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use crate::{
    backoff::Backoff,
    connection::Link,
    error,
    identity::{Answerer, Identity},
    keys::AdvisoryKey,
    statement::CHANNEL,
};

/// How long the connection is kept after its last waiter: the next one then need not wait for it.
const KEEP_WARM: Duration = Duration::from_secs(30);
/// A connection on which nothing was heard for so long is asked whether it still hears: of one that
/// was cut silently nothing else would tell.
const PING_EVERY: Duration = Duration::from_secs(5);

/// All who wait in one backend.
pub(crate) struct WaiterRegistry {
    link: Arc<Link>,
    state: Mutex<State>,
    /// How many keys are waited for.
    keys: AtomicUsize,
    warmed: Notify,
    /// The task should look whether it is still needed.
    look: Arc<Notify>,
}

#[derive(Default)]
struct State {
    by_key: HashMap<AdvisoryKey, Arc<Waited>>,
    running: bool,
    warm: bool,
    closed: bool,
    /// Why the connection could not be had last time.
    failure: Option<Error>,
}

/// What some wait for.
struct Waited {
    users: AtomicUsize,
    /// How often it was told: who reads before and after an attempt knows whether it missed
    /// something.
    generation: AtomicU64,
    told: Notify,
}

/// A waiter, for as long as it waits.
pub(crate) struct Registration {
    waiters: Arc<WaiterRegistry>,
    key: AdvisoryKey,
    waited: Arc<Waited>,
}

impl WaiterRegistry {
    pub(crate) fn new(link: &Arc<Link>) -> Arc<Self> {
        let (state, keys) = (Mutex::default(), AtomicUsize::new(0));
        Arc::new(Self {
            link: Arc::clone(link),
            state,
            keys,
            warmed: Notify::new(),
            look: Arc::default(),
        })
    }

    /// Waits for this key from now on.
    pub(crate) fn on(self: &Arc<Self>, key: AdvisoryKey) -> Registration {
        let mut state = self.lock();
        let waited = state.by_key.entry(key).or_insert_with(|| {
            Arc::new(Waited {
                users: AtomicUsize::new(0),
                generation: AtomicU64::new(0),
                told: Notify::new(),
            })
        });
        waited.users.fetch_add(1, Ordering::AcqRel);
        let waited = Arc::clone(waited);
        self.keys.store(state.by_key.len(), Ordering::SeqCst);
        drop(state);
        Registration {
            waiters: Arc::clone(self),
            key,
            waited,
        }
    }

    /// WaiterRegistry those who wait for it here.
    pub(crate) fn wake(&self, key: AdvisoryKey) {
        // Most of what is given back nobody waits for.
        if !self.anybody_waits() {
            return;
        }
        let waited = self.lock().by_key.get(&key).cloned();
        if let Some(waited) = waited {
            waited.tell();
        }
    }

    /// Makes sure that the server's messages come: what is told after this has returned waiters.
    pub(crate) async fn warm(self: &Arc<Self>, patience: Duration) -> Result<(), Error> {
        if self.lock().warm {
            return Ok(());
        }
        let warmed = async {
            loop {
                let mut warmed = std::pin::pin!(self.warmed.notified());
                warmed.as_mut().enable();
                {
                    let mut state = self.lock();
                    if state.warm {
                        return Ok(());
                    }
                    if state.closed {
                        return Err(error::plain(
                            ErrorKind::Closed,
                            "acquire",
                            "the backend was closed",
                        ));
                    }
                    if !std::mem::replace(&mut state.running, true) {
                        state.failure = None;
                        // Ends when nobody waits any more, or with the backend.
                        let waiters = Arc::downgrade(self);
                        drop(tokio::spawn(supervised(move || {
                            listen(Weak::clone(&waiters))
                        })));
                    } else if let Some(failure) = &state.failure {
                        return Err(failure.clone());
                    }
                }
                warmed.await;
            }
        };
        match timeout(patience, warmed).await {
            Ok(warmed) => warmed,
            Err(_elapsed) => Err(self
                .link
                .timed_out(ErrorKind::Unavailable, "acquire", patience)),
        }
    }

    /// Ends the connection.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.look.notify_one();
    }

    fn wake_all(&self) {
        let all: Vec<_> = self.lock().by_key.values().cloned().collect();
        all.iter().for_each(|waited| waited.tell());
    }

    /// Whether the task should go on; if not, it is no longer running.
    fn is_needed(&self, idle: bool) -> bool {
        let mut state = self.lock();
        if state.closed || idle && state.by_key.is_empty() {
            (state.running, state.warm) = (false, false);
            return false;
        }
        true
    }

    fn anybody_waits(&self) -> bool {
        self.keys.load(Ordering::SeqCst) > 0
    }

    fn became(&self, failure: Option<Error>) {
        {
            let mut state = self.lock();
            state.warm = failure.is_none();
            state.failure = failure;
        }
        self.warmed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waited {
    fn tell(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.told.notify_waiters();
    }
}

impl Registration {
    pub(crate) fn generation(&self) -> u64 {
        self.waited.generation.load(Ordering::Acquire)
    }

    /// Completes when it was told since `before`.
    pub(crate) async fn told_since(&self, before: u64) {
        loop {
            let mut told = std::pin::pin!(self.waited.told.notified());
            told.as_mut().enable();
            if self.generation() != before {
                return;
            }
            told.await;
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.waiters.lock();
        if self.waited.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            state.by_key.remove(&self.key);
            self.waiters
                .keys
                .store(state.by_key.len(), Ordering::SeqCst);
        }
    }
}

impl Drop for WaiterRegistry {
    fn drop(&mut self) {
        self.look.notify_one();
    }
}

impl fmt::Debug for WaiterRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaiterRegistry")
            .field("keys", &self.lock().by_key.len())
            .finish_non_exhaustive()
    }
}

/// Listens for as long as somebody waits, and a little longer.
async fn listen(waiters: Weak<WaiterRegistry>) {
    let (mut backoff, mut warned) = (Backoff::new(), false);
    loop {
        let Some(waiters) = waiters.upgrade() else {
            return;
        };
        if !waiters.is_needed(false) {
            return;
        }
        match waiters
            .link
            .on_driver_thread("acquire", |link| async move { connect(&link).await })
            .await
        {
            Ok((listener, identity)) => {
                warned = false;
                waiters.became(None);
                // Whatever was told before is missed.
                waiters.wake_all();
                let (weak, begun) = (Arc::downgrade(&waiters), Instant::now());
                drop(waiters);
                // A panic is one of the ways in which the connection breaks.
                if matches!(
                    contained(async { Ok(hear(&weak, listener, &identity).await) }).await,
                    Ok(false)
                ) {
                    return;
                }
                if begun.elapsed() >= Backoff::LONGEST {
                    backoff = Backoff::new();
                }
                let Some(waiters) = weak.upgrade() else {
                    return;
                };
                waiters.lock().warm = false;
                waiters.wake_all();
            }
            Err(error) => {
                waiters.became(Some(error.clone()));
                // Once for each outage, which may last for ever.
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(target: "leasehold", %error, "no notifications: waiters look by themselves for now");
                }
                if !waiters.is_needed(true) {
                    return;
                }
            }
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

async fn connect(link: &Link) -> Result<(PgListener, Identity), Error> {
    let failed = |error| link.failed(error, "acquire");
    let identity = Identity::random();
    let connected = async {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(link.config.connect_timeout)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_lazy_with(link.options_of("leasehold listens").await?);
        let mut listener = PgListener::connect_with(&pool).await.map_err(failed)?;
        listener.eager_reconnect(false);
        link.claim(&mut listener, &identity, "acquire").await?;
        // A role's own time-outs must not end it.
        let settings = AssertSqlSafe(format!(
            "SELECT set_config(n, v, false) FROM (VALUES ('idle_session_timeout', '0'), ('tcp_keepalives_idle', '10'), \
             ('tcp_keepalives_interval', '10'), ('tcp_user_timeout', '30000')) AS s(n, v) WHERE {}",
            identity.is_here()
        ));
        drop(sqlx::raw_sql(settings).execute(&mut listener).await);
        listener.listen(CHANNEL).await.map_err(failed)?;
        Ok(listener)
    };
    match timeout(link.config.connect_timeout, connected).await {
        Ok(connected) => connected.map(|listener| (listener, identity)),
        Err(_elapsed) => Err(link.not_connected("acquire")),
    }
}

/// Passes on what the server tells. `false` if nobody waits any more; `true` if the connection
/// broke.
async fn hear(
    waiters: &Weak<WaiterRegistry>,
    mut listener: PgListener,
    identity: &Identity,
) -> bool {
    let Some((look, link)) = waiters
        .upgrade()
        .map(|waiters| (Arc::clone(&waiters.look), Arc::clone(&waiters.link)))
    else {
        return false;
    };
    let mut ticks = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut waited, mut silent) = (Instant::now(), true);
    loop {
        let event = tokio::select! {
            heard = listener.try_recv() => Event::Heard(heard),
            () = look.notified() => Event::Look,
            _ = ticks.tick() => Event::Tick,
        };
        let Some(waiters) = waiters.upgrade() else {
            return false;
        };
        match event {
            Event::Heard(Ok(Some(told))) => {
                silent = false;
                if let Some(key) = AdvisoryKey::of_payload(told.payload()) {
                    waiters.wake(key);
                }
            }
            Event::Heard(Ok(None)) => return true,
            Event::Heard(Err(error)) => {
                tracing::debug!(target: "leasehold", %error, "the connection for wake-ups ended");
                return true;
            }
            Event::Look => {
                if !waiters.is_needed(false) {
                    return false;
                }
            }
            Event::Tick => {
                if waiters.anybody_waits() {
                    waited = Instant::now();
                }
                if !waiters.is_needed(waited.elapsed() >= KEEP_WARM) {
                    return false;
                }
                // Nobody is kept from dropping it meanwhile.
                drop(waiters);
                if std::mem::replace(&mut silent, true)
                    && !answers(&mut listener, identity, link.config.timeout).await
                {
                    tracing::debug!(target: "leasehold", "the connection for wake-ups is deaf");
                    return true;
                }
            }
        }
    }
}

enum Event {
    Heard(Result<Option<PgNotification>, sqlx::Error>),
    Look,
    Tick,
}

/// Whether the backend that listens answers on this connection, whatever it says. What it tells
/// meanwhile is heard afterwards.
async fn answers(listener: &mut PgListener, identity: &Identity, patience: Duration) -> bool {
    let asked =
        sqlx::raw_sql(AssertSqlSafe(format!("SELECT {}", identity.answer()))).fetch_one(listener);
    match timeout(patience, asked).await {
        Ok(Ok(row)) => row
            .try_get(0)
            .is_ok_and(|answer| matches!(Answerer::of(answer), Answerer::Ours(_))),
        Ok(Err(error)) => !error::is_over(&error),
        Err(_elapsed) => false,
    }
}

#[cfg(test)]
mod tests {
    use leasehold_testkit::PanickingSubscriber;
    use sqlx::postgres::PgConnectOptions;

    use super::*;
    use crate::config::PostgresConfig;

    /// So many events have come: the task has gone on after each.
    async fn until(events: &AtomicUsize, many: usize) {
        let come = async {
            while events.load(Ordering::Relaxed) < many {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), come)
            .await
            .expect("the task has ended");
    }

    #[tokio::test]
    async fn listening_goes_on_after_a_panic() {
        // Nothing listens there.
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(1);
        let waiters = WaiterRegistry::new(&Arc::new(
            Link::new(&options, PostgresConfig::default()).unwrap(),
        ));
        let (panics, events) = PanickingSubscriber::new(None);
        let _subscribed = tracing::subscriber::set_default(panics);
        let _waiting = waiters.on(AdvisoryKey::Int64(1));
        waiters.warm(Duration::from_secs(60)).await.unwrap_err();
        until(&events, 2).await;
    }
}
