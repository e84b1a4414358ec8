//! [`Batcher`]: sends jobs that arrive during a round trip together in the next one.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    backend::lease::BoxFuture,
    error::{Error, ErrorKind, Result},
    panics::contained,
};

/// The longest time that a worker waits until the task that started it has queued its jobs. It
/// passes only if the task is not polled again, or has much to do. The unit tests have a limit that
/// a busy machine does not reach.
const QUEUING: Duration = Duration::from_millis(if cfg!(test) { 60_000 } else { 5 });

/// Sends jobs to the server in one round trip, whatever their number.
///
/// ```
/// use std::sync::Arc;
/// use leasehold_core::backend::{BoxFuture, support::BatchExecutor};
///
/// /// Answers each job with its square.
/// struct Squares;
///
/// impl BatchExecutor for Squares {
///     type Job = u64;
///     type Answer = u64;
///
///     fn execute(self: Arc<Self>, jobs: Vec<u64>) -> BoxFuture<'static, Vec<u64>> {
///         Box::pin(async move { jobs.into_iter().map(|job| job * job).collect() })
///     }
/// }
/// ```
pub trait BatchExecutor: Send + Sync + 'static {
    /// A request of one task.
    type Job: Send + 'static;
    /// The answer to a job.
    type Answer: Send + 'static;

    /// Returns the lane of a job. Jobs of one lane are never sent in one batch, and queued jobs of
    /// a lane keep their order. A job without a lane may be sent with any other.
    fn lane(&self, _job: &Self::Job) -> Option<u64> {
        None
    }

    /// Sends the jobs, and returns one answer per job in the same order. The future must end, by a
    /// timeout at the latest.
    ///
    /// It is called for one batch at a time, in the order in which the jobs were queued. An
    /// executor that adds its jobs to the queue of a connection before it returns the future keeps
    /// that order on the connection.
    fn execute(self: Arc<Self>, jobs: Vec<Self::Job>) -> BoxFuture<'static, Vec<Self::Answer>>;
}

/// The limits of a [`Batcher`]. Measure them for each backend.
///
/// ```
/// use leasehold_core::backend::support::BatchLimits;
///
/// // Up to 8 jobs are sent alone. Above that, two batches of up to 64 jobs are under way.
/// let limits = BatchLimits { alone: 8, calls: 2, undivided: 1, batch: 64 };
/// # let _ = limits;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Below this number of running jobs, each job is sent at once by its own task, because
    /// batching only adds latency under light load. It must be 0 if a job blocks the connection for
    /// other jobs: a task may stop polling its job, and would then block all of them.
    pub alone: usize,
    /// The number of batches that may be sent at a time.
    pub calls: usize,
    /// The number of jobs up to which a batch is not divided among the calls, at least 1. Choose a
    /// larger number if a call itself costs more than most of its jobs. With more than 1, a worker
    /// waits for a moment until the task that started it has queued its other jobs as well.
    pub undivided: usize,
    /// The maximum number of jobs in one batch.
    pub batch: usize,
}

/// Combines the jobs of many tasks into few round trips under load.
///
/// While few jobs are running, each is sent at once by its own task. Above that number, jobs are
/// queued, and a few workers send the queued jobs in batches.
///
/// ```
/// # use leasehold_core::backend::{BoxFuture, support::BatchExecutor};
/// # struct Squares;
/// # impl BatchExecutor for Squares {
/// #     type Job = u64;
/// #     type Answer = u64;
/// #     fn execute(self: std::sync::Arc<Self>, jobs: Vec<u64>) -> BoxFuture<'static, Vec<u64>> {
/// #         Box::pin(async move { jobs.into_iter().map(|job| job * job).collect() })
/// #     }
/// # }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// use std::sync::Arc;
/// use leasehold_core::backend::support::{BatchLimits, Batcher};
///
/// // `Squares` is the executor in the example of `BatchExecutor`.
/// let executor = Arc::new(Squares);
/// let limits = BatchLimits { alone: 0, calls: 1, undivided: 1, batch: 64 };
/// let batcher = Arc::new(Batcher::new(limits));
/// let (two, three) = tokio::try_join!(batcher.run(&executor, 2), batcher.run(&executor, 3))?;
/// assert_eq!((two, three), (4, 9));
/// # Ok(()) }
/// ```
pub struct Batcher<E: BatchExecutor> {
    limits: BatchLimits,
    under_way: AtomicUsize,
    queue: Mutex<Queue<E>>,
    /// Locked from reading the queue until the executor has received the jobs taken from it.
    sending: Mutex<()>,
}

struct Queue<E: BatchExecutor> {
    entries: VecDeque<Entry<E>>,
    workers: usize,
}

struct Entry<E: BatchExecutor> {
    lane: Option<u64>,
    job: E::Job,
    answer: oneshot::Sender<E::Answer>,
}

impl<E: BatchExecutor> Batcher<E> {
    /// Creates a batcher without jobs.
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

    /// Sends one job, alone or in a batch, and returns its answer. The first poll queues the job.
    /// Jobs that are queued later, and requests that are sent after a [`flush`](Self::flush), come
    /// after it.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Indeterminate`] if the executor returned no answer for the job, which
    /// is a defect, or if the runtime is shutting down.
    ///
    /// # Cancel safety
    /// Not cancel safe: if the future is dropped, the job may or may not be sent.
    pub async fn run(self: &Arc<Self>, executor: &Arc<E>, job: E::Job) -> Result<E::Answer> {
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.under_way);
        let job = if under_way < self.limits.alone {
            match self.execute_alone(executor, job) {
                Ok(executing) => return executing.await.pop().ok_or_else(unanswered),
                Err(job) => job,
            }
        } else {
            job
        };
        // Outside of a runtime, this panics before the job is queued.
        let runtime = Handle::current();
        let (answer, answered) = oneshot::channel();
        let start = {
            let mut queue = lock(&self.queue);
            queue.entries.push_back(Entry {
                lane: executor.lane(&job),
                job,
                answer,
            });
            let start = queue.workers < self.limits.calls;
            queue.workers += usize::from(start);
            start
        };
        if start {
            // The worker ends when the queue is empty. It is spawned, so that tasks that are about
            // to run can add their jobs.
            let (queued, all_queued) = oneshot::channel();
            let (batcher, executor) = (Arc::clone(self), Arc::clone(executor));
            drop(runtime.spawn(work(batcher, executor, all_queued)));
            if self.limits.undivided > 1 {
                // Another thread could run it before this task has queued its other jobs.
                tokio::task::yield_now().await;
            }
            drop(queued);
        }
        answered.await.map_err(|_| unanswered())
    }

    /// Passes all queued jobs to the executor, so that requests that are sent in another way come
    /// after them.
    pub fn flush(&self, executor: &Arc<E>) {
        while let Some((answers, executing)) = self.execute_next(executor, self.limits.batch) {
            drop(tokio::spawn(
                async move { deliver(answers, executing.await) },
            ));
        }
    }

    /// Sends one job now, or returns it if other jobs are queued before it.
    fn execute_alone(
        &self,
        executor: &Arc<E>,
        job: E::Job,
    ) -> Result<BoxFuture<'static, Vec<E::Answer>>, E::Job> {
        let _sending = lock(&self.sending);
        if lock(&self.queue).entries.is_empty() {
            Ok(Arc::clone(executor).execute(vec![job]))
        } else {
            Err(job)
        }
    }

    /// Sends the next batch, if there is one.
    fn execute_next(&self, executor: &Arc<E>, most: usize) -> Option<Executing<E>> {
        let _sending = lock(&self.sending);
        let batch = self.take(most);
        if batch.is_empty() {
            return None;
        }
        let (jobs, answers): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|entry| (entry.job, entry.answer))
            .unzip();
        Some((answers, Arc::clone(executor).execute(jobs)))
    }

    /// Takes the next batch from the queue.
    fn take(&self, most: usize) -> Vec<Entry<E>> {
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

    /// Returns the share of one worker in the running jobs, so that all large batches have a
    /// similar size.
    fn share(&self) -> usize {
        self.under_way
            .load(Ordering::Relaxed)
            .div_ceil(self.limits.calls)
            .max(self.limits.undivided)
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

/// The receivers of a batch's answers, and the running batch.
type Executing<E> = (
    Vec<oneshot::Sender<<E as BatchExecutor>::Answer>>,
    BoxFuture<'static, Vec<<E as BatchExecutor>::Answer>>,
);

/// Sends batches until the queue is empty. `all_queued` ends when the task that started the worker
/// has queued its jobs.
async fn work<E: BatchExecutor>(
    batcher: Arc<Batcher<E>>,
    executor: Arc<E>,
    all_queued: oneshot::Receiver<()>,
) {
    if batcher.limits.undivided > 1 {
        // On a runtime without timers, this panics, and the worker begins at once.
        let waits = async { Ok(tokio::time::timeout(QUEUING, all_queued).await) };
        drop(contained(waits).await);
    }
    loop {
        // After a panic, the tasks get no answer, and the next batch is sent.
        let executed = contained(async {
            let Some((answers, executing)) = batcher.execute_next(&executor, batcher.share())
            else {
                return Ok(0);
            };
            let count = answers.len();
            deliver(answers, executing.await);
            Ok(count)
        });
        let executed = executed.await.unwrap_or(1);
        if executed == 0 && batcher.end_worker() {
            return;
        }
        // The tasks that were just answered can queue their next jobs first. After a single job, do
        // not yield: that costs a poll of the sockets and often wakes another worker thread.
        if executed > 1 {
            tokio::task::yield_now().await;
        }
    }
}

fn deliver<T>(answers: Vec<oneshot::Sender<T>>, executed: Vec<T>) {
    for (sender, answer) in answers.into_iter().zip(executed) {
        // A receiver is gone if its task was dropped or the runtime is shutting down.
        drop(sender.send(answer));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under the mutex is complete if something panics.
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

impl<E: BatchExecutor> fmt::Debug for Batcher<E> {
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

    /// One connection. A job occupies it until it is answered, which takes two polls.
    #[derive(Default)]
    struct Connection(tokio::sync::Mutex<Vec<u32>>);

    impl BatchExecutor for Connection {
        type Job = u32;
        type Answer = u32;

        fn execute(self: Arc<Self>, jobs: Vec<u32>) -> BoxFuture<'static, Vec<u32>> {
            Box::pin(async move {
                let mut executed = self.0.lock().await;
                tokio::task::yield_now().await;
                assert!(!jobs.contains(&PANICS), "made to panic");
                executed.extend(&jobs);
                jobs
            })
        }
    }

    fn batcher(alone: usize) -> (Arc<Batcher<Connection>>, Arc<Connection>) {
        let limits = BatchLimits {
            alone,
            calls: 1,
            undivided: 1,
            batch: 8,
        };
        (Arc::new(Batcher::new(limits)), Arc::default())
    }

    #[tokio::test]
    async fn lone_job_is_executed_in_its_own_task() {
        let (batcher, connection) = batcher(1);
        for job in 0..3 {
            assert_eq!(batcher.run(&connection, job).await.unwrap(), job);
        }
        assert_eq!(*connection.0.lock().await, [0, 1, 2]);
    }

    #[tokio::test]
    async fn a_batch_that_panics_ends_no_later_one() {
        let (batcher, connection) = batcher(0);
        for _ in 0..3 {
            assert_eq!(
                batcher.run(&connection, PANICS).await.unwrap_err().kind(),
                ErrorKind::Indeterminate
            );
            assert_eq!(batcher.run(&connection, 1).await.unwrap(), 1);
        }
    }

    #[tokio::test]
    async fn job_that_is_not_polled_blocks_no_other_job() {
        let (batcher, connection) = batcher(0);
        let mut stalled = pin!(batcher.run(&connection, 1));
        assert!((&mut stalled).now_or_never().is_none());
        // The job is sent by its turn in the queue.
        assert_eq!(batcher.run(&connection, 2).await.unwrap(), 2);
        assert_eq!(*connection.0.lock().await, [1, 2]);
        assert_eq!(stalled.await.unwrap(), 1);
        // The job is sent by a task that needs the connection for another request.
        let mut stalled = pin!(batcher.run(&connection, 3));
        assert!((&mut stalled).now_or_never().is_none());
        // Its worker occupies the connection now.
        tokio::task::yield_now().await;
        assert_eq!(*connection.0.lock().await, [1, 2, 3]);
        assert_eq!(stalled.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn dropped_job_leaves_the_connection_to_others() {
        let (batcher, connection) = batcher(0);
        {
            let mut leaves = pin!(batcher.run(&connection, 1));
            assert!((&mut leaves).now_or_never().is_none());
        }
        assert_eq!(batcher.run(&connection, 2).await.unwrap(), 2);
        assert_eq!(*connection.0.lock().await, [1, 2]);
    }

    /// Records the jobs before it returns the future, as the queue of a connection does.
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
            undivided: 1,
            batch: 8,
        };
        let (batcher, connection) = (Arc::new(Batcher::new(limits)), Arc::new(Ordered::default()));
        let asking =
            futures_util::future::join_all((0..20).map(|job| batcher.run(&connection, job)));
        let mut asking = pin!(asking);
        assert!((&mut asking).now_or_never().is_none());
        assert_eq!(
            *lock(&connection.0),
            [0],
            "the others queue up behind the first"
        );
        batcher.flush(&connection);
        assert_eq!(*lock(&connection.0), (0..20).collect::<Vec<_>>());
        let answers: Vec<_> = asking.await.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (0..20).collect::<Vec<_>>());
    }

    /// A task that wakes itself is scheduled once more. On a runtime with several workers, another
    /// worker is notified for it.
    #[tokio::test]
    async fn lone_job_is_polled_as_often_as_its_executor_says() {
        let (batcher, connection) = batcher(1);
        let (polls, rounds) = (std::sync::atomic::AtomicUsize::new(0), 50);
        let mut asking = pin!(async {
            for job in 0..rounds {
                assert_eq!(batcher.run(&connection, job).await.unwrap(), job);
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
            let (batcher, connection) = batcher(alone);
            let tasks = (0..64_u32).map(|task| {
                let (batcher, connection) = (Arc::clone(&batcher), Arc::clone(&connection));
                tokio::spawn(async move {
                    for round in 0..100 {
                        let job = task * 100 + round;
                        assert_eq!(batcher.run(&connection, job).await.unwrap(), job);
                    }
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
            assert_eq!(connection.0.lock().await.len(), 6_400);
        }
    }

    /// Records batches of numbers. The lane of a number is the number without its last digit.
    #[derive(Default)]
    struct Trips(Mutex<Vec<Vec<u64>>>);

    impl BatchExecutor for Trips {
        type Job = u64;
        type Answer = u64;

        fn lane(&self, job: &u64) -> Option<u64> {
            Some(job / 10)
        }

        fn execute(self: Arc<Self>, jobs: Vec<u64>) -> BoxFuture<'static, Vec<u64>> {
            Box::pin(async move {
                self.0.lock().unwrap().push(jobs.clone());
                tokio::time::sleep(Duration::from_millis(1)).await;
                jobs
            })
        }
    }

    const LIMITS: BatchLimits = BatchLimits {
        alone: 2,
        calls: 1,
        undivided: 1,
        batch: 8,
    };

    #[tokio::test(start_paused = true)]
    async fn a_lone_job_goes_at_once_and_many_go_together() {
        let (trips, batcher) = (Arc::new(Trips::default()), Arc::new(Batcher::new(LIMITS)));
        assert_eq!(batcher.run(&trips, 7).await.unwrap(), 7);
        let jobs: Vec<u64> = (0..20).map(|job| job * 10).collect();
        let answers =
            futures_util::future::join_all(jobs.iter().map(|job| batcher.run(&trips, *job))).await;
        assert_eq!(
            answers.into_iter().map(Result::unwrap).collect::<Vec<_>>(),
            jobs
        );
        let sizes: Vec<_> = trips.0.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 1, 1, 8, 8, 2]);
    }

    const UNDIVIDED: BatchLimits = BatchLimits {
        alone: 0,
        calls: 4,
        undivided: 16,
        batch: 64,
    };

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn jobs_of_one_task_go_together_on_several_threads() {
        let trips = Arc::new(Trips::default());
        let batcher = Arc::new(Batcher::new(UNDIVIDED));
        let requests = (0..8).map(|job| {
            let (batcher, trips) = (&batcher, &trips);
            async move {
                // Another thread has the time to run the worker.
                std::thread::sleep(Duration::from_millis(5));
                batcher.run(trips, job * 10).await
            }
        });
        futures_util::future::join_all(requests).await;
        let sizes: Vec<_> = trips.0.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(sizes, [8]);
    }

    #[tokio::test(start_paused = true)]
    async fn job_that_is_polled_once_is_sent_with_the_next_one() {
        let limits = BatchLimits {
            calls: 1,
            ..UNDIVIDED
        };
        let (trips, batcher) = (Arc::new(Trips::default()), Arc::new(Batcher::new(limits)));
        let mut kept = pin!(batcher.run(&trips, 10));
        assert!((&mut kept).now_or_never().is_none());
        assert_eq!(batcher.run(&trips, 20).await.unwrap(), 20);
        assert_eq!(*trips.0.lock().unwrap(), [[10, 20]]);
        assert!(kept.now_or_never().is_some_and(|answer| answer.is_ok()));
    }

    #[tokio::test(start_paused = true)]
    async fn small_batches_are_not_divided_among_the_calls() {
        let (trips, batcher) = (
            Arc::new(Trips::default()),
            Arc::new(Batcher::new(UNDIVIDED)),
        );
        let jobs: Vec<u64> = (0..12).map(|job| job * 10).collect();
        futures_util::future::join_all(jobs.iter().map(|job| batcher.run(&trips, *job))).await;
        assert_eq!(*trips.0.lock().unwrap(), [jobs]);
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_of_one_lane_never_travel_together_and_keep_their_order() {
        let (trips, batcher) = (Arc::new(Trips::default()), Arc::new(Batcher::new(LIMITS)));
        let jobs = [101, 201, 11, 12, 21, 13, 22];
        futures_util::future::join_all(jobs.iter().map(|job| batcher.run(&trips, *job))).await;
        assert_eq!(
            *trips.0.lock().unwrap(),
            [vec![101], vec![201], vec![11, 21], vec![12, 22], vec![13]]
        );
    }
}
