//! [`Batcher`]: what is asked for during a round trip goes out together in the next.

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
    backend::contract::BoxFuture,
    error::{Error, ErrorKind, Result},
    panics::contained,
};

/// What carries jobs to the server: one round trip, whatever their number.
pub trait BatchExecutor: Send + Sync + 'static {
    /// What a task asks for.
    type Job: Send + 'static;
    /// What it is told.
    type Answer: Send + 'static;

    /// Returns the lane of a job: jobs with the same lane never travel together, and those of a
    /// lane that queue up keep their order. A job without a lane travels with any other.
    fn lane(&self, _job: &Self::Job) -> Option<u64> {
        None
    }

    /// Carries them; one answer each, in their order. Ends by a time-out at the latest.
    ///
    /// This is called for one batch at a time, in the order in which the jobs were asked for. A
    /// carrier that puts its jobs into the queue of a connection before it returns the future keeps
    /// that order on the connection.
    fn execute(self: Arc<Self>, jobs: Vec<Self::Job>) -> BoxFuture<'static, Vec<Self::Answer>>;
}

/// When and how much is gathered. All were measured for a backend, or should be.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Below this many jobs under way, each is carried at once, in the task that asks for it.
    /// Gathering only adds latency under light load. Must be 0 where a job keeps others from the
    /// connection: a task may stop polling its job half-way, and would keep all others waiting.
    pub alone: usize,
    /// Round trips with gathered jobs under way at a time.
    pub calls: usize,
    /// Jobs in one round trip.
    pub batch: usize,
}

/// Gathers the jobs of many tasks into few round trips, as the load asks for.
///
/// As long as few jobs are under way, each goes alone and at once, in its own task. Above that they
/// queue up, and a few round trips at a time carry whatever has queued up meanwhile.
pub struct Batcher<C: BatchExecutor> {
    limits: BatchLimits,
    under_way: AtomicUsize,
    queue: Mutex<Queue<C>>,
    /// Held from the look at the queue until the carrier has what was taken from it.
    sending: Mutex<()>,
}

struct Queue<C: BatchExecutor> {
    entries: VecDeque<Entry<C>>,
    workers: usize,
}

struct Entry<C: BatchExecutor> {
    lane: Option<u64>,
    job: C::Job,
    answer: oneshot::Sender<C::Answer>,
}

impl<C: BatchExecutor> Batcher<C> {
    /// An empty one.
    #[must_use]
    pub fn new(limits: BatchLimits) -> Self {
        let queue = Queue {
            entries: VecDeque::new(),
            workers: 0,
        };
        Self {
            limits,
            under_way: AtomicUsize::new(0),
            queue: Mutex::new(queue),
            sending: Mutex::default(),
        }
    }

    /// Carries one job, alone or with others. The first poll queues it: jobs that are asked for
    /// later, and whatever is sent after a [`flush`](Self::flush), come after it.
    ///
    /// # Errors
    /// [`ErrorKind::Indeterminate`] if the carrier gave no answer to it, which is a defect, or the
    /// runtime shuts down.
    ///
    /// # Cancel safety
    /// None: dropped half-way, the job may or may not be carried.
    pub async fn run(self: &Arc<Self>, carrier: &Arc<C>, job: C::Job) -> Result<C::Answer> {
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.under_way);
        let job = if under_way < self.limits.alone {
            match self.execute_alone(carrier, job) {
                Ok(carrying) => return carrying.await.pop().ok_or_else(unanswered),
                Err(job) => job,
            }
        } else {
            job
        };
        let (answer, answered) = oneshot::channel();
        let start = {
            let mut queue = lock(&self.queue);
            queue.entries.push_back(Entry {
                lane: carrier.lane(&job),
                job,
                answer,
            });
            let start = queue.workers < self.limits.calls;
            queue.workers += usize::from(start);
            start
        };
        if start {
            // Ends when the queue is empty. It is spawned, so that the tasks that are about to run
            // add their jobs.
            drop(tokio::spawn(work(Arc::clone(self), Arc::clone(carrier))));
        }
        answered.await.map_err(|_| unanswered())
    }

    /// Hands everything that is queued to the carrier, so that what is sent in another way comes
    /// after it.
    pub fn flush(&self, carrier: &Arc<C>) {
        while let Some((answers, carrying)) = self.carry_next(carrier, self.limits.batch) {
            drop(tokio::spawn(
                async move { deliver(answers, carrying.await) },
            ));
        }
    }

    /// Carries one job now, or returns it if others are queued before it.
    fn execute_alone(
        &self,
        carrier: &Arc<C>,
        job: C::Job,
    ) -> Result<BoxFuture<'static, Vec<C::Answer>>, C::Job> {
        let _sending = lock(&self.sending);
        if lock(&self.queue).entries.is_empty() {
            Ok(Arc::clone(carrier).execute(vec![job]))
        } else {
            Err(job)
        }
    }

    /// Carries the next batch, if there is one.
    fn carry_next(&self, carrier: &Arc<C>, most: usize) -> Option<Carried<C>> {
        let _sending = lock(&self.sending);
        let batch = self.take(most);
        if batch.is_empty() {
            return None;
        }
        let (jobs, answers): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|entry| (entry.job, entry.answer))
            .unzip();
        Some((answers, Arc::clone(carrier).execute(jobs)))
    }

    /// Takes the next batch from the queue.
    fn take(&self, most: usize) -> Vec<Entry<C>> {
        let mut queue = lock(&self.queue);
        let (mut lanes, mut batch) = (HashSet::new(), Vec::new());
        let mut later = VecDeque::new();
        while let Some(entry) = queue.entries.pop_front() {
            if entry.lane.is_none_or(|lane| lanes.insert(lane)) {
                batch.push(entry);
                if batch.len() == most {
                    break;
                }
            } else {
                later.push_back(entry);
            }
        }
        while let Some(entry) = later.pop_back() {
            queue.entries.push_front(entry);
        }
        batch
    }

    /// Returns the share of one worker in what is under way, so that the batches of all stay alike.
    fn share(&self) -> usize {
        self.under_way
            .load(Ordering::Relaxed)
            .div_ceil(self.limits.calls)
            .clamp(1, self.limits.batch)
    }

    /// Ends a worker if the queue is empty.
    fn end_worker(&self) -> bool {
        let mut queue = lock(&self.queue);
        let ends = queue.entries.is_empty();
        queue.workers -= usize::from(ends);
        ends
    }
}

/// The receivers of a batch's answers, and the batch under way.
type Carried<C> = (
    Vec<oneshot::Sender<<C as BatchExecutor>::Answer>>,
    BoxFuture<'static, Vec<<C as BatchExecutor>::Answer>>,
);

async fn work<C: BatchExecutor>(gather: Arc<Batcher<C>>, carrier: Arc<C>) {
    loop {
        // After a panic the askers get no answer, and the next batch is carried.
        let carried = contained(async {
            let Some((answers, carrying)) = gather.carry_next(&carrier, gather.share()) else {
                return Ok(0);
            };
            let count = answers.len();
            deliver(answers, carrying.await);
            Ok(count)
        });
        let carried = carried.await.unwrap_or(1);
        if carried == 0 && gather.end_worker() {
            return;
        }
        // Those whose answers just came start their next jobs first. One alone, with nobody behind
        // it, is not waited for: that costs a look at the sockets and often the wake-up of another
        // worker.
        if carried > 1 {
            tokio::task::yield_now().await;
        }
    }
}

fn deliver<T>(answers: Vec<oneshot::Sender<T>>, carried: Vec<T>) {
    for (sender, answer) in answers.into_iter().zip(carried) {
        // Nobody listens any more only when the runtime shuts down.
        drop(sender.send(answer));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under it is complete if something panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unanswered() -> Error {
    Error::new(
        ErrorKind::Indeterminate,
        "the round trip ended without an answer",
    )
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<C: BatchExecutor> fmt::Debug for Batcher<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher")
            .field("limits", &self.limits)
            .field("under_way", &self.under_way)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    /// The job that panics.
    const PANICS: u32 = 1_000_000;

    /// One connection: a job has it until it is answered, which takes two polls.
    #[derive(Default)]
    struct Connection(tokio::sync::Mutex<Vec<u32>>);

    impl BatchExecutor for Connection {
        type Job = u32;
        type Answer = u32;

        fn execute(self: Arc<Self>, jobs: Vec<u32>) -> BoxFuture<'static, Vec<u32>> {
            Box::pin(async move {
                let mut carried = self.0.lock().await;
                tokio::task::yield_now().await;
                assert!(!jobs.contains(&PANICS), "told to panic");
                carried.extend(&jobs);
                jobs
            })
        }
    }

    fn gather(alone: usize) -> (Arc<Batcher<Connection>>, Arc<Connection>) {
        let limits = BatchLimits {
            alone,
            calls: 1,
            batch: 8,
        };
        (Arc::new(Batcher::new(limits)), Arc::default())
    }

    #[tokio::test]
    async fn one_alone_is_carried_in_the_task_that_asks() {
        let (gather, connection) = gather(1);
        for job in 0..3 {
            assert_eq!(gather.run(&connection, job).await.unwrap(), job);
        }
        assert_eq!(*connection.0.lock().await, [0, 1, 2]);
    }

    #[tokio::test]
    async fn a_batch_that_panics_ends_no_later_one() {
        let (gather, connection) = gather(0);
        for _ in 0..3 {
            assert_eq!(
                gather.run(&connection, PANICS).await.unwrap_err().kind(),
                ErrorKind::Indeterminate
            );
            assert_eq!(gather.run(&connection, 1).await.unwrap(), 1);
        }
    }

    #[tokio::test]
    async fn who_stops_polling_keeps_nobody_waiting() {
        let (gather, connection) = gather(0);
        let mut stalled = pin!(gather.run(&connection, 1));
        assert!((&mut stalled).now_or_never().is_none());
        // By its turn in the queue.
        assert_eq!(gather.run(&connection, 2).await.unwrap(), 2);
        assert_eq!(*connection.0.lock().await, [1, 2]);
        assert_eq!(stalled.await.unwrap(), 1);
        // By who wants the connection for something else.
        let mut stalled = pin!(gather.run(&connection, 3));
        assert!((&mut stalled).now_or_never().is_none());
        // Its worker has the connection now.
        tokio::task::yield_now().await;
        assert_eq!(*connection.0.lock().await, [1, 2, 3]);
        assert_eq!(stalled.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn who_goes_away_half_way_leaves_the_connection_to_others() {
        let (gather, connection) = gather(0);
        {
            let mut leaves = pin!(gather.run(&connection, 1));
            assert!((&mut leaves).now_or_never().is_none());
        }
        assert_eq!(gather.run(&connection, 2).await.unwrap(), 2);
        assert_eq!(*connection.0.lock().await, [1, 2]);
    }

    /// Records what it is given before it returns the future, as a connection's queue does.
    #[derive(Default)]
    struct Ordered(Mutex<Vec<u32>>);

    impl BatchExecutor for Ordered {
        type Job = u32;
        type Answer = u32;

        fn execute(self: Arc<Self>, jobs: Vec<u32>) -> BoxFuture<'static, Vec<u32>> {
            lock(&self.0).extend(&jobs);
            Box::pin(async move {
                tokio::task::yield_now().await;
                jobs
            })
        }
    }

    #[tokio::test]
    async fn a_flush_hands_over_all_that_is_queued_in_order() {
        let limits = BatchLimits {
            alone: 1,
            calls: 2,
            batch: 8,
        };
        let (gather, connection) = (Arc::new(Batcher::new(limits)), Arc::new(Ordered::default()));
        let asking =
            futures_util::future::join_all((0..20).map(|job| gather.run(&connection, job)));
        let mut asking = pin!(asking);
        assert!((&mut asking).now_or_never().is_none());
        assert_eq!(
            *lock(&connection.0),
            [0],
            "the others queue up behind the first"
        );
        gather.flush(&connection);
        assert_eq!(*lock(&connection.0), (0..20).collect::<Vec<_>>());
        let answers: Vec<_> = asking.await.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (0..20).collect::<Vec<_>>());
    }

    /// A task that wakes itself is scheduled once more, and on a runtime with several workers
    /// another one is woken for it.
    #[tokio::test]
    async fn one_alone_is_polled_as_often_as_its_carrier_says() {
        let (gather, connection) = gather(1);
        let (polls, rounds) = (std::sync::atomic::AtomicUsize::new(0), 50);
        let mut asking = pin!(async {
            for job in 0..rounds {
                assert_eq!(gather.run(&connection, job).await.unwrap(), job);
            }
        });
        let counted = std::future::poll_fn(|cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            asking.as_mut().poll(cx)
        });
        tokio::task::unconstrained(counted).await;
        assert_eq!(polls.into_inner(), rounds as usize + 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_at_once_are_all_answered() {
        for alone in [0, 1] {
            let (gather, connection) = gather(alone);
            let tasks = (0..64_u32).map(|task| {
                let (gather, connection) = (Arc::clone(&gather), Arc::clone(&connection));
                tokio::spawn(async move {
                    for round in 0..100 {
                        let job = task * 100 + round;
                        assert_eq!(gather.run(&connection, job).await.unwrap(), job);
                    }
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
            assert_eq!(connection.0.lock().await.len(), 6_400);
        }
    }
}
