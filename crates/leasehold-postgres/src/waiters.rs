//! [`WaiterRegistry`]: the waiters of this process, and the one connection on which the server
//! sends notifications of releases.

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
    connection::Connector,
    error::{self, ERRORS},
    identity::{Answerer, Identity},
    keys::AdvisoryKey,
    statement::CHANNEL,
};

/// How long the connection is kept after its last waiter, so that the next waiter finds it open.
const KEEP_LISTENING: Duration = Duration::from_secs(30);
/// The time without a notification after which the connection is checked. Nothing else detects a
/// connection that was cut silently.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The waiters of one backend.
pub(crate) struct WaiterRegistry {
    connector: Arc<Connector>,
    state: Mutex<State>,
    /// The number of keys with waiters.
    keys: AtomicUsize,
    state_changed: Notify,
    /// Makes the task check whether it is still needed.
    check: Arc<Notify>,
}

#[derive(Default)]
struct State {
    by_key: HashMap<AdvisoryKey, Arc<KeyWaiters>>,
    /// Whether the task runs.
    running: bool,
    /// Whether the connection is listening.
    listening: bool,
    closed: bool,
    /// The error of the last attempt to connect.
    failure: Option<Error>,
}

/// The waiters for one key.
struct KeyWaiters {
    count: AtomicUsize,
    /// The number of notifications. A waiter compares it before and after an attempt, so that it
    /// misses none.
    generation: AtomicU64,
    notify: Notify,
}

/// The registration of one waiter, which ends when it is dropped.
pub(crate) struct Registration {
    waiters: Arc<WaiterRegistry>,
    key: AdvisoryKey,
    of_key: Arc<KeyWaiters>,
}

impl WaiterRegistry {
    pub(crate) fn new(connector: &Arc<Connector>) -> Arc<Self> {
        let (state, keys) = (Mutex::default(), AtomicUsize::new(0));
        Arc::new(Self {
            connector: Arc::clone(connector),
            state,
            keys,
            state_changed: Notify::new(),
            check: Arc::default(),
        })
    }

    /// Registers a waiter for `key`.
    pub(crate) fn register(self: &Arc<Self>, key: AdvisoryKey) -> Registration {
        let mut state = self.lock();
        let of_key = state.by_key.entry(key).or_insert_with(|| {
            Arc::new(KeyWaiters {
                count: AtomicUsize::new(0),
                generation: AtomicU64::new(0),
                notify: Notify::new(),
            })
        });
        of_key.count.fetch_add(1, Ordering::AcqRel);
        let of_key = Arc::clone(of_key);
        self.keys.store(state.by_key.len(), Ordering::SeqCst);
        drop(state);
        Registration {
            waiters: Arc::clone(self),
            key,
            of_key,
        }
    }

    /// Notifies the waiters of this process for `key`.
    pub(crate) fn notify(&self, key: AdvisoryKey) {
        // Most released locks have no waiter.
        if !self.has_waiters() {
            return;
        }
        let of_key = self.lock().by_key.get(&key).cloned();
        if let Some(of_key) = of_key {
            of_key.notify();
        }
    }

    /// Waits until the connection is listening. Every later notification reaches its waiters.
    pub(crate) async fn listen(self: &Arc<Self>, limit: Duration) -> Result<(), Error> {
        if self.lock().listening {
            return Ok(());
        }
        let listening = async {
            loop {
                let mut changed = std::pin::pin!(self.state_changed.notified());
                changed.as_mut().enable();
                {
                    let mut state = self.lock();
                    if state.listening {
                        return Ok(());
                    }
                    if state.closed {
                        return Err(ERRORS.error(
                            ErrorKind::Closed,
                            "acquire",
                            "the backend was closed",
                        ));
                    }
                    if !std::mem::replace(&mut state.running, true) {
                        state.failure = None;
                        // The task ends when no waiter is left, or with the backend.
                        let waiters = Arc::downgrade(self);
                        drop(tokio::spawn(supervised(move || run(Weak::clone(&waiters)))));
                    } else if let Some(failure) = &state.failure {
                        return Err(failure.clone());
                    }
                }
                changed.await;
            }
        };
        match timeout(limit, listening).await {
            Ok(listening) => listening,
            Err(_elapsed) => {
                Err(self
                    .connector
                    .timed_out(ErrorKind::Unavailable, "acquire", limit))
            }
        }
    }

    /// Closes the connection.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.check.notify_one();
        // No notification will come.
        self.notify_all();
    }

    fn notify_all(&self) {
        let all: Vec<_> = self.lock().by_key.values().cloned().collect();
        all.iter().for_each(|of_key| of_key.notify());
    }

    /// Returns whether the task should continue. If not, it counts as ended.
    fn is_needed(&self, idle: bool) -> bool {
        let mut state = self.lock();
        if state.closed || idle && state.by_key.is_empty() {
            (state.running, state.listening) = (false, false);
            return false;
        }
        true
    }

    fn has_waiters(&self) -> bool {
        self.keys.load(Ordering::SeqCst) > 0
    }

    /// Records that the connection is listening, or why it is not.
    fn set_listening(&self, failure: Option<Error>) {
        {
            let mut state = self.lock();
            state.listening = failure.is_none();
            state.failure = failure;
        }
        self.state_changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyWaiters {
    fn notify(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.notify.notify_waiters();
    }
}

impl Registration {
    /// Returns the number of notifications for the key so far.
    pub(crate) fn generation(&self) -> u64 {
        self.of_key.generation.load(Ordering::Acquire)
    }

    /// Waits for a notification after the generation `before`.
    pub(crate) async fn notified_since(&self, before: u64) {
        loop {
            let mut notified = std::pin::pin!(self.of_key.notify.notified());
            notified.as_mut().enable();
            if self.generation() != before {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.waiters.lock();
        if self.of_key.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            state.by_key.remove(&self.key);
            self.waiters
                .keys
                .store(state.by_key.len(), Ordering::SeqCst);
        }
    }
}

impl Drop for WaiterRegistry {
    fn drop(&mut self) {
        self.check.notify_one();
    }
}

impl fmt::Debug for WaiterRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaiterRegistry")
            .field("keys", &self.lock().by_key.len())
            .finish_non_exhaustive()
    }
}

/// Listens while there are waiters, and for [`KEEP_LISTENING`] after the last one.
async fn run(waiters: Weak<WaiterRegistry>) {
    let (mut backoff, mut warned) = (Backoff::new(), false);
    loop {
        let Some(waiters) = waiters.upgrade() else {
            return;
        };
        if !waiters.is_needed(false) {
            return;
        }
        match waiters
            .connector
            .on_driver_thread(
                "acquire",
                |connector| async move { connect(&connector).await },
            )
            .await
        {
            Ok((listener, identity)) => {
                warned = false;
                waiters.set_listening(None);
                // Earlier notifications were missed.
                waiters.notify_all();
                let (weak, begun) = (Arc::downgrade(&waiters), Instant::now());
                drop(waiters);
                // A panic counts as a broken connection.
                if matches!(
                    contained(async { Ok(receive(&weak, listener, &identity).await) }).await,
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
                waiters.lock().listening = false;
                waiters.notify_all();
            }
            Err(error) => {
                waiters.set_listening(Some(error.clone()));
                // One warning for each outage, which may last long.
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(target: "leasehold", %error, "notifications are unavailable: waiters poll");
                }
                if !waiters.is_needed(true) {
                    return;
                }
            }
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

async fn connect(connector: &Connector) -> Result<(PgListener, Identity), Error> {
    let failed = |error| connector.map_error(error, "acquire");
    let identity = Identity::random();
    let connected = async {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(connector.config.connect_timeout)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_lazy_with(connector.options_of("leasehold listens").await?);
        let mut listener = PgListener::connect_with(&pool).await.map_err(failed)?;
        listener.eager_reconnect(false);
        connector.claim(&mut listener, &identity, "acquire").await?;
        // The time-outs of the role must not end the connection.
        let settings = AssertSqlSafe(format!(
            "SELECT set_config(name, value, false) FROM (VALUES ('idle_session_timeout', '0'), \
             ('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '10'), \
             ('tcp_user_timeout', '30000')) AS setting(name, value) WHERE {}",
            identity.is_here()
        ));
        drop(sqlx::raw_sql(settings).execute(&mut listener).await);
        listener.listen(CHANNEL).await.map_err(failed)?;
        Ok(listener)
    };
    match timeout(connector.config.connect_timeout, connected).await {
        Ok(connected) => connected.map(|listener| (listener, identity)),
        Err(_elapsed) => Err(connector.not_connected("acquire")),
    }
}

/// Passes on the notifications of the server. Returns `false` if no waiter is left, and `true` if
/// the connection broke.
async fn receive(
    waiters: &Weak<WaiterRegistry>,
    mut listener: PgListener,
    identity: &Identity,
) -> bool {
    let Some((check, connector)) = waiters
        .upgrade()
        .map(|waiters| (Arc::clone(&waiters.check), Arc::clone(&waiters.connector)))
    else {
        return false;
    };
    let mut ticks = interval_at(Instant::now() + CHECK_INTERVAL, CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last_waiter, mut silent) = (Instant::now(), true);
    loop {
        let event = tokio::select! {
            received = listener.try_recv() => Event::Received(received),
            () = check.notified() => Event::Check,
            _ = ticks.tick() => Event::Tick,
        };
        let Some(waiters) = waiters.upgrade() else {
            return false;
        };
        match event {
            Event::Received(Ok(Some(notification))) => {
                silent = false;
                if let Some(key) = AdvisoryKey::of_payload(notification.payload()) {
                    waiters.notify(key);
                }
            }
            Event::Received(Ok(None)) => return true,
            Event::Received(Err(error)) => {
                tracing::debug!(target: "leasehold", %error, "the connection for notifications ended");
                return true;
            }
            Event::Check => {
                if !waiters.is_needed(false) {
                    return false;
                }
            }
            Event::Tick => {
                if waiters.has_waiters() {
                    last_waiter = Instant::now();
                }
                if !waiters.is_needed(last_waiter.elapsed() >= KEEP_LISTENING) {
                    return false;
                }
                // The registry may be dropped meanwhile.
                drop(waiters);
                if std::mem::replace(&mut silent, true)
                    && !is_alive(&mut listener, identity, connector.config.timeout).await
                {
                    tracing::debug!(target: "leasehold", "the connection for notifications does not answer");
                    return true;
                }
            }
        }
    }
}

/// An event of the listening connection.
enum Event {
    Received(Result<Option<PgNotification>, sqlx::Error>),
    Check,
    Tick,
}

/// Returns whether the backend that listens still answers on this connection. Notifications that
/// arrive meanwhile are received afterwards.
async fn is_alive(listener: &mut PgListener, identity: &Identity, limit: Duration) -> bool {
    let asked =
        sqlx::raw_sql(AssertSqlSafe(format!("SELECT {}", identity.answer()))).fetch_one(listener);
    match timeout(limit, asked).await {
        Ok(Ok(row)) => row
            .try_get(0)
            .is_ok_and(|answer| matches!(Answerer::of(answer), Answerer::Ours(_))),
        Ok(Err(error)) => !error::is_over(&error),
        Err(_elapsed) => false,
    }
}

#[cfg(test)]
mod tests {
    use leasehold_testkit::{PanickingSubscriber, subscribe};
    use sqlx::postgres::PgConnectOptions;

    use super::*;
    use crate::config::PostgresConfig;

    /// Waits for so many events, after each of which the task has continued.
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
        // No server listens there.
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(1);
        let waiters = WaiterRegistry::new(&Arc::new(
            Connector::new(&options, PostgresConfig::default()).unwrap(),
        ));
        let (panics, events) = PanickingSubscriber::new(None);
        let _subscribed = subscribe(panics);
        let _registration = waiters.register(AdvisoryKey::Int64(1));
        waiters.listen(Duration::from_secs(60)).await.unwrap_err();
        until(&events, 2).await;
    }
}
