//! [`Busy`]: background load from another client on the same server.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use leasehold_integration::{HarnessError, Result};
use tokio::{
    runtime::Builder,
    time::{MissedTickBehavior, interval},
};

/// The maximum number of concurrent writes, so that a slow server is not overloaded.
const UNDER_WAY: usize = 64;

/// Writes keys that no lock uses at a fixed rate from a thread of its own, until it is dropped.
pub(crate) struct Busy {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    since: Instant,
    thread: Option<thread::JoinHandle<()>>,
}

impl Busy {
    /// Starts the load. `connect` is called on the thread's runtime; `write` is one write.
    pub(crate) fn start<C: Send + 'static, W>(
        per_second: u32,
        connect: impl Future<Output = Result<C>> + Send + 'static,
        write: impl Fn(&C, u64) -> W + Send + 'static,
    ) -> Result<Self>
    where
        W: Future<Output = bool> + Send + 'static,
    {
        let (stop, written) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| HarnessError::caused_by("cannot build a runtime", error))?;
        let connection = runtime.block_on(connect)?;
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = thread::spawn(move || {
            runtime.block_on(async move {
                let mut ticks = interval(Duration::from_secs(1) / per_second);
                // Missed writes are not made up for by a burst.
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let under_way = Arc::new(tokio::sync::Semaphore::new(UNDER_WAY));
                for n in 0.. {
                    ticks.tick().await;
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else {
                        return;
                    };
                    let (writing, counted) = (write(&connection, n), Arc::clone(&counted));
                    tokio::spawn(async move {
                        counted.fetch_add(u64::from(writing.await), Ordering::Relaxed);
                        drop(permit);
                    });
                }
            });
        });
        Ok(Self {
            stop,
            written,
            since: Instant::now(),
            thread: Some(thread),
        })
    }

    /// Returns the achieved number of writes per second.
    pub(crate) fn per_second(&self) -> f64 {
        self.written.load(Ordering::Relaxed) as f64 / self.since.elapsed().as_secs_f64()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has already been printed.
            drop(thread.join());
        }
    }
}

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Busy")
            .field("per_second", &self.per_second())
            .finish_non_exhaustive()
    }
}
