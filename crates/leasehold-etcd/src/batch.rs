//! What many tasks ask for, in one transaction of transactions.

use std::{sync::Arc, time::Duration};

use etcd_client::{Txn, TxnOp, TxnOpResponse};
use leasehold_core::{Error, ErrorKind, Result, backend::BoxFuture, session};

use crate::{
    connection::Cluster,
    error::{self, Effect},
    queue::{Answer, Place, Step},
};

/// How many bytes of keys one request carries at most. The server takes 1.5 MiB
/// (`--max-request-bytes`).
const KEY_BYTES: usize = 1 << 20;
/// How often a transaction names its key, or its directory, at most.
const NAMED: usize = 10;

/// A transaction on one lock that may be sent twice.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) operation: &'static str,
    pub(crate) place: Arc<Place>,
    pub(crate) step: Step,
}

impl Job {
    fn txn(&self) -> Txn {
        self.place.txn(self.step)
    }
}

/// Carries the jobs of one session.
#[derive(Debug)]
pub(crate) struct BatchExecutor {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) patience: Duration,
}

impl session::BatchExecutor for BatchExecutor {
    type Job = Job;
    /// And whether an earlier sending of it may still arrive.
    type Answer = Result<(Answer, bool)>;

    /// The lock. The server evaluates the comparisons of all nested transactions before it applies
    /// any, and what is created in one transaction has one revision: two jobs on one lock must not
    /// share one.
    fn lane(&self, job: &Job) -> Option<u64> {
        Some(job.place.directory.lane())
    }

    fn execute(self: Arc<Self>, jobs: Vec<Job>) -> BoxFuture<'static, Vec<Self::Answer>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(jobs.len());
            while answers.len() < jobs.len() {
                let rest = &jobs[answers.len()..];
                let some = &rest[..fitting(rest, self.cluster.together())];
                answers.extend(self.carry_together(some).await.unwrap_or_default());
            }
            answers
        })
    }
}

impl BatchExecutor {
    /// Returns `None` if the server refuses so many jobs in one request.
    async fn carry_together(&self, jobs: &[Job]) -> Option<Vec<Result<(Answer, bool)>>> {
        if let [job] = jobs {
            return Some(vec![self.execute_alone(job).await]);
        }
        let txns = || jobs.iter().map(|job| TxnOp::txn(job.txn())).collect();
        let operations = jobs.iter().map(|job| job.operation);
        let told = |error: Error| {
            operations
                .clone()
                .map(|name| Err(error.clone().with_operation(name)))
                .collect()
        };
        Some(
            match self
                .cluster
                .txns_told("gathered", self.patience, txns)
                .await
            {
                Ok((Some(answer), twice)) => {
                    let mut answers = answer.op_responses().into_iter();
                    let mut next = |operation| match answers.next() {
                        Some(TxnOpResponse::Txn(answer)) => Ok((Answer::Txn(answer), twice)),
                        _ => Err(error::protocol(operation)),
                    };
                    operations.map(&mut next).collect()
                }
                Ok((None, false)) => return None,
                // Another member, with a higher limit, may have done them.
                Ok((None, true)) => told(error::plain(
                    ErrorKind::Indeterminate,
                    "gathered",
                    "a member's answer was lost",
                )),
                Err(error) => told(error),
            },
        )
    }

    async fn execute_alone(&self, job: &Job) -> Result<(Answer, bool)> {
        if Place::is_delete(job.step) {
            let deleted = self
                .cluster
                .delete_told(job.operation, self.patience, &job.place.key)
                .await;
            return deleted.map(|(count, twice)| (Answer::Deleted(count), twice));
        }
        let answered = self
            .cluster
            .txn_told(job.operation, Effect::Writes, self.patience, || job.txn())
            .await;
        answered.map(|(answer, twice)| (Answer::Txn(answer), twice))
    }
}

/// Returns how many of the jobs fit into one request: at least one, and not more than `most`.
fn fitting(jobs: &[Job], most: usize) -> usize {
    let mut bytes = 0;
    let fits = jobs.iter().take(most).take_while(|job| {
        bytes += NAMED * job.place.key.as_bytes().len() + job.place.value.len();
        bytes <= KEY_BYTES
    });
    fits.count().max(1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use leasehold_core::{LockKey, Mode};

    use super::*;
    use crate::keys::{EtcdKey, Names};

    #[test]
    fn what_is_gathered_fits_into_requests() {
        let names = Names {
            prefix: Arc::from(b"".as_slice()),
            exact: false,
        };
        let job = |bytes: usize| {
            let directory = names.directory(&LockKey::new("k").unwrap(), false).unwrap();
            let (key, mode, value) = (
                EtcdKey::from(vec![b'k'; bytes]),
                Mode::Exclusive,
                Vec::new(),
            );
            let place = Place {
                directory,
                key,
                mode,
                value,
                names: names.clone(),
            };
            Job {
                operation: "acquire",
                place: Arc::new(place),
                step: Step::Leave,
            }
        };
        let many = |bytes: usize| (0..64).map(|_| job(bytes)).collect::<Vec<_>>();
        assert_eq!((fitting(&many(50), 64), fitting(&many(50), 16)), (64, 16));
        // The longest names, of bytes that are three on the server.
        assert_eq!(fitting(&many(3_100), 64), 33);
        assert_eq!(fitting(&[job(KEY_BYTES), job(1), job(1)], 64), 1);
    }
}
