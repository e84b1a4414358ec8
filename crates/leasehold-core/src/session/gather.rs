//! [`Gather`]: what is asked for during a round trip goes out together in the next.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::oneshot;

use crate::{
    backend::BoxFuture,
    error::{Error, ErrorKind, Result},
};

/// What carries jobs to the server: one round trip, whatever their number.
pub trait Carrier: Send + Sync + 'static {
    /// What a task asks for.
    type Job: Send + 'static;
    /// What it is told.
    type Answer: Send + 'static;

    /// Jobs with the same lane never travel together, and those of a lane that queue up keep their order.
    fn lane(&self, job: &Self::Job) -> u64;

    /// Carries them; one answer each, in their order. Ends by a time-out at the latest.
    fn carry(self: Arc<Self>, jobs: Vec<Self::Job>) -> BoxFuture<'static, Vec<Self::Answer>>;
}

/// When and how much is gathered. All were measured for a backend, or should be.
#[derive(Clone, Copy, Debug)]
pub struct GatherLimits {
    /// Up to this many jobs under way, each goes alone and at once: gathering costs where there is little load.
    pub alone: usize,
    /// Round trips with gathered jobs under way at a time.
    pub calls: usize,
    /// Jobs in one round trip.
    pub batch: usize,
}

/// Gathers the jobs of many tasks into few round trips, as the load asks for.
///
/// As long as few jobs are under way, each goes alone and at once, in its own task. Above that they queue up, and a few round
/// trips at a time carry whatever has queued up meanwhile.
pub struct Gather<C: Carrier> {
    limits: GatherLimits,
    under_way: AtomicUsize,
    queue: Mutex<Queue<C>>,
}

struct Queue<C: Carrier> {
    entries: VecDeque<Entry<C>>,
    workers: usize,
}

struct Entry<C: Carrier> {
    lane: u64,
    job: C::Job,
    answer: oneshot::Sender<C::Answer>,
}

impl<C: Carrier> Gather<C> {
    /// An empty one.
    #[must_use]
    pub fn new(limits: GatherLimits) -> Self {
        let queue = Queue { entries: VecDeque::new(), workers: 0 };
        Self { limits, under_way: AtomicUsize::new(0), queue: Mutex::new(queue) }
    }

    /// Carries one job, alone or with others.
    ///
    /// # Errors
    /// [`ErrorKind::Indeterminate`] if the carrier gave no answer to it, which is a defect, or the runtime shuts down.
    ///
    /// # Cancel safety
    /// None: dropped half-way, the job may or may not be carried.
    pub async fn run(self: &Arc<Self>, carrier: &Arc<C>, job: C::Job) -> Result<C::Answer> {
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.under_way);
        if under_way < self.limits.alone {
            return Arc::clone(carrier).carry(vec![job]).await.pop().ok_or_else(unanswered);
        }
        let (answer, answered) = oneshot::channel();
        let start = {
            let mut queue = self.lock();
            queue.entries.push_back(Entry { lane: carrier.lane(&job), job, answer });
            let start = queue.workers < self.limits.calls;
            queue.workers += usize::from(start);
            start
        };
        if start {
            // Ends when the queue is empty.
            drop(tokio::spawn(work(Arc::clone(self), Arc::clone(carrier))));
        }
        answered.await.map_err(|_| unanswered())
    }

    /// What goes out next, or `None`, and one worker fewer, if there is nothing.
    fn next(&self) -> Option<Vec<Entry<C>>> {
        let mut queue = self.lock();
        if queue.entries.is_empty() {
            queue.workers -= 1;
            return None;
        }
        let (mut lanes, mut batch) = (HashSet::new(), Vec::new());
        let mut later = VecDeque::new();
        while let Some(entry) = queue.entries.pop_front() {
            if lanes.insert(entry.lane) {
                batch.push(entry);
                if batch.len() == self.limits.batch {
                    break;
                }
            } else {
                later.push_back(entry);
            }
        }
        while let Some(entry) = later.pop_back() {
            queue.entries.push_front(entry);
        }
        Some(batch)
    }

    fn lock(&self) -> MutexGuard<'_, Queue<C>> {
        // Nothing panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn work<C: Carrier>(gather: Arc<Gather<C>>, carrier: Arc<C>) {
    while let Some(batch) = gather.next() {
        let alone = batch.len() == 1;
        let (jobs, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|entry| (entry.job, entry.answer)).unzip();
        let carried = Arc::clone(&carrier).carry(jobs).await;
        for (sender, answer) in answers.into_iter().zip(carried) {
            // Nobody listens any more only when the runtime shuts down.
            drop(sender.send(answer));
        }
        // Those whose answers just came start their next jobs first. One alone, with nobody behind it, is not waited for: that
        // costs a look at the sockets and often the wake-up of another worker.
        if !alone {
            tokio::task::yield_now().await;
        }
    }
}

fn unanswered() -> Error {
    Error::new(ErrorKind::Indeterminate, "the round trip ended without an answer")
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<C: Carrier> fmt::Debug for Gather<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather")
            .field("limits", &self.limits)
            .field("under_way", &self.under_way)
            .finish_non_exhaustive()
    }
}
