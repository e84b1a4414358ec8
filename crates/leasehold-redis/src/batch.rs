//! One pipeline that carries many operations.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use leasehold_core::{Result, backend::Request};
use redis::{Cmd, Pipeline, RedisError, Value};
use tokio::sync::oneshot;

use crate::{
    commands::{Operation, Way},
    conn::{Conn, Sent, by_hash, is_no_script},
    connection::Link,
    error::Effect,
    keys::Keys,
    scripts,
    value::Holder,
};

/// An operation that waits for its turn, and who waits for its answer.
pub(crate) struct Entry {
    pub(crate) operation: Operation,
    pub(crate) request: Request,
    pub(crate) answer: oneshot::Sender<Result<Value>>,
}

/// A pipeline that is in the connection's queue.
pub(crate) struct Batch {
    /// Given back by one script. It comes first: whoever asks for one of these locks in the same
    /// pipeline finds it free.
    releases: Vec<Entry>,
    /// Each by commands of its own: the server may serve others between them, and one that fails
    /// leaves the others alone.
    entries: Vec<(Entry, Way)>,
    sent: Sent,
    /// The answers, if they were there at once.
    ready: Option<Result<Vec<Value>, RedisError>>,
}

impl Batch {
    /// Queues the operations on the connection.
    pub(crate) fn send(link: &Link, live: &Arc<Conn>, entries: Vec<Entry>) -> Self {
        let prefix = &link.config.prefix;
        let mut releases = Vec::new();
        let mut others = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.operation == Operation::Release && live.takes_many() {
                releases.push(entry);
            } else {
                let way = Way::of(entry.operation, live, prefix, &entry.request);
                others.push((entry, way));
            }
        }
        let mut pipeline = Pipeline::with_capacity(1 + 2 * others.len());
        if !releases.is_empty() {
            let arguments = |cmd: &mut Cmd| release_arguments(cmd, prefix, &releases);
            pipeline.add_command(by_hash(&scripts::RELEASE_MANY, &arguments));
        }
        for (
            Entry {
                operation, request, ..
            },
            way,
        ) in &others
        {
            way.write(&mut pipeline, *operation, prefix, request);
        }
        let mut sent = live.send_owned(pipeline);
        // The first poll queues the pipeline; later ones bring the waker.
        let ready = match sent.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answers) => Some(answers),
            Poll::Pending => None,
        };
        Self {
            releases,
            entries: others,
            sent,
            ready,
        }
    }

    /// Waits for the answers and hands them on.
    pub(crate) async fn finish(self, link: &Link, live: &Conn) {
        let Self {
            releases,
            entries,
            sent,
            ready,
        } = self;
        let answers = match ready {
            Some(answers) => answers,
            None => sent.await,
        };
        let mut answers = match answers {
            Ok(answers) => answers.into_iter(),
            Err(error) => {
                for entry in releases
                    .into_iter()
                    .chain(entries.into_iter().map(|(entry, _)| entry))
                {
                    let name = entry.operation.name();
                    entry.answer(Err(link.failed(live, error.clone(), name, Effect::Writes)));
                }
                return;
            }
        };
        let mut again = Vec::new();
        if !releases.is_empty() {
            again = Box::pin(released(link, live, releases, answers.next())).await;
        }
        for (entry, way) in entries {
            match way.read(live, &mut answers) {
                Err(error) if is_no_script(&error) => again.push(entry),
                answer => entry.answer_with(link, live, answer),
            }
        }
        for entry in again {
            let Entry {
                operation, request, ..
            } = &entry;
            let arguments = |cmd: &mut Cmd| operation.arguments(cmd, &link.config.prefix, request);
            let answer = link
                .run_on(
                    live,
                    operation.script(),
                    operation.name(),
                    Effect::Writes,
                    arguments,
                )
                .await;
            entry.answer(answer);
        }
    }
}

/// Hands on what the script for many releases says. Those that it did not run for, to be sent
/// alone.
async fn released(
    link: &Link,
    live: &Conn,
    releases: Vec<Entry>,
    answer: Option<Value>,
) -> Vec<Entry> {
    match answer {
        Some(Value::Int(_)) => {
            for entry in releases {
                entry.answer(Ok(Value::Int(1)));
            }
            Vec::new()
        }
        Some(Value::Array(each)) if each.len() == releases.len() => {
            for (entry, answer) in releases.into_iter().zip(each) {
                entry.answer_with(link, live, answer.extract_error());
            }
            Vec::new()
        }
        // The script has no error of its own: it did not run.
        other => {
            let error = other.map(Value::extract_error).and_then(Result::err);
            tracing::debug!(?error, "many releases go one by one");
            if error.as_ref().is_some_and(is_no_script) {
                // For the next time. Whoever releases alone has the script sent in full.
                let mut load = redis::cmd("SCRIPT");
                load.arg("LOAD").arg(scripts::RELEASE_MANY.source);
                drop(live.send(&load).await);
            } else {
                live.take_one_at_a_time();
            }
            releases
        }
    }
}

impl Entry {
    pub(crate) fn answer(self, answer: Result<Value>) {
        // Nobody listens any more only when the runtime shuts down.
        drop(self.answer.send(answer));
    }

    fn answer_with(self, link: &Link, live: &Conn, answer: Result<Value, RedisError>) {
        let name = self.operation.name();
        // What the server answers with an error it has not done.
        self.answer(answer.map_err(|error| link.failed(live, error, name, Effect::None)));
    }
}

fn release_arguments(cmd: &mut Cmd, prefix: &[u8], releases: &[Entry]) {
    cmd.arg(releases.len());
    for Entry { request, .. } in releases {
        cmd.arg(Keys::new(prefix, request.key()).lock());
    }
    for Entry { request, .. } in releases {
        cmd.arg(Holder::of(request).parts());
    }
}
