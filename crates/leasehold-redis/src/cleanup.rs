//! What an attempt of unknown outcome may have left is removed, by its owner.

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
    conn::Conn,
    connection::Link,
    error::Effect,
    keys::{Keys, Kind},
    lease,
    value::Holder,
};

/// Between tries while the server cannot be reached, doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long beyond two TTLs to go on trying. A server that was stopped answers what it had received
/// before when it goes on, and only then does a grant's TTL begin.
const PATIENCE: Duration = Duration::from_secs(60);

/// Attempts whose outcome is unknown, and waiters that could not be struck off.
#[derive(Default)]
pub(crate) struct CleanupQueue {
    list: Mutex<Orphaned>,
    /// The work is over.
    idle: Notify,
}

#[derive(Default)]
struct Orphaned {
    /// Each has its turn: one that fails goes to the end.
    queue: VecDeque<Orphan>,
    working: bool,
}

struct Orphan {
    request: Request,
    /// From then on it is left to expire.
    give_up_at: Instant,
}

impl CleanupQueue {
    /// Removes what this request may have left, in the background.
    pub(crate) fn add(self: &Arc<Self>, link: &Arc<Link>, request: &Request) {
        let give_up_at = Instant::now() + request.ttl().as_duration() * 2 + PATIENCE;
        let mut list = self.lock();
        list.queue.push_back(Orphan {
            request: request.clone(),
            give_up_at,
        });
        if !std::mem::replace(&mut list.working, true) {
            let (orphans, link) = (Arc::clone(self), Arc::clone(link));
            drop(tokio::spawn(supervised(move || {
                work(Arc::clone(&orphans), Arc::clone(&link))
            })));
        }
    }

    /// Completes when there is nothing to remove.
    pub(crate) async fn removed(&self) {
        loop {
            let mut idle = pin!(self.idle.notified());
            // Before the look, so that no end in between is missed.
            idle.as_mut().enable();
            if !self.lock().working {
                return;
            }
            idle.await;
        }
    }

    /// The next one; without any, the work is over.
    fn next(&self) -> Option<Orphan> {
        let mut list = self.lock();
        let next = list.queue.pop_front();
        list.working = next.is_some();
        if !list.working {
            self.idle.notify_waiters();
        }
        next
    }

    /// It failed so. Its turn comes again, unless its time is over.
    fn failed(&self, orphan: Orphan, error: &Error) {
        let now = Instant::now();
        let mut list = self.lock();
        list.queue.push_back(orphan);
        list.queue.retain(|orphan| {
            let goes_on = now < orphan.give_up_at;
            if !goes_on {
                orphan.give_up(error);
            }
            goes_on
        });
    }

    fn lock(&self) -> MutexGuard<'_, Orphaned> {
        // Nothing panics while it is held.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Orphan {
    fn give_up(&self, error: &Error) {
        tracing::warn!(key = %self.request.key(), %error, "could not undo an attempt; it expires within its TTL");
    }
}

async fn work(orphans: Arc<CleanupQueue>, link: Arc<Link>) {
    let mut pause = FIRST_PAUSE;
    while let Some(orphan) = orphans.next() {
        let Orphan { request, .. } = &orphan;
        let undone = contained(async {
            let live = link.live().await?;
            undo(&link, &live, request).await
        });
        match undone.await {
            Ok(()) => {
                tracing::debug!(key = %request.key(), owner = %request.owner(), "undid an attempt of unknown outcome");
                pause = FIRST_PAUSE;
            }
            Err(error) if error.is_retryable() => {
                orphans.failed(orphan, &error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => orphan.give_up(&error),
        }
    }
}

/// Releases what an attempt may have taken whose connection broke, so that the attempt can be
/// repeated. Returns `false` if the release failed, too.
pub(crate) async fn undone(link: &Link, request: &Request) -> bool {
    match link.live().await {
        Ok(live) => lease::release(link, &live, request).await.is_ok(),
        Err(_) => false,
    }
}

async fn undo(link: &Link, live: &Conn, request: &Request) -> Result<()> {
    lease::release(link, live, request).await?;
    stop_waiting(link, live, request, Holder::of(request)).await
}

/// Removes the registration of a waiter.
pub(crate) async fn stop_waiting(
    link: &Link,
    live: &Conn,
    request: &Request,
    holder: Holder<'_>,
) -> Result<()> {
    let keys = Keys::new(&link.config.prefix, request.key());
    let mut pipeline = Pipeline::with_capacity(2);
    for kind in Kind::registrations(request.mode()) {
        pipeline
            .cmd("ZREM")
            .arg(keys.derived(*kind))
            .arg(holder.parts());
    }
    let answers = live.send_all(&pipeline).await;
    let answers = answers.and_then(|answers| {
        answers
            .into_iter()
            .try_for_each(|answer| answer.extract_error().map(drop))
    });
    answers.map_err(|error| link.failed(live, error, "stop waiting", Effect::Writes))
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

    /// Nothing listens there: a connection is refused at once.
    fn nowhere() -> Arc<Link> {
        Link::new(
            Client::open("redis+unix:///nowhere").unwrap(),
            RedisConfig::new(),
            String::from("nowhere"),
        )
    }

    fn keys(orphans: &CleanupQueue) -> Vec<String> {
        orphans
            .lock()
            .queue
            .iter()
            .map(|orphan| orphan.request.key().to_string())
            .collect()
    }

    /// The driver panics when it connects, for want of a runtime with input and output.
    fn panicking() -> (tokio::runtime::Runtime, Arc<Link>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let client = Client::open("redis://127.0.0.1:1").unwrap();
        (
            runtime,
            Link::new(client, RedisConfig::new(), String::from("nowhere")),
        )
    }

    #[test]
    fn a_panic_while_connecting_is_told_to_all_who_ask() {
        let (runtime, link) = panicking();
        runtime.block_on(async {
            for _ in 0..3 {
                let (one, other) = tokio::join!(link.live(), link.live());
                for asked in [one, other] {
                    let error = asked.map(drop).unwrap_err();
                    assert!(error.to_string().contains("panicked"), "{error}");
                }
            }
        });
    }

    #[test]
    fn cleanup_is_retried_although_the_driver_panics() {
        let (runtime, link) = panicking();
        runtime.block_on(async {
            let orphans = Arc::new(CleanupQueue::default());
            for name in ["one", "other"] {
                orphans.add(&link, &Request::new(LockKey::new(name).unwrap()));
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(keys(&orphans), [name]);
                // Ends when their time is over.
                orphans.removed().await;
                assert!(keys(&orphans).is_empty());
            }
        });
    }

    #[tokio::test(start_paused = true)]
    async fn each_cleanup_is_retried_for_two_ttls_and_a_minute() {
        let (orphans, link) = (Arc::new(CleanupQueue::default()), nowhere());
        let add = |name: &str, secs| {
            let request =
                Request::new(LockKey::new(name).unwrap()).with_ttl(Ttl::from_secs(secs).unwrap());
            orphans.add(&link, &request);
        };
        let started = Instant::now();
        // More than a pause away from the moments that matter.
        let until = |secs| tokio::time::sleep_until(started + Duration::from_secs(secs));
        let waits = |name: &str| keys(&orphans).iter().any(|key| key == name);
        add("early", 10);
        add("long", 100);
        until(50).await;
        add("late", 10);
        until(78).await;
        assert!(
            waits("early") && waits("late") && waits("long"),
            "{:?}",
            keys(&orphans)
        );
        until(83).await;
        assert!(
            !waits("early") && waits("late") && waits("long"),
            "{:?}",
            keys(&orphans)
        );
        until(128).await;
        assert!(waits("late") && waits("long"), "{:?}", keys(&orphans));
        until(133).await;
        assert_eq!(keys(&orphans), ["long"]);
        until(263).await;
        assert!(keys(&orphans).is_empty() && !orphans.lock().working);
        // And the next is worked on.
        add("again", 10);
        until(300).await;
        assert_eq!(keys(&orphans), ["again"]);
    }
}
