//! [`ZookeeperLease`]: one grant.

use std::{fmt, sync::Arc};

use leasehold_core::{
    Deadline, ErrorKind, FencingToken, Released, Result,
    backend::{KeepAlive, Lease, RecordWrite, Request, async_trait, support::ReleaseTracker},
    session::Claim,
};

use crate::{
    batch::{Done, Job, Work},
    error::ERRORS,
    proclaim::Proclaimed,
    record::Grant,
    session::{ZookeeperSessions, run},
    watch_queue::WatchedLease,
};

pub(crate) struct ZookeeperLease {
    claim: Claim<ZookeeperSessions>,
    request: Request,
    held: Arc<WatchedLease>,
    lane: u64,
    /// The transaction that created its node.
    czxid: i64,
    /// The values that it has proclaimed, if it is a candidate of an election.
    proclaimed: Option<Proclaimed>,
    release: ReleaseTracker,
}

impl ZookeeperLease {
    pub(crate) fn new(
        claim: Claim<ZookeeperSessions>,
        request: Request,
        held: Arc<WatchedLease>,
        lane: u64,
        czxid: i64,
    ) -> Self {
        let proclaimed = request.proposal().map(|_| Proclaimed::default());
        Self {
            claim,
            request,
            held,
            lane,
            czxid,
            proclaimed,
            release: ReleaseTracker::new(),
        }
    }
}

#[async_trait]
impl Lease for ZookeeperLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        let token = u64::try_from(self.czxid).ok().map(FencingToken::new);
        token.filter(|_| !self.request.mode().is_permit())
    }

    fn valid_until(&self) -> Deadline {
        self.claim.valid_until()
    }

    fn keep_alive(&self) -> KeepAlive {
        self.claim.keep_alive()
    }

    async fn renew(self: Arc<Self>) -> Result<()> {
        self.claim.renew(&self.release, &ERRORS).await
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        if let Some(outcome) = self.release.start() {
            return Ok(outcome);
        }
        self.held.release();
        let work = Work::Delete {
            path: Arc::clone(&self.held.path),
        };
        let answer = run(
            &self.claim,
            Job {
                operation: "release",
                lane: self.lane,
                work,
            },
        )
        .await;
        let freed = answer.map(|done| matches!(done, Done::Deleted(true)));
        let released = self.release.complete(freed, || self.claim.is_valid())?;
        self.claim.session().handle().forget(self.held.uuid);
        self.claim.release();
        Ok(released)
    }

    async fn write_record(self: Arc<Self>, write: RecordWrite) -> Result<u64> {
        // The servers keep the session while anyone uses its connection. A caller whose future is
        // not polled for a while must not keep it beyond the deadline, so the write is a task.
        let writing = tokio::spawn(async move {
            let grant = Grant {
                claim: &self.claim,
                request: &self.request,
                path: &self.held.path,
                token: self.fencing_token(),
                proclaimed: self.proclaimed.as_ref(),
            };
            grant.write_record(&write).await
        });
        match writing.await {
            Ok(written) => written,
            // The driver may panic at an answer that is malformed, or the runtime shuts down.
            Err(_ended) => Err(ERRORS.error(
                ErrorKind::Indeterminate,
                "write_record",
                "the task of the write has ended without an answer",
            )),
        }
    }
}

impl Drop for ZookeeperLease {
    fn drop(&mut self) {
        // Nobody may have released it: then the next renewal removes its node.
        self.held.release();
        self.claim.session().handle().forget(self.held.uuid);
    }
}

impl fmt::Debug for ZookeeperLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZookeeperLease")
            .field("request", &self.request)
            .field("path", &self.held.path)
            .field("czxid", &self.czxid)
            .field("release", &self.release)
            .finish_non_exhaustive()
    }
}
