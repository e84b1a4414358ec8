//! What many tasks ask for, in one transaction of transactions.

use std::{sync::Arc, time::Duration};

use etcd_client::{Txn, TxnOp, TxnOpResponse};
use leasehold_core::{BoxFuture, Result, session};

use crate::{
    connection::Cluster,
    error::{self, Effect},
    queue::{Answer, Place, Step},
};

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
            if let [job] = &*jobs {
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
        })
    }
}

impl Carrier {
    async fn carry_alone(&self, job: &Job) -> Result<(Answer, bool)> {
        if Place::is_delete(job.step) {
            let deleted = self.cluster.delete_told(job.operation, self.patience, &job.place.key).await;
            return deleted.map(|(count, twice)| (Answer::Deleted(count), twice));
        }
        let answered = self.cluster.txn_told(job.operation, Effect::Writes, self.patience, || job.txn()).await;
        answered.map(|(answer, twice)| (Answer::Txn(answer), twice))
    }
}
