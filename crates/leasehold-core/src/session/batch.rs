//! [`Batcher`]: sends jobs that arrive during a round trip together in the next one.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    backend::lease::BoxFuture,
    error::{Error, ErrorKind, Result},
    panics::contained,
};

/// Sends jobs to the server in one round trip, whatever their number.
///
/// ```
/// use std::sync::Arc;
/// use leasehold_core::{backend::BoxFuture, session::BatchExecutor};
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
/// use leasehold_core::session::BatchLimits;
///
/// // Up to 8 jobs are sent alone. Above that, two batches of up to 64 jobs are under way.
/// let limits = BatchLimits { alone: 8, calls: 2, batch: 64 };
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
    /// The maximum number of jobs in one batch.
    pub batch: usize,
}

/// Combines the jobs of many tasks into few round trips under load.
///
/// While few jobs are running, each is sent at once by its own task. Above that number, jobs are
/// queued, and a few workers send the queued jobs in batches.
///
/// A worker is a task. But if no other job is running, the task of the queued job polls the worker
/// itself, which saves two task switches. The worker becomes a task as soon as another job is
/// queued, because the task that polls it may stop doing so.
///
/// ```
/// # use leasehold_core::{backend::BoxFuture, session::BatchExecutor};
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
/// use leasehold_core::session::{BatchLimits, Batcher};
///
/// // `Squares` is the executor in the example of `BatchExecutor`.
/// let executor = Arc::new(Squares);
/// let batcher = Arc::new(Batcher::new(BatchLimits { alone: 0, calls: 1, batch: 64 }));
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
    /// The number of workers, including an inline one.
    workers: usize,
    inline: InlineWorker,
    /// The number of inline workers so far.
    inline_workers: u64,
}

struct Entry<E: BatchExecutor> {
    lane: Option<u64>,
    job: E::Job,
    answer: oneshot::Sender<E::Answer>,
}

/// The worker that the task of a job polls, if there is one.
enum InlineWorker {
    None,
    Pending(DetachableWorker),
    /// Being polled. If it is `detached`, it gets a task of its own afterwards.
    Polled {
        detached: bool,
    },
}

/// A worker that can get a task of its own.
struct DetachableWorker {
    number: u64,
    work: BoxFuture<'static, ()>,
    /// The runtime of the task that polls it.
    runtime: Handle,
    /// The waker of the task that polls it.
    waker: Waker,
}

impl DetachableWorker {
    /// Spawns the worker. The task that polled it is woken, to wait for its answer.
    fn spawn(self) {
        drop(self.runtime.spawn(self.work));
        self.waker.wake();
    }
}

impl InlineWorker {
    /// Takes the worker, to be spawned. One that is being polled is spawned afterwards.
    fn detach(&mut self) -> Option<DetachableWorker> {
        match std::mem::replace(self, Self::None) {
            Self::None => None,
            Self::Pending(worker) => Some(worker),
            Self::Polled { .. } => {
                *self = Self::Polled { detached: true };
                None
            }
        }
    }
}

impl<E: BatchExecutor> Batcher<E> {
    /// Creates a batcher without jobs.
    #[must_use]
    pub fn new(limits: BatchLimits) -> Self {
        let queue = Queue {
            entries: VecDeque::new(),
            workers: 0,
            inline: InlineWorker::None,
            inline_workers: 0,
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
        let (answer, mut answered) = oneshot::channel();
        let Some(worker) = self.queue(executor, job, answer, under_way == 0) else {
            return answered.await.map_err(|_| unanswered());
        };
        let detach_if_dropped = DetachOnDrop(self);
        let answer = poll_fn(|cx| {
            // While this task polls the worker, it does not wait for the answer: the worker would
            // wake the task that polls it, which would then be scheduled once more.
            if self.poll_inline(worker, cx) {
                return Poll::Pending;
            }
            Pin::new(&mut answered).poll(cx)
        })
        .await;
        // The worker has ended, or has a task of its own.
        std::mem::forget(detach_if_dropped);
        answer.map_err(|_| unanswered())
    }

    /// Spawns the worker that the task of a job polls, if there is one. A caller that waits for the
    /// connection must call it after it began to wait: the task of the job may not be polled, and
    /// would block the connection.
    pub fn detach(&self) {
        let detached = lock(&self.queue).inline.detach();
        if let Some(worker) = detached {
            worker.spawn();
        }
    }

    /// Passes all queued jobs to the executor, so that requests that are sent in another way come
    /// after them.
    pub fn flush(&self, executor: &Arc<E>) {
        while let Some((answers, executing)) = self.execute_next(executor, self.limits.batch) {
            drop(tokio::spawn(async move {
                deliver(answers, executing.await);
            }));
        }
    }

    /// Queues a job and starts a worker, if one may be started. Returns the number of the worker if
    /// the task of the job must poll it, because the job `is_alone`.
    fn queue(
        self: &Arc<Self>,
        executor: &Arc<E>,
        job: E::Job,
        answer: oneshot::Sender<E::Answer>,
        is_alone: bool,
    ) -> Option<u64> {
        let lane = executor.lane(&job);
        let mut queue = lock(&self.queue);
        queue.entries.push_back(Entry { lane, job, answer });
        let is_idle = queue.workers == 0 && matches!(queue.inline, InlineWorker::None);
        let inline = is_idle && is_alone;
        let start = queue.workers < self.limits.calls;
        queue.workers += usize::from(start);
        let work = || work(Arc::clone(self), Arc::clone(executor));
        if inline && start {
            queue.inline_workers += 1;
            let number = queue.inline_workers;
            queue.inline = InlineWorker::Pending(DetachableWorker {
                number,
                work: Box::pin(work()),
                runtime: Handle::current(),
                waker: Waker::noop().clone(),
            });
            return Some(number);
        }
        let detached = queue.inline.detach();
        drop(queue);
        if let Some(worker) = detached {
            worker.spawn();
        }
        if start {
            // The worker ends when the queue is empty. It is spawned, so that tasks that are about
            // to run can add their jobs.
            drop(tokio::spawn(work()));
        }
        None
    }

    /// Polls the inline worker of this number, unless it has ended or has a task of its own.
    /// Returns whether the calling task must poll it again.
    fn poll_inline(&self, number: u64, cx: &mut Context<'_>) -> bool {
        let mut worker = {
            let inline = &mut lock(&self.queue).inline;
            match std::mem::replace(inline, InlineWorker::Polled { detached: false }) {
                InlineWorker::Pending(worker) if worker.number == number => worker,
                other => {
                    *inline = other;
                    return false;
                }
            }
        };
        // The mutex is not locked meanwhile. A worker contains the panics of its executor.
        let polled = worker.work.as_mut().poll(cx);
        let mut queue = lock(&self.queue);
        let detached = matches!(queue.inline, InlineWorker::Polled { detached: true });
        queue.inline = InlineWorker::None;
        if polled.is_ready() {
            return false;
        }
        if detached {
            drop(queue);
            worker.spawn();
            return false;
        }
        worker.waker.clone_from(cx.waker());
        queue.inline = InlineWorker::Pending(worker);
        true
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

    /// Returns the share of one worker in the running jobs, so that all batches have a similar
    /// size.
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

/// The receivers of a batch's answers, and the running batch.
type Executing<E> = (
    Vec<oneshot::Sender<<E as BatchExecutor>::Answer>>,
    BoxFuture<'static, Vec<<E as BatchExecutor>::Answer>>,
);

/// Sends the queued jobs, batch after batch, until the queue is empty.
async fn work<E: BatchExecutor>(batcher: Arc<Batcher<E>>, executor: Arc<E>) {
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

fn deliver<T>(senders: Vec<oneshot::Sender<T>>, answers: Vec<T>) {
    for (sender, answer) in senders.into_iter().zip(answers) {
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

/// Gives the inline worker a task of its own if the task that polls it goes away.
struct DetachOnDrop<'a, E: BatchExecutor>(&'a Batcher<E>);

impl<E: BatchExecutor> Drop for DetachOnDrop<'_, E> {
    fn drop(&mut self) {
        self.0.detach();
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
            batch: 8,
        };
        (Arc::new(Batcher::new(limits)), Arc::default())
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
        // The job is sent for a task that needs the connection for another request.
        let mut stalled = pin!(batcher.run(&connection, 3));
        assert!((&mut stalled).now_or_never().is_none());
        let waits = async {
            tokio::join!(biased; connection.0.lock(), async { batcher.detach() })
                .0
                .clone()
        };
        assert_eq!(waits.await, [1, 2, 3]);
        assert_eq!(stalled.await.unwrap(), 3);
    }

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl std::task::Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A task that wakes itself is scheduled once more. On a runtime with several workers, another
    /// worker is notified for it.
    #[tokio::test]
    async fn lone_job_needs_no_other_task_and_no_wake_up() {
        for alone in [0, 1] {
            let (batcher, connection) = batcher(alone);
            let wakes = Arc::new(Wakes::default());
            let waker = Waker::from(Arc::clone(&wakes));
            let mut cx = Context::from_waker(&waker);
            for job in 0..3 {
                let mut lone = pin!(batcher.run(&connection, job));
                // No other task runs meanwhile, and the runtime wakes no task.
                assert!(lone.as_mut().poll(&mut cx).is_pending());
                let Poll::Ready(answer) = lone.as_mut().poll(&mut cx) else {
                    panic!("the job needs another task");
                };
                assert_eq!(answer.unwrap(), job);
            }
            assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        }
    }

    #[tokio::test]
    async fn dropped_job_is_completed_without_its_task() {
        let (batcher, connection) = batcher(0);
        {
            let mut leaves = pin!(batcher.run(&connection, 1));
            assert!((&mut leaves).now_or_never().is_none());
        }
        assert_eq!(*connection.0.lock().await, [1]);
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

    #[tokio::test]
    async fn lone_job_is_polled_as_often_as_its_executor_says() {
        for alone in [0, 1] {
            let (batcher, connection) = batcher(alone);
            let (polls, rounds) = (AtomicUsize::new(0), 50);
            let mut asking = pin!(async {
                for job in 0..rounds {
                    assert_eq!(batcher.run(&connection, job).await.unwrap(), job);
                }
            });
            let counted = poll_fn(|cx| {
                polls.fetch_add(1, Ordering::Relaxed);
                asking.as_mut().poll(cx)
            });
            tokio::task::unconstrained(counted).await;
            assert_eq!(polls.into_inner(), rounds as usize + 1);
        }
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
}
