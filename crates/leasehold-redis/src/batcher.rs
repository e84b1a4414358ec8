//! Gathering: under load, many exclusive operations share one pipeline.

use std::sync::Arc;

use leasehold_core::{
    Result,
    backend::{BoxFuture, Request},
    session::{BatchExecutor, BatchLimits},
};
use redis::Value;

use crate::{batch::Batch, commands::Operation, connection::Link};

/// These limits are those of the batcher that this crate had before, and were
/// measured with it only: up to 4 operations alone gave 0.96, 1.5 and 1.24 of the bare
/// driver's rate at 16, 64 and 256 tasks, up to 16 alone gave 0.90 at 16 tasks. With one pipeline
/// at a time the server would be idle while the client reads.
pub(crate) const LIMITS: BatchLimits = BatchLimits {
    alone: 4,
    calls: 2,
    batch: 128,
};

/// An operation on an exclusive lock.
pub(crate) struct Job {
    pub(crate) operation: Operation,
    pub(crate) request: Request,
}

impl BatchExecutor for Link {
    type Job = Job;
    /// For an acquisition see [`Way::read`](crate::commands::Way::read).
    type Answer = Result<Value>;

    /// Queues the jobs on the connection before it returns, if there is a connection. So they keep
    /// their order there.
    fn execute(self: Arc<Self>, jobs: Vec<Job>) -> BoxFuture<'static, Vec<Result<Value>>> {
        if let Some(live) = self.live_now() {
            let batch = Batch::send(&self, &live, jobs);
            return Box::pin(async move { batch.finish(&self, &live).await });
        }
        Box::pin(async move {
            match self.live().await {
                Ok(live) => Batch::send(&self, &live, jobs).finish(&self, &live).await,
                Err(error) => jobs
                    .iter()
                    .map(|job| Err(error.clone().with_operation(job.operation.name())))
                    .collect(),
            }
        })
    }
}

impl Link {
    /// Runs one operation, alone or with others. The first poll queues it, if there is a
    /// connection, and whatever starts later comes after it.
    pub(crate) async fn operate(
        self: &Arc<Self>,
        operation: Operation,
        request: &Request,
    ) -> Result<Value> {
        let name = operation.name();
        if self.live_now().is_none() {
            // All that want a connection share one attempt, rather than one for each batch.
            Box::pin(self.live())
                .await
                .map_err(|error| error.with_operation(name))?;
        }
        let ran = self
            .gather
            .run(
                self,
                Job {
                    operation,
                    request: request.clone(),
                },
            )
            .await;
        ran.map_err(|error| {
            error
                .with_backend(crate::error::BACKEND)
                .with_operation(name)
        })
        .flatten()
    }
}
