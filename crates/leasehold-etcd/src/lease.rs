//! [`EtcdLease`]: one held lock.

use std::{fmt, sync::Arc};

use leasehold_core::{
    Deadline, FencingToken, Released, Result,
    backend::{KeepAlive, Lease, RecordWrite, Request, async_trait, support::ReleaseTracker},
    session::Claim,
};

use crate::{
    error::ERRORS,
    proposal::ProposalWrites,
    queue::{QueueKey, TxnKind},
    record::Grant,
    session::{EtcdSessions, run},
};

pub(crate) struct EtcdLease {
    claim: Claim<EtcdSessions>,
    request: Request,
    queue_key: Arc<QueueKey>,
    /// The create revision of the key.
    revision: i64,
    /// The writes of the proposal, if this is the lease of a candidate of an election.
    proposal_writes: ProposalWrites,
    release: ReleaseTracker,
}

impl EtcdLease {
    pub(crate) fn new(
        claim: Claim<EtcdSessions>,
        request: Request,
        queue_key: Arc<QueueKey>,
        revision: i64,
    ) -> Self {
        claim.session().handle().add_held(&queue_key.key, revision);
        Self {
            claim,
            request,
            queue_key,
            revision,
            proposal_writes: ProposalWrites::default(),
            release: ReleaseTracker::new(),
        }
    }
}

#[async_trait]
impl Lease for EtcdLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        let token = u64::try_from(self.revision).ok().map(FencingToken::new);
        token.filter(|_| !self.queue_key.mode.is_permit())
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
        let again = self.release.has_started();
        if let Some(outcome) = self.release.start() {
            return Ok(outcome);
        }
        let kind = TxnKind::Release {
            revision: self.revision,
            again,
        };
        let freed = run(&[&self.claim], "release", &self.queue_key, kind)
            .await
            .map(|(answer, resent)| {
                if resent {
                    self.release.sent_again();
                }
                answer.freed()
            });
        let released = self.release.complete(freed, || self.claim.is_valid())?;
        self.claim
            .session()
            .handle()
            .remove_held(&self.queue_key.key);
        self.claim.release();
        Ok(released)
    }

    async fn write_record(self: Arc<Self>, write: RecordWrite) -> Result<u64> {
        let handle = self.claim.session().handle();
        let (cluster, timeout) = (&handle.executor.cluster, handle.executor.timeout);
        let grant = Grant {
            request: &self.request,
            queue_key: &self.queue_key,
            lease: handle.lease,
            revision: self.revision,
        };
        if self.request.proposal().is_some() {
            let writes = &self.proposal_writes;
            return grant.write_proposal(cluster, timeout, writes, &write).await;
        }
        grant.write_record(cluster, timeout, &write).await
    }
}

impl Drop for EtcdLease {
    fn drop(&mut self) {
        if self.release.outcome().is_none() {
            // The lease was not released. Its key exists until the session ends or the next renewal
            // removes it, and must not be reused.
            self.claim
                .session()
                .handle()
                .remove_held(&self.queue_key.key);
            self.claim.tombstone();
        }
    }
}

impl fmt::Debug for EtcdLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdLease")
            .field("request", &self.request)
            .field("key", &self.queue_key.key)
            .field("revision", &self.revision)
            .field("release", &self.release)
            .finish_non_exhaustive()
    }
}
