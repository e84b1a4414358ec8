//! Gathering: under load, many exclusive operations share one write and one wait.
//!
//! As long as few operations are under way, each goes out alone and at once. Above that they queue up, and a few pipelines
//! at a time carry whatever has queued up meanwhile. Each operation keeps commands of its own: the server may serve others
//! between them, and one that fails leaves the others alone.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use leasehold_core::{ErrorKind, Request, Result};
use redis::{Pipeline, RedisError, Value};
use tokio::sync::oneshot;

use crate::{
    connection::{Link, Live, Sent, is_no_script},
    error::{self, Effect},
    exclusive::{Operation, Way},
};

/// Up to this many operations under way, each goes alone. measured at 16, 64 and 256 tasks, ratio to the bare
/// driver's same commands: 1.2–1.7, 1.5–2.3 and 1.3–2.0 on two workers, 0.95–1.0, 1.0–1.2 and 1.15–1.3 on a current-thread
/// runtime (one noisy run of four: 0.7 at 256).
const ALONE: usize = 4;
/// Pipelines under way. One would leave the server idle while its answers are read here.
const CALLS: usize = 2;
/// Operations in one pipeline.
const BATCH: usize = 128;

/// The queue of one connection.
#[derive(Default)]
pub(crate) struct Gather {
    under_way: AtomicUsize,
    /// The length of the queue, readable without the lock.
    queued: AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    workers: usize,
}

struct Entry {
    operation: Operation,
    request: Request,
    answer: oneshot::Sender<Result<Value>>,
}

/// A pipeline that is in the connection's queue.
struct Call {
    entries: Vec<(Entry, Way)>,
    sent: Sent,
    /// The answers, if they were there at once.
    ready: Option<Result<Vec<Value>, RedisError>>,
}

impl Gather {
    /// Runs one operation, alone or with others. The first poll queues it, and whatever starts later comes after it.
    ///
    /// For the answer see [`Way::read`].
    pub(crate) async fn run(&self, link: &Link, operation: Operation, request: &Request) -> Result<Value> {
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.under_way);
        if under_way < ALONE && self.queued.load(Ordering::Acquire) == 0 {
            // Boxed: the driver's futures are large, and under load they would be moved about for nothing.
            return Box::pin(alone(link, operation, request)).await;
        }
        let (answer, answered) = oneshot::channel();
        self.push(link, Entry { operation, request: request.clone(), answer });
        // The sender is dropped without an answer only when the runtime shuts down.
        answered.await.unwrap_or_else(|_| {
            Err(error::plain(
                ErrorKind::Indeterminate,
                operation.name(),
                "the runtime was shut down before the answer came",
            ))
        })
    }

    fn push(&self, link: &Link, entry: Entry) {
        let mut queue = self.lock();
        queue.entries.push_back(entry);
        self.queued.store(queue.entries.len(), Ordering::Release);
        if queue.workers < CALLS
            && let Some(link) = link.upgrade()
        {
            queue.workers += 1;
            // Spawned, so that the tasks that are about to run can add theirs.
            drop(tokio::spawn(work(link)));
        }
    }

    /// Sends all that is queued, so that what is sent next comes after it.
    pub(crate) fn send_all(&self, link: &Link, live: &Arc<Live>) {
        while self.queued.load(Ordering::Acquire) > 0 {
            let Some(link) = link.upgrade() else { return };
            let Some(call) = self.send_next(&link, live) else { return };
            let live = Arc::clone(live);
            drop(tokio::spawn(async move { call.finish(&link, &live).await }));
        }
    }

    /// Takes the next operations and queues their pipeline on the connection, as one step: two never overtake.
    fn send_next(&self, link: &Link, live: &Live) -> Option<Call> {
        let mut queue = self.lock();
        if queue.entries.is_empty() {
            return None;
        }
        let count = queue.entries.len().min(BATCH);
        let mut pipeline = Pipeline::with_capacity(2 * count);
        let prefix = &link.config.prefix;
        let entries = queue.entries.drain(..count).map(|entry| {
            let Entry { operation, request, .. } = &entry;
            let way = Way::of(*operation, live, prefix, request);
            way.write(&mut pipeline, *operation, prefix, request);
            (entry, way)
        });
        let entries: Vec<_> = entries.collect();
        let mut sent = live.send_owned(pipeline);
        // The first poll queues the pipeline; later ones bring the waker.
        let ready = match sent.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answers) => Some(answers),
            Poll::Pending => None,
        };
        self.queued.store(queue.entries.len(), Ordering::Release);
        Some(Call { entries, sent, ready })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn alone(link: &Link, operation: Operation, request: &Request) -> Result<Value> {
    let name = operation.name();
    let live = link.live_in_order(name).await?;
    let prefix = &link.config.prefix;
    let way = Way::of(operation, &live, prefix, request);
    let answers = match way {
        Way::Plain(_) => {
            let mut pipeline = Pipeline::with_capacity(2);
            way.write(&mut pipeline, operation, prefix, request);
            live.send_all(&pipeline).await.map_err(|error| link.failed(&live, error, name, Effect::Writes))?
        }
        Way::Courteous(_) | Way::Script(_) => {
            let arguments = |cmd: &mut redis::Cmd| way.arguments(cmd, operation, prefix, request);
            let answer = link.run_on(&live, way.script(operation), name, Effect::Writes, arguments).await?;
            vec![answer]
        }
    };
    // What the server answers with an error it has not done.
    way.read(&live, &mut answers.into_iter()).map_err(|error| error::of_command(error, name, Effect::None))
}

/// Sends pipeline after pipeline until the queue is empty.
async fn work(link: Arc<Link>) {
    loop {
        match link.live().await {
            Ok(live) => match link.gather.send_next(&link, &live) {
                Some(call) => call.finish(&link, &live).await,
                None => {
                    let mut queue = link.gather.lock();
                    if queue.entries.is_empty() {
                        queue.workers -= 1;
                        return;
                    }
                }
            },
            Err(error) => {
                let entries = {
                    let mut queue = link.gather.lock();
                    link.gather.queued.store(0, Ordering::Release);
                    std::mem::take(&mut queue.entries)
                };
                for entry in entries {
                    let name = entry.operation.name();
                    entry.answer(Err(error.clone().with_operation(name)));
                }
            }
        }
        // Those whose answers just came start their next operations first.
        tokio::task::yield_now().await;
    }
}

impl Call {
    async fn finish(self, link: &Link, live: &Live) {
        let Self { entries, sent, ready } = self;
        let answers = match ready {
            Some(answers) => answers,
            None => sent.await,
        };
        let mut answers = match answers {
            Ok(answers) => answers.into_iter(),
            Err(error) => {
                for (entry, _) in entries {
                    let name = entry.operation.name();
                    entry.answer(Err(link.failed(live, error.clone(), name, Effect::Writes)));
                }
                return;
            }
        };
        let mut forgotten = Vec::new();
        for (entry, way) in entries {
            match way.read(live, &mut answers) {
                Err(error) if is_no_script(&error) => forgotten.push(entry),
                answer => {
                    let name = entry.operation.name();
                    // What the server answers with an error it has not done.
                    entry.answer(answer.map_err(|error| error::of_command(error, name, Effect::None)));
                }
            }
        }
        for entry in forgotten {
            let Entry { operation, request, .. } = &entry;
            let arguments = |cmd: &mut redis::Cmd| operation.arguments(cmd, &link.config.prefix, request);
            let answer = link.run_on(live, operation.script(), operation.name(), Effect::Writes, arguments).await;
            entry.answer(answer);
        }
    }
}

impl Entry {
    fn answer(self, answer: Result<Value>) {
        // Nobody listens any more only when the runtime shuts down.
        drop(self.answer.send(answer));
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
