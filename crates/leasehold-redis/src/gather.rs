//! Gathering: under load, many exclusive operations share one script call.
//!
//! As long as few operations are under way, each goes out alone and at once. Above that they queue up, and a few calls at a
//! time carry whatever has queued up meanwhile. The server then does less work per operation, which is what limits it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use leasehold_core::{ErrorKind, Request, Result};
use redis::{Cmd, RedisError, Value};
use tokio::sync::oneshot;

use crate::{
    connection::{Link, Live, Sent, by_hash, in_full, is_no_script},
    error::{self, Effect},
    holder::Holder,
    keys::{Keys, Kind},
    scripts,
};

/// Up to this many operations under way, each goes alone. `examples/pair_bench` at 4, 8, 16, 64 and 256 tasks: with 4 here
/// and 2 calls the ratio to the bare driver is 0.92–0.96, 1.1–1.3, 1.4–1.8, 1.7–2.7 and 1.8–2.8.
const ALONE: usize = 4;
/// Script calls under way. One would leave the server idle while its answer is read here.
const CALLS: usize = 2;
/// Operations in one call: the server serves nobody else meanwhile, for about 3 µs each.
const BATCH: usize = 128;

/// An operation on an exclusive lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Acquire,
    Release,
    Renew,
}

impl Operation {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Acquire => "acquire",
            Self::Release => "release",
            Self::Renew => "renew",
        }
    }
}

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

/// A call that is in the connection's queue.
struct Call {
    entries: Vec<Entry>,
    sent: Sent,
    /// The answer, if it was there at once.
    ready: Option<Result<Value, RedisError>>,
}

impl Gather {
    /// Runs one operation, alone or with others. The first poll queues it, and whatever starts later comes after it.
    pub(crate) async fn run(
        &self,
        link: &Link,
        operation: Operation,
        request: &Request,
        alone: impl Fn(&mut Cmd),
        script: &scripts::Script,
    ) -> Result<Value> {
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.under_way);
        if under_way < ALONE && self.queued.load(Ordering::Acquire) == 0 {
            return link.run(script, operation.name(), Effect::Writes, alone).await;
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

    /// Takes the next operations and queues their call on the connection, as one step: two calls never overtake.
    fn send_next(&self, link: &Link, live: &Live) -> Option<Call> {
        let mut queue = self.lock();
        if queue.entries.is_empty() {
            return None;
        }
        let count = queue.entries.len().min(BATCH);
        let entries: Vec<_> = queue.entries.drain(..count).collect();
        let mut sent = live.send_owned(by_hash(&scripts::GATHER, &|cmd| arguments(cmd, link, &entries)));
        // The first poll queues the command; later ones bring the waker.
        let ready = match sent.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Some(answer),
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

/// Sends call after call until the queue is empty.
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
        let mut answer = match ready {
            Some(answer) => answer,
            None => sent.await,
        }
        .and_then(Value::extract_error_unless_nested);
        if answer.as_ref().is_err_and(is_no_script) {
            let again = in_full(&scripts::GATHER, &|cmd: &mut Cmd| arguments(cmd, link, &entries));
            answer = live.send_owned(again).await.and_then(Value::extract_error_unless_nested);
        }
        match answer {
            Ok(Value::Array(answers)) if answers.len() == entries.len() => {
                for (entry, answer) in entries.into_iter().zip(answers) {
                    let name = entry.operation.name();
                    entry.answer(answer.extract_error().map_err(|error| {
                        // The server has undone what it had begun.
                        error::of_command(error, name, Effect::None)
                    }));
                }
            }
            Ok(_) => {
                for entry in entries {
                    let name = entry.operation.name();
                    entry.answer(Err(error::protocol(name)));
                }
            }
            Err(error) => {
                for entry in entries {
                    let name = entry.operation.name();
                    entry.answer(Err(link.failed(live, error.clone(), name, Effect::Writes)));
                }
            }
        }
    }
}

impl Entry {
    fn answer(self, answer: Result<Value>) {
        // Nobody listens any more only when the runtime shuts down.
        drop(self.answer.send(answer));
    }
}

/// An answer's own error as `Err`, and errors inside of it left in their places.
trait OuterError: Sized {
    fn extract_error_unless_nested(self) -> Result<Self, RedisError>;
}

impl OuterError for Value {
    fn extract_error_unless_nested(self) -> Result<Self, RedisError> {
        match self {
            Self::ServerError(error) => Err(error.into()),
            value => Ok(value),
        }
    }
}

fn arguments(cmd: &mut Cmd, link: &Link, entries: &[Entry]) {
    cmd.arg(0);
    for Entry { operation, request, .. } in entries {
        let keys = Keys::new(&link.config.prefix, request.key());
        let holder = Holder::of(request);
        let kind = match operation {
            Operation::Acquire => b"a",
            Operation::Release => b"r",
            Operation::Renew => b"n",
        };
        cmd.arg(kind.as_slice()).arg(keys.lock()).arg(holder.parts());
        if *operation != Operation::Release {
            cmd.arg(request.ttl().as_millis());
        }
        if *operation == Operation::Acquire {
            cmd.arg(keys.derived(Kind::Token));
        }
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
