//! Gathering: under load, many exclusive operations share one write and one wait.
//!
//! As long as few operations are under way, each goes out alone and at once. Above that they queue
//! up, and a few pipelines at a time carry their share of what has queued up meanwhile.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use leasehold_core::{
    ErrorKind, Result,
    backend::{Request, support::contained},
};
use redis::{Pipeline, Value};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::oneshot,
    task::yield_now,
};

use crate::{
    batch::{Batch, Entry},
    commands::{Operation, Way},
    conn::Conn,
    connection::Link,
    error::{self, Effect},
};

/// Up to this many operations under way, each goes alone. Measured against the bare driver's same
/// commands at 16, 64 and 256 tasks: 0.96, 1.5 and 1.24; with 16 it is 0.90 at 16 tasks.
const ALONE: usize = 4;
/// The same on a runtime with several workers, where whoever waits for a pipeline leaves workers
/// idle: 0.90, 1.23 and 1.66; with 4 it is 0.86, 1.23 and 1.58.
const ALONE_AMONG_WORKERS: usize = 16;
/// Pipelines under way. One would leave the server idle while its answers are read here, and us
/// while it works.
const CALLS: usize = 2;
/// Operations in one pipeline.
const BATCH: usize = 128;

/// The queue of one connection.
pub(crate) struct Batcher {
    /// [`ALONE`] or [`ALONE_AMONG_WORKERS`].
    alone: AtomicUsize,
    under_way: AtomicUsize,
    /// The length of the queue, readable without the lock.
    queued: AtomicUsize,
    queue: Mutex<Queue>,
    /// Held from the queue to the connection's queue.
    sending: Mutex<()>,
    /// Pipelines sent.
    sent: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    workers: usize,
}

impl Batcher {
    pub(crate) fn new() -> Self {
        Self {
            alone: AtomicUsize::new(ALONE),
            under_way: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            queue: Mutex::default(),
            sending: Mutex::default(),
            sent: AtomicUsize::new(0),
        }
    }

    /// To be told within the runtime that the connection lives in.
    pub(crate) fn suit_runtime(&self) {
        let alone = match Handle::current().runtime_flavor() {
            RuntimeFlavor::CurrentThread => ALONE,
            _ => ALONE_AMONG_WORKERS,
        };
        self.alone.store(alone, Ordering::Relaxed);
    }

    /// Runs one operation, alone or with others. The first poll queues it, and whatever starts
    /// later comes after it.
    ///
    /// For the answer see [`Way::read`].
    pub(crate) async fn run(
        &self,
        link: &Link,
        operation: Operation,
        request: &Request,
    ) -> Result<Value> {
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.under_way);
        if under_way < self.alone.load(Ordering::Relaxed)
            && self.queued.load(Ordering::Acquire) == 0
        {
            // Boxed: the driver's futures are large, and under load they would be moved about for
            // nothing.
            return Box::pin(alone(link, operation, request)).await;
        }
        let (answer, answered) = oneshot::channel();
        self.push(
            link,
            Entry {
                operation,
                request: request.clone(),
                answer,
            },
        );
        // The sender is dropped without an answer only when its batch panics, or the runtime shuts
        // down.
        answered.await.unwrap_or_else(|_| {
            Err(error::plain(
                ErrorKind::Indeterminate,
                operation.name(),
                "its pipeline ended without an answer",
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
            drop(tokio::spawn(work(link, self.sent())));
        }
    }

    /// Sends all that is queued, so that what is sent next comes after it.
    pub(crate) fn send_all(&self, link: &Link, live: &Arc<Conn>) {
        while self.queued.load(Ordering::Acquire) > 0 {
            let Some(link) = link.upgrade() else { return };
            let Some(batch) = self.send_next(&link, live, BATCH) else {
                return;
            };
            let live = Arc::clone(live);
            drop(tokio::spawn(
                async move { batch.finish(&link, &live).await },
            ));
        }
    }

    /// Takes the next operations and queues their pipeline on the connection, as one step: two
    /// never overtake.
    fn send_next(&self, link: &Link, live: &Arc<Conn>, most: usize) -> Option<Batch> {
        // Nothing panics while it is held.
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let entries: Vec<_> = {
            let mut queue = self.lock();
            let count = queue.entries.len().min(most);
            queue.entries.drain(..count).collect()
        };
        if entries.is_empty() {
            return None;
        }
        let batch = Batch::send(link, live, entries);
        self.sent.fetch_add(1, Ordering::Release);
        // Only now: whoever goes alone looks at it to know whether it would overtake.
        let queue = self.lock();
        self.queued.store(queue.entries.len(), Ordering::Release);
        Some(batch)
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::Acquire)
    }

    /// How many operations the next pipeline carries at most: its part of what is under way, so
    /// that the pipelines stay alike.
    fn share(&self) -> usize {
        self.under_way
            .load(Ordering::Relaxed)
            .div_ceil(CALLS)
            .clamp(1, BATCH)
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
            live.send_all(&pipeline)
                .await
                .map_err(|error| link.failed(&live, error, name, Effect::Writes))?
        }
        Way::Courteous(_) | Way::Script(_) => {
            let arguments = |cmd: &mut redis::Cmd| way.arguments(cmd, operation, prefix, request);
            let answer = link
                .run_on(
                    &live,
                    way.script(operation),
                    name,
                    Effect::Writes,
                    arguments,
                )
                .await?;
            vec![answer]
        }
    };
    // What the server answers with an error it has not done.
    way.read(&live, &mut answers.into_iter())
        .map_err(|error| link.failed(&live, error, name, Effect::None))
}

/// Sends pipeline after pipeline until the queue is empty, there is no connection, or something
/// panics. `sent`: how many were sent when it was known that there is something to send.
async fn work(link: Arc<Link>, mut sent: usize) {
    let gather = &link.gather;
    loop {
        if gather.sent() != sent {
            // Another pipeline is about to be written. The connection's task writes it now, alone,
            // so that the server works on it while we write ours; together they would go back and
            // forth as one.
            yield_now().await;
        }
        let carried = contained(async {
            let live = link.live().await?;
            let Some(batch) = gather.send_next(&link, &live, gather.share()) else {
                return Ok(false);
            };
            batch.finish(&link, &live).await;
            Ok(true)
        });
        match carried.await {
            Ok(true) => {}
            Ok(false) => {
                let mut queue = gather.lock();
                if queue.entries.is_empty() {
                    queue.workers -= 1;
                    return;
                }
            }
            // There is no connection, or something panicked.
            Err(error) => {
                let entries = {
                    let mut queue = gather.lock();
                    gather.queued.store(0, Ordering::Release);
                    queue.workers -= 1;
                    std::mem::take(&mut queue.entries)
                };
                for entry in entries {
                    let name = entry.operation.name();
                    entry.answer(Err(error.clone().with_operation(name)));
                }
                // Whoever comes next starts another: without a connection, going on would be an
                // endless loop.
                return;
            }
        }
        sent = gather.sent();
        // Those whose answers just came start their next operations first.
        yield_now().await;
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
