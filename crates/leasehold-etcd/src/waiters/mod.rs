//! [`WaiterRegistry`]: notifies the waiters of a backend, by one watch stream.
//!
//! The server serves a watch that starts at a past revision only every 100 ms. Watches therefore
//! start at the present revision and stay open for a while. A waiter makes sure that the watch on
//! its lock is established, *then* reads which keys it waits for, and then waits. Each contended
//! lock has a watch of its own on the stream, for deletions under its prefix. Each record that is
//! watched has one too, and each election. The server sends no events of other keys.

mod lock_watch;
mod stream;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use leasehold_core::{Result, backend::BoxFuture};
use tokio::{sync::Notify, time::Instant};

use self::lock_watch::LockWatch;
pub(crate) use self::lock_watch::{Generation, Watched};
use crate::{
    connection::Cluster,
    error::{self, SideEffect},
    keys::EtcdKey,
};

/// How long the watch on a lock is kept after its last waiter. The next waiter need not wait for a
/// new watch.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The watches of a backend.
#[derive(Debug)]
pub(crate) struct WaiterRegistry {
    cluster: Arc<Cluster>,
    state: Mutex<State>,
    /// Notified when the stream must be extended by a watch.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    watches: HashMap<Watched, Arc<LockWatch>>,
    next: i64,
    running: bool,
    closed: bool,
}

/// The registration of one waiter. The watch on its lock is kept as long as there is one, and a
/// little longer.
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

    /// Registers a waiter for changes. Sends nothing until [`Registration::establish`].
    pub(crate) fn register(self: &Arc<Self>, watched: Watched) -> Registration {
        let mut state = self.lock();
        let watch = match state.watches.get(&watched) {
            Some(watch) => Arc::clone(watch),
            None => {
                state.next += 1;
                let watch = Arc::new(LockWatch::new(state.next, watched.clone()));
                state.watches.insert(watched, Arc::clone(&watch));
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
        self.lock().watches.values().cloned().collect()
    }

    /// Removes the watches that have had no waiter for a while, and returns their ids.
    fn sweep(&self) -> Vec<i64> {
        let now = Instant::now();
        let mut ids = Vec::new();
        self.lock().watches.retain(|_, watch| {
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

    /// Returns the watches for a new stream: only those with a waiter. Returns `None` if the task
    /// must end.
    fn to_watch(&self) -> Option<Vec<Arc<LockWatch>>> {
        let mut state = self.lock();
        state
            .watches
            .retain(|_, watch| watch.users.load(Ordering::Acquire) > 0);
        let wanted: Vec<_> = state
            .watches
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

    /// Returns the watches for a stream that is open. Returns `None` if the backend was closed.
    fn to_watch_on_stream(&self) -> Option<Vec<Arc<LockWatch>>> {
        let state = self.lock();
        if state.closed {
            return None;
        }
        Some(
            state
                .watches
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
    /// Waits until the watch is established. Every later change is reported.
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

    /// Completes when one of these keys of a lock has changed, or when an event since `before` may
    /// have been missed.
    pub(crate) fn any_of(&self, keys: Vec<EtcdKey>, before: Generation) -> BoxFuture<'static, ()> {
        self.watch.wait_for(Some(keys), before)
    }

    /// Completes when there was any change since `before`, or when one may have been missed.
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
        // No watch was requested from the server, so there is none to keep.
        if last && !watch.requested {
            state.watches.remove(&self.watch.watched);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use leasehold_core::LockKey;
    use leasehold_testkit::{PanickingSubscriber, subscribe};

    use super::*;
    use crate::config::{EtcdConfig, ParsedUrl};

    /// Waits for this number of events: the task continued after each of them.
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
        // No server listens on this port.
        let cluster =
            Cluster::at(ParsedUrl::parse("etcd://127.0.0.1:1", EtcdConfig::default()).unwrap());
        let lock_prefix = cluster
            .layout
            .lock_prefix(&LockKey::new("k").unwrap(), false)
            .unwrap();
        let (panics, events) = PanickingSubscriber::new(None);
        let _subscribed = subscribe(panics);
        let registration = WaiterRegistry::new(&cluster).register(Watched::Lock(lock_prefix));
        registration
            .establish(Duration::from_secs(1))
            .await
            .unwrap_err();
        until(&events, 5).await;
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
        let registration = registry.register(Watched::Lock(lock_prefix));
        registration
            .establish(Duration::from_secs(1))
            .await
            .unwrap_err();
        assert!(registry.lock().running, "there is a waiter");
        drop(registration);
        // Longer than any delay between two attempts.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let state = registry.lock();
        assert!(!state.running && state.watches.is_empty());
    }
}
