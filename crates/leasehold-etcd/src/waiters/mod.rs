//! One watch stream for all waiters of a backend.
//!
//! A watch that starts at a past revision is served every 100 ms only, so watches start at the
//! present and are kept warm: whoever waits makes sure that the watch on its lock stands, *then*
//! reads whom it waits for, then waits. Each contended lock has a watch of its own on the stream,
//! for deletions under its lock_prefix: a busy namespace sends us nothing that nobody waits for.

mod lock_watch;
mod stream;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use leasehold_core::{Result, backend::BoxFuture};
use tokio::{sync::Notify, time::Instant};

pub(crate) use self::lock_watch::Generation;
use self::lock_watch::LockWatch;
use crate::{
    connection::Cluster,
    error::{self, SideEffect},
    keys::{EtcdKey, LockPrefix},
};

/// How long the watch on a lock is kept after its last waiter: the next one then need not wait for
/// it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// All watches of a backend.
#[derive(Debug)]
pub(crate) struct WaiterRegistry {
    cluster: Arc<Cluster>,
    state: Mutex<State>,
    /// A watch is wanted that the stream does not have yet.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    by_prefix: HashMap<LockPrefix, Arc<LockWatch>>,
    next: i64,
    running: bool,
    closed: bool,
}

/// A use of the watch on one lock; it is kept while there is one, and a little longer.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Arc<WaiterRegistry>,
    watch: Arc<LockWatch>,
}

impl WaiterRegistry {
    pub(crate) fn new(cluster: &Arc<Cluster>) -> Arc<Self> {
        Arc::new(Self {
            cluster: Arc::clone(cluster),
            state: Mutex::default(),
            wanted: Notify::new(),
        })
    }

    /// Uses the watch on this lock. Costs nothing until [`Registration::warm`].
    pub(crate) fn register(self: &Arc<Self>, lock_prefix: &LockPrefix) -> Registration {
        let mut state = self.lock();
        let watch = match state.by_prefix.get(lock_prefix) {
            Some(watch) => Arc::clone(watch),
            None => {
                state.next += 1;
                let watch = Arc::new(LockWatch::new(state.next, lock_prefix.clone()));
                state
                    .by_prefix
                    .insert(lock_prefix.clone(), Arc::clone(&watch));
                watch
            }
        };
        watch.users.fetch_add(1, Ordering::AcqRel);
        drop(state);
        Registration {
            registry: Arc::clone(self),
            watch,
        }
    }

    /// Ends the stream.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wanted.notify_one();
    }

    fn all(&self) -> Vec<Arc<LockWatch>> {
        self.lock().by_prefix.values().cloned().collect()
    }

    /// Forgets the watches that nobody has used for a while; their ids.
    fn sweep(&self) -> Vec<i64> {
        let now = Instant::now();
        let mut ids = Vec::new();
        self.lock().by_prefix.retain(|_, watch| {
            let idle = watch.users.load(Ordering::Acquire) == 0
                && watch
                    .lock()
                    .idle_since
                    .is_none_or(|since| now.duration_since(since) >= IDLE_TIMEOUT);
            if idle {
                ids.push(watch.id);
            }
            !idle
        });
        ids
    }

    /// Returns what to watch on a new stream: only what is waited for. With `None`, the task ends.
    fn to_watch(&self) -> Option<Vec<Arc<LockWatch>>> {
        let mut state = self.lock();
        state
            .by_prefix
            .retain(|_, watch| watch.users.load(Ordering::Acquire) > 0);
        let wanted: Vec<_> = state
            .by_prefix
            .values()
            .filter(|watch| watch.lock().requested)
            .cloned()
            .collect();
        if wanted.is_empty() || state.closed {
            state.running = false;
            return None;
        }
        Some(wanted)
    }

    /// As [`to_watch`](Self::to_watch), for a task that goes on; `None` if the backend was closed.
    fn to_watch_on_stream(&self) -> Option<Vec<Arc<LockWatch>>> {
        let state = self.lock();
        if state.closed {
            return None;
        }
        Some(
            state
                .by_prefix
                .values()
                .filter(|watch| watch.lock().requested)
                .cloned()
                .collect(),
        )
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    /// Makes sure that the watch stands: what is deleted after this has returned is told.
    pub(crate) async fn establish(&self, timeout: Duration) -> Result<()> {
        if self.watch.lock().is_established {
            return Ok(());
        }
        let established = async {
            loop {
                let mut established = std::pin::pin!(self.watch.established.notified());
                established.as_mut().enable();
                {
                    let mut state = self.watch.lock();
                    if state.is_established {
                        return;
                    }
                    state.requested = true;
                }
                self.registry.start();
                established.await;
            }
        };
        tokio::time::timeout(timeout, established)
            .await
            .map_err(|_elapsed| {
                error::timed_out(
                    "watch",
                    SideEffect::None,
                    &self.registry.cluster.endpoint(),
                    timeout,
                )
            })
    }

    pub(crate) fn generation(&self) -> Generation {
        self.watch.generation()
    }

    /// Completes when one of these keys is gone, or something may have been missed since `before`.
    pub(crate) fn deleted(&self, keys: Vec<EtcdKey>, before: Generation) -> BoxFuture<'static, ()> {
        self.watch.wait_for(Some(keys), before)
    }

    /// Completes when anybody has left since `before`, or something may have been missed.
    pub(crate) fn changed(&self, before: Generation) -> BoxFuture<'static, ()> {
        self.watch.wait_for(None, before)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        let mut watch = self.watch.lock();
        watch.idle_since = Some(Instant::now());
        let last = self.watch.users.fetch_sub(1, Ordering::AcqRel) == 1;
        // Was never asked of the server: nothing to keep warm.
        if last && !watch.requested {
            state.by_prefix.remove(&self.watch.lock_prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{panic::resume_unwind, sync::atomic::AtomicUsize};

    use leasehold_core::LockKey;
    use tracing::{
        Event, Metadata, Subscriber,
        span::{Attributes, Id, Record},
    };

    use super::*;
    use crate::config::{EtcdConfig, ParsedUrl};

    /// Counts the events of this crate, and panics at each.
    #[derive(Clone, Default)]
    struct PanicsAtEvents(Arc<AtomicUsize>);

    impl Subscriber for PanicsAtEvents {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target().starts_with("leasehold")
        }

        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
            // Without a message in the test's output for each.
            resume_unwind(Box::new("told to panic"));
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

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

    #[tokio::test(start_paused = true)]
    async fn the_stream_is_opened_again_after_a_panic() {
        // Nothing listens there.
        let cluster =
            Cluster::at(ParsedUrl::parse("etcd://127.0.0.1:1", EtcdConfig::default()).unwrap());
        let lock_prefix = cluster
            .layout
            .lock_prefix(&LockKey::new("k").unwrap(), false)
            .unwrap();
        let panics = PanicsAtEvents::default();
        let _subscribed = tracing::subscriber::set_default(panics.clone());
        let registration = WaiterRegistry::new(&cluster).register(&lock_prefix);
        registration
            .establish(Duration::from_secs(1))
            .await
            .unwrap_err();
        until(&panics.0, 5).await;
    }

    #[tokio::test(start_paused = true)]
    async fn no_stream_is_opened_for_a_watch_that_nobody_uses() {
        let cluster =
            Cluster::at(ParsedUrl::parse("etcd://127.0.0.1:1", EtcdConfig::default()).unwrap());
        let lock_prefix = cluster
            .layout
            .lock_prefix(&LockKey::new("k").unwrap(), false)
            .unwrap();
        let registry = WaiterRegistry::new(&cluster);
        let registration = registry.register(&lock_prefix);
        registration
            .establish(Duration::from_secs(1))
            .await
            .unwrap_err();
        assert!(registry.lock().running, "somebody waits");
        drop(registration);
        // Longer than any pause between two attempts.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let state = registry.lock();
        assert!(!state.running && state.by_prefix.is_empty());
    }
}
