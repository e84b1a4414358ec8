//! Batches: exclusive operations of many tasks share one pipeline.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use leasehold_core::{
    Result,
    backend::{BoxFuture, support::BatchExecutor},
};
use redis::{Cmd, Pipeline, RedisError, Value};

use crate::{
    commands::Encoding,
    connection::{Connection, Sent, is_no_script},
    connection_manager::ConnectionManager,
    error::{ERRORS, SideEffect},
    job::Job,
    shared_call::{Group, SharedCall, groups},
};

impl BatchExecutor for ConnectionManager {
    type Job = Job;
    /// [`Encoding::read`](crate::commands::Encoding::read) describes the answer of an acquisition.
    type Answer = Result<Value>;

    /// Queues the jobs on the current connection, if there is one, before it returns. Batches
    /// therefore keep their order on a connection.
    fn execute(self: Arc<Self>, jobs: Vec<Job>) -> BoxFuture<'static, Vec<Result<Value>>> {
        if let Some(conn) = self.current_connection() {
            let batch = Batch::send(&self, &conn, jobs);
            return Box::pin(async move { batch.finish(&self, &conn).await });
        }
        Box::pin(async move {
            match self.connection().await {
                Ok(conn) => Batch::send(&self, &conn, jobs).finish(&self, &conn).await,
                Err(error) => jobs
                    .iter()
                    .map(|job| Err(error.clone().with_operation(job.name())))
                    .collect(),
            }
        })
    }
}

impl ConnectionManager {
    /// Runs one operation, alone or in a batch. If there is a connection, the first poll queues the
    /// operation ahead of all that start later.
    pub(crate) async fn operate(self: &Arc<Self>, job: Job) -> Result<Value> {
        let name = job.name();
        if self.current_connection().is_none() {
            // All waiting operations share one connection attempt, instead of one for each batch.
            Box::pin(self.connection())
                .await
                .map_err(|error| error.with_operation(name))?;
        }
        let ran = self.batcher.run(self, job).await;
        ran.map_err(|error| ERRORS.named(error, name)).flatten()
    }
}

/// A pipeline that is in the connection's queue. The server may serve other clients between its
/// commands, and a job that fails does not affect the rest.
pub(crate) struct Batch {
    jobs: Vec<Job>,
    parts: Vec<Part>,
    sent: Sent,
    /// The answers, if the first poll returned them.
    ready: Option<Result<Vec<Value>, RedisError>>,
}

/// A part of the pipeline.
enum Part {
    /// The commands of the job at this place.
    Alone(usize, Encoding),
    Shared(SharedCall),
}

impl Batch {
    /// Queues the jobs on the connection.
    pub(crate) fn send(
        manager: &ConnectionManager,
        conn: &Arc<Connection>,
        jobs: Vec<Job>,
    ) -> Self {
        let prefix = &manager.config.prefix;
        let mut pipeline = Pipeline::with_capacity(2 * jobs.len());
        let mut parts = Vec::with_capacity(jobs.len());
        for group in groups(&jobs, manager.is_node) {
            parts.push(match group {
                Group::Alone(at, operation) => {
                    let request = jobs[at].request();
                    let encoding = Encoding::of(operation, conn, prefix, request);
                    encoding.write(&mut pipeline, operation, prefix, request);
                    Part::Alone(at, encoding)
                }
                Group::Shared(call) => {
                    pipeline.add_command(call.command(prefix, &jobs));
                    Part::Shared(call)
                }
            });
        }
        let mut sent = conn.send_owned(pipeline);
        // The first poll queues the pipeline. Later ones register the task's waker.
        let ready = match sent.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answers) => Some(answers),
            Poll::Pending => None,
        };
        Self {
            jobs,
            parts,
            sent,
            ready,
        }
    }

    /// Waits for the answers and returns one for each job, in the order of the jobs.
    pub(crate) async fn finish(
        self,
        manager: &ConnectionManager,
        conn: &Connection,
    ) -> Vec<Result<Value>> {
        let Self {
            jobs,
            parts,
            sent,
            ready,
        } = self;
        let answers = match ready {
            Some(answers) => answers,
            None => sent.await,
        };
        let failed = |job: &Job, error, effect| manager.map_error(conn, error, job.name(), effect);
        let mut replies = match answers {
            Ok(answers) => answers.into_iter(),
            Err(error) => {
                return jobs
                    .iter()
                    .map(|job| Err(failed(job, error.clone(), SideEffect::Writes)))
                    .collect();
            }
        };
        // All answers are read before anything is sent again.
        let (mut answers, mut called) = (Vec::with_capacity(jobs.len()), Vec::new());
        for part in parts {
            match part {
                Part::Alone(at, encoding) => {
                    answers.push((at, encoding.read(conn, &mut replies)));
                }
                Part::Shared(call) => called.push((call, replies.next().unwrap_or(Value::Nil))),
            }
        }
        for (call, reply) in called {
            let prefix = &manager.config.prefix;
            let results = Box::pin(call.finish(conn, prefix, &jobs, reply)).await;
            answers.extend(call.places().iter().copied().zip(results));
        }
        answers.sort_unstable_by_key(|(at, _)| *at);
        let forgotten = answers
            .iter()
            .filter(|(_, answer)| answer.as_ref().is_err_and(is_no_script))
            .count();
        if forgotten > 1 {
            tracing::debug!(
                forgotten,
                "the server has forgotten scripts, which are sent again"
            );
        }
        let mut all = Vec::with_capacity(answers.len());
        for ((_, answer), job) in answers.into_iter().zip(&jobs) {
            all.push(match (answer, job) {
                (Ok(answer), _) => Ok(answer),
                // The job did not run, because the server does not know its script.
                (Err(error), Job::Single(operation, request)) if is_no_script(&error) => {
                    let arguments =
                        |cmd: &mut Cmd| operation.arguments(cmd, &manager.config.prefix, request);
                    let (script, name) = (operation.script(), operation.name());
                    Box::pin(manager.run_on(conn, script, name, SideEffect::Writes, arguments))
                        .await
                }
                // The server's error, or the answer to a call that was sent again is lost.
                (Err(error), _) => Err(failed(job, error, SideEffect::Writes)),
            });
        }
        all
    }
}
