//! What many tasks ask for, in one transaction of transactions.

use std::{sync::Arc, time::Duration};

use etcd_client::{Txn, TxnOp, TxnOpResponse, TxnResponse};
use leasehold_core::{BoxFuture, Result, session};

use crate::{
    connection::Cluster,
    error::{self, Effect},
};

/// A transaction on one lock that may be sent twice.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) operation: &'static str,
    /// The lock. The server evaluates the comparisons of all nested transactions before it applies any, and what is
    /// created in one transaction has one revision: two jobs on one lock must not share one.
    pub(crate) lane: u64,
    pub(crate) txn: Txn,
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
    type Answer = Result<(TxnResponse, bool)>;

    fn lane(&self, job: &Job) -> u64 {
        job.lane
    }

    fn carry(self: Arc<Self>, mut jobs: Vec<Job>) -> BoxFuture<'static, Vec<Self::Answer>> {
        Box::pin(async move {
            if jobs.len() == 1
                && let Some(job) = jobs.pop()
            {
                return vec![self.cluster.txn_told(job.operation, Effect::Writes, self.patience, &job.txn).await];
            }
            let operations: Vec<_> = jobs.iter().map(|job| job.operation).collect();
            let nested: Vec<_> = jobs.into_iter().map(|job| TxnOp::txn(job.txn)).collect();
            let txn = Txn::new().and_then(nested);
            match self.cluster.txn_told("gathered", Effect::Writes, self.patience, &txn).await {
                Ok((answer, twice)) => {
                    let mut answers = answer.op_responses().into_iter();
                    let mut next = |operation| match answers.next() {
                        Some(TxnOpResponse::Txn(answer)) => Ok((answer, twice)),
                        _ => Err(error::protocol(operation)),
                    };
                    operations.into_iter().map(&mut next).collect()
                }
                Err(error) => operations.into_iter().map(|name| Err(error.clone().with_operation(name))).collect(),
            }
        })
    }
}
