//! Batches: under load, exclusive operations of many tasks share one pipeline.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use leasehold_core::{
    Result,
    backend::{BoxFuture, Request, support::BatchExecutor},
};
use redis::{Cmd, Pipeline, RedisError, Value};

use crate::{
    commands::{Encoding, Operation},
    connection::{Connection, Sent, is_no_script},
    connection_manager::ConnectionManager,
    error::{ERRORS, SideEffect},
};

/// An operation on an exclusive lock.
pub(crate) struct Job {
    pub(crate) operation: Operation,
    pub(crate) request: Request,
}

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
                    .map(|job| Err(error.clone().with_operation(job.operation.name())))
                    .collect(),
            }
        })
    }
}

impl ConnectionManager {
    /// Runs one operation, alone or in a batch. If there is a connection, the first poll queues the
    /// operation ahead of all that start later.
    pub(crate) async fn operate(
        self: &Arc<Self>,
        operation: Operation,
        request: &Request,
    ) -> Result<Value> {
        let name = operation.name();
        if self.current_connection().is_none() {
            // All waiting operations share one connection attempt, instead of one for each batch.
            Box::pin(self.connection())
                .await
                .map_err(|error| error.with_operation(name))?;
        }
        let ran = self
            .batcher
            .run(
                self,
                Job {
                    operation,
                    request: request.clone(),
                },
            )
            .await;
        ran.map_err(|error| ERRORS.named(error, name)).flatten()
    }
}

/// A pipeline that is in the connection's queue. Each job has its own commands: the server may
/// serve other clients between them, and a job that fails does not affect the rest.
pub(crate) struct Batch {
    jobs: Vec<(Job, Encoding)>,
    sent: Sent,
    /// The answers, if the first poll returned them.
    ready: Option<Result<Vec<Value>, RedisError>>,
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
        let mut encoded = Vec::with_capacity(jobs.len());
        for job in jobs {
            let encoding = Encoding::of(job.operation, conn, prefix, &job.request);
            encoding.write(&mut pipeline, job.operation, prefix, &job.request);
            encoded.push((job, encoding));
        }
        let mut sent = conn.send_owned(pipeline);
        // The first poll queues the pipeline. Later ones register the task's waker.
        let ready = match sent.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answers) => Some(answers),
            Poll::Pending => None,
        };
        Self {
            jobs: encoded,
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
        let Self { jobs, sent, ready } = self;
        let answers = match ready {
            Some(answers) => answers,
            None => sent.await,
        };
        let failed =
            |job: &Job, error, effect| manager.map_error(conn, error, job.operation.name(), effect);
        let mut replies = match answers {
            Ok(answers) => answers.into_iter(),
            Err(error) => {
                return jobs
                    .iter()
                    .map(|(job, _)| Err(failed(job, error.clone(), SideEffect::Writes)))
                    .collect();
            }
        };
        // All answers are read before anything is sent again.
        let answers: Vec<_> = jobs
            .into_iter()
            .map(|(job, encoding)| (encoding.read(conn, &mut replies), job))
            .collect();
        let forgotten = answers
            .iter()
            .filter(|(answer, _)| answer.as_ref().is_err_and(is_no_script))
            .count();
        if forgotten > 1 {
            tracing::debug!(
                forgotten,
                "the server has forgotten scripts, which are sent again"
            );
        }
        let mut all = Vec::with_capacity(answers.len());
        for (answer, job) in answers {
            all.push(match answer {
                Ok(answer) => Ok(answer),
                // The job did not run, because the server does not know its script.
                Err(error) if is_no_script(&error) => {
                    let Job { operation, request } = &job;
                    let arguments =
                        |cmd: &mut Cmd| operation.arguments(cmd, &manager.config.prefix, request);
                    let (script, name) = (operation.script(), operation.name());
                    Box::pin(manager.run_on(conn, script, name, SideEffect::Writes, arguments))
                        .await
                }
                // An operation that the server answers with an error had no effect.
                Err(error) => Err(failed(&job, error, SideEffect::None)),
            });
        }
        all
    }
}
