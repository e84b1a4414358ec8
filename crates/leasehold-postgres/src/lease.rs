//! [`PostgresLease`]: one granted lock or permit.

use std::{fmt, sync::Arc};

use leasehold_core::{
    Deadline, ErrorKind, FencingToken, Mode, Released, Result,
    backend::{KeepAlive, Lease, RecordWrite, Request, async_trait, support::ReleaseTracker},
    session::Claim,
};

use crate::{
    error::ERRORS,
    job::{Job, JobResult},
    keys::AdvisoryKey,
    record::WriteJob,
    record_table::{self, WRITE},
    session::{PostgresSessions, run, write_record},
};

pub(crate) struct PostgresLease {
    claim: Claim<PostgresSessions>,
    request: Request,
    /// The key of the lock, or of the permit.
    key: AdvisoryKey,
    semaphore: Option<AdvisoryKey>,
    token: Option<FencingToken>,
    release: ReleaseTracker,
}

impl PostgresLease {
    pub(crate) fn new(
        claim: Claim<PostgresSessions>,
        request: Request,
        (key, semaphore): (AdvisoryKey, Option<AdvisoryKey>),
        token: Option<FencingToken>,
    ) -> Self {
        Self {
            claim,
            request,
            key,
            semaphore,
            token,
            release: ReleaseTracker::new(),
        }
    }
}

#[async_trait]
impl Lease for PostgresLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        self.token
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
        if let Some(released) = self.release.start() {
            return Ok(released);
        }
        let job = Job::Release {
            acquisition: *self.claim.name(),
            key: self.key,
            semaphore: self.semaphore,
        };
        let freed = match run(&self.claim, "release", job).await {
            Ok(JobResult::Released(was_held)) => Ok(was_held),
            Ok(_) => Err(ERRORS.unexpected("release")),
            Err(error) => Err(error),
        };
        let released = self.release.complete(freed, || self.claim.is_valid())?;
        self.claim.release();
        Ok(released)
    }

    async fn write_record(self: Arc<Self>, write: RecordWrite) -> Result<u64> {
        if self.request.mode() != Mode::Exclusive {
            let message = format!(
                "`{}` is held as {}, and only an exclusive holder writes the record; lock it exclusively",
                self.request.key(),
                self.request.mode()
            );
            return Err(ERRORS.error(ErrorKind::Unsupported, WRITE, message));
        }
        if self.release.has_started() {
            return Err(ERRORS.error(ErrorKind::Lost, WRITE, "the lock was released"));
        }
        let connector = self.claim.session().handle().connector();
        record_table::ensure(connector).await?;
        let job = WriteJob {
            acquisition: *self.claim.name(),
            lock: self.key,
            name: connector.names.name(self.request.key()),
            shown: self.request.key().clone(),
            owner: self.request.owner(),
            token: self.token,
            label: self.request.label().to_owned(),
            write,
        };
        write_record(&self.claim, job).await
    }
}

impl fmt::Debug for PostgresLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresLease")
            .field("request", &self.request)
            .field("key", &self.key)
            .field("token", &self.token)
            .field("release", &self.release)
            .finish_non_exhaustive()
    }
}
