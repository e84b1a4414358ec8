//! What many tasks ask for, in one transaction of transactions.

use std::{sync::Arc, time::Duration};

use etcd_client::{Txn, TxnOp, TxnOpResponse};
use leasehold_core::{BoxFuture, Result, session};

use crate::{
    connection::Cluster,
    error::{self, Effect},
    queue::{Answer, Place, Step},
};

/// How many bytes of keys one request carries at most. The server takes 1.5 MiB (`--max-request-bytes`).
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
pub(crate) struct Carrier {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) patience: Duration,
}

impl session::Carrier for Carrier {
    type Job = Job;
    /// And whether an earlier sending of it may still arrive.
    type Answer = Result<(Answer, bool)>;

    /// The lock. The server evaluates the comparisons of all nested transactions before it applies any, and what is
    /// created in one transaction has one revision: two jobs on one lock must not share one.
    fn lane(&self, job: &Job) -> u64 {
        job.place.directory.lane()
    }

    fn carry(self: Arc<Self>, jobs: Vec<Job>) -> BoxFuture<'static, Vec<Self::Answer>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(jobs.len());
            for jobs in in_requests(&jobs) {
                answers.extend(self.carry_together(jobs).await);
            }
            answers
        })
    }
}

impl Carrier {
    async fn carry_together(&self, jobs: &[Job]) -> Vec<Result<(Answer, bool)>> {
        if let [job] = jobs {
            return vec![self.carry_alone(job).await];
        }
        let txn = || Txn::new().and_then(jobs.iter().map(|job| TxnOp::txn(job.txn())).collect::<Vec<_>>());
        let operations = jobs.iter().map(|job| job.operation);
        match self.cluster.txn_told("gathered", Effect::Writes, self.patience, txn).await {
            Ok((answer, twice)) => {
                let mut answers = answer.op_responses().into_iter();
                let mut next = |operation| match answers.next() {
                    Some(TxnOpResponse::Txn(answer)) => Ok((Answer::Txn(answer), twice)),
                    _ => Err(error::protocol(operation)),
                };
                operations.map(&mut next).collect()
            }
            Err(error) => operations.map(|name| Err(error.clone().with_operation(name))).collect(),
        }
    }

    async fn carry_alone(&self, job: &Job) -> Result<(Answer, bool)> {
        if Place::is_delete(job.step) {
            let deleted = self.cluster.delete_told(job.operation, self.patience, &job.place.key).await;
            return deleted.map(|(count, twice)| (Answer::Deleted(count), twice));
        }
        let answered = self.cluster.txn_told(job.operation, Effect::Writes, self.patience, || job.txn()).await;
        answered.map(|(answer, twice)| (Answer::Txn(answer), twice))
    }
}

/// Divides the jobs into those that fit into one request each.
fn in_requests(jobs: &[Job]) -> Vec<&[Job]> {
    let (mut requests, mut rest) = (Vec::new(), jobs);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|job| {
            bytes += NAMED * job.place.key.as_bytes().len() + job.place.value.len();
            bytes <= KEY_BYTES
        });
        let (request, others) = rest.split_at(fits.count().max(1));
        requests.push(request);
        rest = others;
    }
    requests
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use leasehold_core::{LockKey, Mode};

    use super::*;
    use crate::keys::{EtcdKey, Names};

    #[test]
    fn what_is_gathered_fits_into_requests() {
        let names = Names { prefix: Arc::from(b"".as_slice()), exact: false };
        let job = |bytes: usize| {
            let directory = names.directory(&LockKey::new("k").unwrap(), false).unwrap();
            let (key, mode, value) = (EtcdKey::from(vec![b'k'; bytes]), Mode::Exclusive, Vec::new());
            let place = Place { directory, key, mode, value, names: names.clone() };
            Job { operation: "acquire", place: Arc::new(place), step: Step::Leave }
        };
        let sizes = |jobs: &[Job]| in_requests(jobs).iter().map(|jobs| jobs.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&(0..64).map(|_| job(50)).collect::<Vec<_>>()), [64]);
        // The longest names, of bytes that are three on the server.
        assert_eq!(sizes(&(0..64).map(|_| job(3_100)).collect::<Vec<_>>()), [33, 31]);
        assert_eq!(sizes(&[job(KEY_BYTES), job(1), job(1)]), [1, 2]);
        assert_eq!(sizes(&[]), [0; 0]);
    }
}
