//! [`CleanupQueue`]: removes what attempts of unknown outcome may have left on the server.

use std::{
    collections::VecDeque,
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use leasehold_core::{
    Error, Result,
    backend::{
        Request,
        support::{contained, supervised},
    },
};
use redis::Pipeline;
use tokio::{sync::Notify, time::Instant};

use crate::{
    connection::Connection,
    connection_manager::ConnectionManager,
    error::SideEffect,
    keys::{Keys, Kind, LockValue},
    lease,
};

/// The first delay between attempts while the server cannot be reached. It doubles up to
/// [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long to try beyond two TTLs. A server that was stopped executes what it has received when it
/// continues, and only then does the TTL of a grant start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A queue of attempts whose outcome is unknown, and of waiters that could not be deregistered.
#[derive(Default)]
pub(crate) struct CleanupQueue {
    list: Mutex<CleanupState>,
    /// Notifies when the queue is empty.
    idle: Notify,
}

#[derive(Default)]
struct CleanupState {
    /// A cleanup that fails goes to the end of the queue.
    queue: VecDeque<CleanupTask>,
    working: bool,
}

struct CleanupTask {
    request: Request,
    /// The time from which the lock is left to expire.
    expires_at: Instant,
}

impl CleanupQueue {
    /// Removes what this request may have left, in the background.
    pub(crate) fn add(self: &Arc<Self>, manager: &Arc<ConnectionManager>, request: &Request) {
        let expires_at = Instant::now() + request.ttl().as_duration() * 2 + PATIENCE;
        let mut list = self.lock();
        list.queue.push_back(CleanupTask {
            request: request.clone(),
            expires_at,
        });
        if !std::mem::replace(&mut list.working, true) {
            let (cleanup_queue, manager) = (Arc::clone(self), Arc::clone(manager));
            drop(tokio::spawn(supervised(move || {
                work(Arc::clone(&cleanup_queue), Arc::clone(&manager))
            })));
        }
    }

    /// Waits until the queue is empty.
    pub(crate) async fn removed(&self) {
        loop {
            let mut idle = pin!(self.idle.notified());
            // Enabled before the check, so that no notification in between is missed.
            idle.as_mut().enable();
            if !self.lock().working {
                return;
            }
            idle.await;
        }
    }

    /// Returns the next cleanup. The worker ends if there is none.
    fn next(&self) -> Option<CleanupTask> {
        let mut list = self.lock();
        let next = list.queue.pop_front();
        list.working = next.is_some();
        if !list.working {
            self.idle.notify_waiters();
        }
        next
    }

    /// Queues a cleanup that failed again, unless its time has passed.
    fn failed(&self, task: CleanupTask, error: &Error) {
        let now = Instant::now();
        let mut list = self.lock();
        list.queue.push_back(task);
        list.queue.retain(|task| {
            let goes_on = now < task.expires_at;
            if !goes_on {
                task.give_up(error);
            }
            goes_on
        });
    }

    fn lock(&self) -> MutexGuard<'_, CleanupState> {
        // No code panics while it holds the lock.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CleanupTask {
    fn give_up(&self, error: &Error) {
        tracing::warn!(key = %self.request.key(), %error, "could not undo an attempt; it expires within its TTL");
    }
}

async fn work(cleanup_queue: Arc<CleanupQueue>, manager: Arc<ConnectionManager>) {
    let mut pause = FIRST_PAUSE;
    while let Some(task) = cleanup_queue.next() {
        let CleanupTask { request, .. } = &task;
        let undone = contained(async {
            let conn = manager.connection().await?;
            undo(&manager, &conn, request).await
        });
        match undone.await {
            Ok(()) => {
                tracing::debug!(key = %request.key(), owner = %request.owner(), "undid an attempt of unknown outcome");
                pause = FIRST_PAUSE;
            }
            Err(error) if error.is_retryable() => {
                cleanup_queue.failed(task, &error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => task.give_up(&error),
        }
    }
}

/// Releases what an attempt may have acquired on a connection that broke, so that the attempt can
/// be repeated. Returns `false` if the release failed as well.
pub(crate) async fn undo_attempt(manager: &ConnectionManager, request: &Request) -> bool {
    match manager.connection().await {
        Ok(conn) => lease::release(manager, &conn, request).await.is_ok(),
        Err(_) => false,
    }
}

async fn undo(manager: &ConnectionManager, conn: &Connection, request: &Request) -> Result<()> {
    lease::release(manager, conn, request).await?;
    stop_waiting(manager, conn, request, LockValue::of(request)).await
}

/// Removes the registration of a waiter.
pub(crate) async fn stop_waiting(
    manager: &ConnectionManager,
    conn: &Connection,
    request: &Request,
    holder: LockValue<'_>,
) -> Result<()> {
    let keys = Keys::new(&manager.config.prefix, request.key());
    let mut pipeline = Pipeline::with_capacity(2);
    for kind in Kind::registrations(request.mode()) {
        pipeline
            .cmd("ZREM")
            .arg(keys.derived(*kind))
            .arg(holder.parts());
    }
    let answers = conn.send_all(&pipeline).await;
    let answers = answers.and_then(|answers| {
        answers
            .into_iter()
            .try_for_each(|answer| answer.extract_error().map(drop))
    });
    answers.map_err(|error| manager.map_error(conn, error, "stop waiting", SideEffect::Writes))
}

impl fmt::Debug for CleanupQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CleanupQueue").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use leasehold_core::{LockKey, Ttl};
    use redis::Client;

    use super::*;
    use crate::config::RedisConfig;

    /// Returns a server that does not exist: a connection is refused at once.
    fn nowhere() -> Arc<ConnectionManager> {
        ConnectionManager::new(
            Client::open("redis+unix:///nowhere").unwrap(),
            RedisConfig::new(),
            String::from("nowhere"),
            false,
        )
    }

    fn keys(cleanup_queue: &CleanupQueue) -> Vec<String> {
        cleanup_queue
            .lock()
            .queue
            .iter()
            .map(|task| task.request.key().to_string())
            .collect()
    }

    /// Returns a runtime on which the driver panics when it connects, because it has no I/O.
    fn panicking() -> (tokio::runtime::Runtime, Arc<ConnectionManager>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let client = Client::open("redis://127.0.0.1:1").unwrap();
        (
            runtime,
            ConnectionManager::new(client, RedisConfig::new(), String::from("nowhere"), false),
        )
    }

    #[test]
    fn panic_while_connecting_reaches_every_caller() {
        let (runtime, manager) = panicking();
        runtime.block_on(async {
            for _ in 0..3 {
                let (one, other) = tokio::join!(manager.connection(), manager.connection());
                for asked in [one, other] {
                    let error = asked.map(drop).unwrap_err();
                    assert!(error.to_string().contains("panicked"), "{error}");
                }
            }
        });
    }

    #[test]
    fn cleanup_is_retried_although_the_driver_panics() {
        let (runtime, manager) = panicking();
        runtime.block_on(async {
            let cleanup_queue = Arc::new(CleanupQueue::default());
            for name in ["one", "other"] {
                cleanup_queue.add(&manager, &Request::new(LockKey::new(name).unwrap()));
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(keys(&cleanup_queue), [name]);
                // The worker ends when their time has passed.
                cleanup_queue.removed().await;
                assert!(keys(&cleanup_queue).is_empty());
            }
        });
    }

    #[tokio::test(start_paused = true)]
    async fn each_cleanup_is_retried_for_two_ttls_and_a_minute() {
        let (cleanup_queue, manager) = (Arc::new(CleanupQueue::default()), nowhere());
        let add = |name: &str, secs| {
            let request =
                Request::new(LockKey::new(name).unwrap()).with_ttl(Ttl::from_secs(secs).unwrap());
            cleanup_queue.add(&manager, &request);
        };
        let started = Instant::now();
        // More than a pause away from the moments that matter.
        let until = |secs| tokio::time::sleep_until(started + Duration::from_secs(secs));
        let waits = |name: &str| keys(&cleanup_queue).iter().any(|key| key == name);
        add("early", 10);
        add("long", 100);
        until(50).await;
        add("late", 10);
        until(78).await;
        assert!(
            waits("early") && waits("late") && waits("long"),
            "{:?}",
            keys(&cleanup_queue)
        );
        until(83).await;
        assert!(
            !waits("early") && waits("late") && waits("long"),
            "{:?}",
            keys(&cleanup_queue)
        );
        until(128).await;
        assert!(waits("late") && waits("long"), "{:?}", keys(&cleanup_queue));
        until(133).await;
        assert_eq!(keys(&cleanup_queue), ["long"]);
        until(263).await;
        assert!(keys(&cleanup_queue).is_empty() && !cleanup_queue.lock().working);
        // The next cleanup starts a worker again.
        add("again", 10);
        until(300).await;
        assert_eq!(keys(&cleanup_queue), ["again"]);
    }
}
