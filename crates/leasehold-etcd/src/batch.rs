//! Batches: the transactions of many tasks, nested in one transaction.

use std::{sync::Arc, time::Duration};

use etcd_client::{Txn, TxnOp, TxnOpResponse};
use leasehold_core::{
    Error, ErrorKind, Result,
    backend::{BoxFuture, support},
};

use crate::{
    connection::Cluster,
    error::{ERRORS, SideEffect},
    queue::{QueueKey, TxnKind, TxnResult},
};

/// The largest total size of keys in one request. The server accepts 1.5 MiB
/// (`--max-request-bytes`).
const KEY_BYTES: usize = 1 << 20;
/// The largest number of times that a transaction contains its key or its prefix.
const NAMED: usize = 10;

/// A transaction on one lock, which may be sent twice.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) operation: &'static str,
    pub(crate) queue_key: Arc<QueueKey>,
    pub(crate) kind: TxnKind,
}

impl Job {
    fn txn(&self) -> Txn {
        self.queue_key.txn(self.kind)
    }
}

/// Executes the jobs of one session.
#[derive(Debug)]
pub(crate) struct BatchExecutor {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) timeout: Duration,
}

impl support::BatchExecutor for BatchExecutor {
    type Job = Job;
    /// The result, and whether an earlier copy of the transaction may still arrive.
    type Answer = Result<(TxnResult, bool)>;

    /// Returns the lane of the lock. Two jobs on one lock must not share a transaction: the server
    /// evaluates the comparisons of all nested transactions before it applies any, and all keys
    /// that one transaction creates have the same revision.
    fn lane(&self, job: &Job) -> Option<u64> {
        Some(job.queue_key.lock_prefix.lane())
    }

    fn execute(self: Arc<Self>, jobs: Vec<Job>) -> BoxFuture<'static, Vec<Self::Answer>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(jobs.len());
            while answers.len() < jobs.len() {
                let rest = &jobs[answers.len()..];
                let some = &rest[..fitting(rest, self.cluster.max_batch())];
                answers.extend(self.execute_together(some).await.unwrap_or_default());
            }
            answers
        })
    }
}

impl BatchExecutor {
    /// Returns `None` if the server refuses that many jobs in one request.
    async fn execute_together(&self, jobs: &[Job]) -> Option<Vec<Result<(TxnResult, bool)>>> {
        if let [job] = jobs {
            return Some(vec![self.execute_alone(job).await]);
        }
        let txns = || jobs.iter().map(|job| TxnOp::txn(job.txn())).collect();
        let operations = jobs.iter().map(|job| job.operation);
        let fail_all = |error: Error| {
            operations
                .clone()
                .map(|name| Err(error.clone().with_operation(name)))
                .collect()
        };
        Some(
            match self
                .cluster
                .txns_tracking_resends("batch", self.timeout, txns)
                .await
            {
                Ok((Some(answer), resent)) => {
                    let mut answers = answer.op_responses().into_iter();
                    let mut next = |operation| match answers.next() {
                        Some(TxnOpResponse::Txn(answer)) => Ok((TxnResult::Txn(answer), resent)),
                        _ => Err(ERRORS.unexpected(operation)),
                    };
                    operations.map(&mut next).collect()
                }
                Ok((None, false)) => return None,
                // Another member, with a higher limit, may have executed them.
                Ok((None, true)) => fail_all(ERRORS.error(
                    ErrorKind::Indeterminate,
                    "batch",
                    "the reply of a member was lost",
                )),
                Err(error) => fail_all(error),
            },
        )
    }

    async fn execute_alone(&self, job: &Job) -> Result<(TxnResult, bool)> {
        if QueueKey::is_delete(job.kind) {
            let deleted = self
                .cluster
                .delete_tracking_resends(job.operation, self.timeout, &job.queue_key.key)
                .await;
            return deleted.map(|(count, resent)| (TxnResult::Deleted(count), resent));
        }
        let answered = self
            .cluster
            .txn_tracking_resends(job.operation, SideEffect::Writes, self.timeout, || {
                job.txn()
            })
            .await;
        answered.map(|(answer, resent)| (TxnResult::Txn(answer), resent))
    }
}

/// Returns how many of the jobs fit into one request: at least one, and at most `max`.
fn fitting(jobs: &[Job], max: usize) -> usize {
    let mut bytes = 0;
    let fits = jobs.iter().take(max).take_while(|job| {
        bytes += NAMED * job.queue_key.key.as_bytes().len() + job.queue_key.value.len();
        bytes <= KEY_BYTES
    });
    fits.count().max(1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use leasehold_core::{LockKey, Mode};

    use super::*;
    use crate::keys::{EtcdKey, KeyLayout};

    #[test]
    fn batches_fit_into_requests() {
        let layout = KeyLayout {
            prefix: Arc::from(b"".as_slice()),
            exact: false,
        };
        let job = |bytes: usize| {
            let lock_prefix = layout
                .lock_prefix(&LockKey::new("k").unwrap(), false)
                .unwrap();
            let (key, mode, value) = (
                EtcdKey::from(vec![b'k'; bytes]),
                Mode::Exclusive,
                Vec::new(),
            );
            let queue_key = QueueKey {
                lock_prefix,
                key,
                mode,
                value,
                layout: layout.clone(),
            };
            Job {
                operation: "acquire",
                queue_key: Arc::new(queue_key),
                kind: TxnKind::Leave,
            }
        };
        let many = |bytes: usize| (0..64).map(|_| job(bytes)).collect::<Vec<_>>();
        assert_eq!((fitting(&many(50), 64), fitting(&many(50), 16)), (64, 16));
        // The longest names. Each byte has three bytes on the server.
        assert_eq!(fitting(&many(3_100), 64), 33);
        assert_eq!(fitting(&[job(KEY_BYTES), job(1), job(1)], 64), 1);
    }
}
