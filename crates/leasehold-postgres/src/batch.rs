//! [`BatchExecutor`]: carries out the jobs of many tasks in one statement.

use std::{
    fmt,
    sync::{
        Arc, Mutex as SyncMutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold_core::{
    ErrorKind,
    backend::{
        BoxFuture,
        support::{self, BatchLimits, Batcher},
    },
};
use tokio::sync::Mutex;

use crate::{
    connection::Connector,
    job::{AcquireJob, AcquisitionKey, Answer, Job, JobResult, LockRequest, WaiterMarkers},
    session_connection::{EndSession, SessionConnection},
};

/// A connection executes one statement at a time. Therefore no job is sent beside another one, and
/// all jobs that arrive meanwhile share the next statement.
const LIMITS: BatchLimits = BatchLimits {
    alone: 0,
    calls: 1,
    undivided: 1,
    batch: 256,
};
/// The maximum number of attempts at permits in one batch.
const MAX_PERMIT_ATTEMPTS: u64 = 16;

/// Carries out the jobs of one session on its connection.
pub(crate) struct BatchExecutor {
    pub(crate) connector: Arc<Connector>,
    pub(crate) batcher: Arc<Batcher<Self>>,
    pub(crate) conn: Mutex<SessionConnection>,
    /// The time after which a job fails.
    pub(crate) response_timeout: Duration,
    /// The time after which the session has ended, so that no answer matters any more.
    pub(crate) limit: Duration,
    pub(crate) end_session: EndSession,
    /// Markers that are no longer needed. The next statement clears them.
    unused_markers: SyncMutex<Vec<(AcquisitionKey, WaiterMarkers)>>,
}

impl BatchExecutor {
    pub(crate) fn new(
        connector: &Arc<Connector>,
        conn: SessionConnection,
        response_timeout: Duration,
        limit: Duration,
    ) -> Arc<Self> {
        let end_session = conn.end_session();
        Arc::new(Self {
            connector: Arc::clone(connector),
            batcher: Arc::new(Batcher::new(LIMITS)),
            conn: Mutex::new(conn),
            response_timeout,
            limit,
            end_session,
            unused_markers: SyncMutex::default(),
        })
    }

    /// Records that this waiter no longer needs its markers.
    pub(crate) fn release_markers(&self, acquisition: AcquisitionKey, markers: WaiterMarkers) {
        self.unused_markers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((acquisition, markers));
    }

    fn take_unused_markers(&self) -> Vec<(AcquisitionKey, WaiterMarkers)> {
        std::mem::take(
            &mut *self
                .unused_markers
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    async fn send(self: Arc<Self>, jobs: Arc<Vec<Job>>, sent: Arc<AtomicBool>) -> Vec<Answer> {
        let mut conn = self.conn.lock().await;
        sent.store(true, Ordering::Release);
        let unused = self.take_unused_markers();
        conn.execute(&self.connector, unused, &jobs).await
    }
}

/// Returns the lane of a job. All jobs may share a statement, because its rows are executed in
/// order. Only attempts at permits have lanes: each is a statement of its own, and all jobs of a
/// batch share one time-out.
fn lane(job: &Job) -> Option<u64> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let is_permit = matches!(
        job,
        Job::Acquire(AcquireJob {
            lock_request: LockRequest::Permit(_),
            ..
        })
    );
    is_permit.then(|| NEXT.fetch_add(1, Ordering::Relaxed) % MAX_PERMIT_ATTEMPTS)
}

impl support::BatchExecutor for BatchExecutor {
    type Job = Job;
    type Answer = Answer;

    fn lane(&self, job: &Job) -> Option<u64> {
        lane(job)
    }

    fn execute(self: Arc<Self>, jobs: Vec<Job>) -> BoxFuture<'static, Vec<Answer>> {
        Box::pin(async move {
            let (jobs, sent) = (Arc::new(jobs), Arc::new(AtomicBool::new(false)));
            let mut execution =
                Box::pin(Arc::clone(&self).send(Arc::clone(&jobs), Arc::clone(&sent)));
            if let Ok(answers) = tokio::time::timeout(self.response_timeout, &mut execution).await {
                return answers;
            }
            let (connector, limit) = (Arc::clone(&self.connector), self.response_timeout);
            let kind = if sent.load(Ordering::Acquire) {
                // The connection can send nothing else before the answer has come. A task waits for
                // it and releases what it grants, and the callers get their error now.
                drop(tokio::spawn(undo(self, execution, Arc::clone(&jobs))));
                ErrorKind::Indeterminate
            } else {
                ErrorKind::Unavailable
            };
            jobs.iter()
                .map(|job| Err(connector.timed_out(kind, job.operation(), limit)))
                .collect()
        })
    }
}

/// Releases the locks that were granted after their callers had received an error.
async fn undo(
    executor: Arc<BatchExecutor>,
    execution: impl Future<Output = Vec<Answer>>,
    jobs: Arc<Vec<Job>>,
) {
    let answers = match tokio::time::timeout(executor.limit, execution).await {
        Ok(answers) => answers,
        Err(_elapsed) => {
            let mut conn = executor.conn.lock().await;
            conn.give_up(&executor.connector, "acquire", executor.limit);
            return;
        }
    };
    let mut releases = Vec::new();
    for (job, answer) in jobs.iter().zip(answers) {
        let Job::Acquire(acquire) = job else { continue };
        match answer {
            Ok(JobResult::Granted { key, .. }) => {
                let semaphore = acquire.lock_request.semaphore();
                releases.push(Job::Release {
                    acquisition: acquire.acquisition,
                    key,
                    semaphore,
                });
            }
            _ => acquire
                .markers
                .into_iter()
                .for_each(|markers| executor.release_markers(acquire.acquisition, markers)),
        }
    }
    let mut conn = executor.conn.lock().await;
    let unused = executor.take_unused_markers();
    let released = conn.execute(&executor.connector, unused, &releases);
    let released = tokio::time::timeout(executor.limit, released).await;
    if released.is_err() {
        conn.give_up(&executor.connector, "release", executor.limit);
    }
}

impl fmt::Debug for BatchExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchExecutor")
            .field("response_timeout", &self.response_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::keys::{AdvisoryKey, KeyScheme, Names};

    #[test]
    fn all_locks_but_only_some_permits_share_a_batch() {
        let acquire = |lock_request: LockRequest| {
            Job::Acquire(AcquireJob {
                acquisition: AcquisitionKey {
                    key: lock_request.key(),
                    number: 0,
                },
                lock_request,
                markers: None,
                yielding: false,
            })
        };
        let lanes = |lock_request: &LockRequest| {
            (0..100)
                .filter_map(|_| lane(&acquire(lock_request.clone())))
                .collect::<HashSet<_>>()
                .len()
        };
        assert_eq!(lanes(&LockRequest::Exclusive(AdvisoryKey::Int64(1))), 0);
        let names = Names {
            scheme: KeyScheme::default(),
            prefix: Arc::default(),
        };
        let permit_keys = names.semaphore(&"gpu".try_into().unwrap(), 4).unwrap();
        assert_eq!(
            lanes(&LockRequest::Permit(permit_keys)),
            MAX_PERMIT_ATTEMPTS as usize
        );
    }
}
