//! [`EtcdLease`]: one grant.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use leasehold_core::{
    Deadline, ErrorKind, FencingToken, Lease, Released, Request, Result, Upkeep, async_trait, session::Claim,
};

use crate::{
    error::{self, named},
    queue::Place,
    session::{EtcdSessions, run},
};

pub(crate) struct EtcdLease {
    claim: Claim<EtcdSessions>,
    request: Request,
    place: Place,
    /// The create revision of its key.
    revision: i64,
    /// Set before a release is sent: it is not ours to renew from then on.
    releasing: AtomicBool,
    /// Whether the answer to a release was lost: the next may find nothing because that one worked.
    in_doubt: AtomicBool,
    released: OnceLock<Released>,
}

impl EtcdLease {
    pub(crate) fn new(claim: Claim<EtcdSessions>, request: Request, place: Place, revision: i64) -> Self {
        claim.session().handle().hold(&place.key, revision);
        Self {
            claim,
            request,
            place,
            revision,
            releasing: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
            released: OnceLock::new(),
        }
    }

    fn finished(&self, released: Released) -> Released {
        let released = *self.released.get_or_init(|| released);
        self.claim.session().handle().forget(&self.place.key);
        self.claim.release();
        released
    }
}

#[async_trait]
impl Lease for EtcdLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        let token = u64::try_from(self.revision).ok().map(FencingToken::new);
        token.filter(|_| !self.place.mode.is_permit())
    }

    fn valid_until(&self) -> Deadline {
        self.claim.valid_until()
    }

    fn upkeep(&self) -> Upkeep {
        Upkeep::Session(self.claim.session().id())
    }

    async fn renew(self: Arc<Self>) -> Result<()> {
        if self.releasing.load(Ordering::Acquire) {
            return Err(error::plain(ErrorKind::Lost, "renew", "it was released"));
        }
        self.claim.session().renew().await.map_err(|error| named(error, "renew"))?;
        if self.claim.is_broken() {
            return Err(error::plain(
                ErrorKind::Unsupported,
                "renew",
                "an operator has broken this lock: it ends at its deadline",
            ));
        }
        Ok(())
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        self.releasing.store(true, Ordering::Release);
        if self.released.get().is_some() {
            // It was told already; now there is nothing of ours.
            return Ok(Released::AlreadyLost);
        }
        let txn = self.place.release(self.revision);
        let answer = run(&self.claim, "release", self.place.directory.lane(), txn).await;
        match answer {
            Ok(answer) if answer.succeeded() => Ok(self.finished(Released::Freed)),
            Ok(_) => {
                // Between a release that was sent in time and now nobody else can have freed it.
                let freed_earlier =
                    self.in_doubt.load(Ordering::Acquire) && !self.claim.valid_until().is_past(self.request.now());
                Ok(self.finished(if freed_earlier { Released::Freed } else { Released::AlreadyLost }))
            }
            Err(error) => {
                if error.kind() == ErrorKind::Lost {
                    return Ok(self.finished(Released::AlreadyLost));
                }
                if error.kind() == ErrorKind::Indeterminate {
                    self.in_doubt.store(true, Ordering::Release);
                }
                Err(error)
            }
        }
    }
}

impl Drop for EtcdLease {
    fn drop(&mut self) {
        if self.released.get().is_none() {
            // Nobody released it: its key is there until the session's end or the next renewal, and not to be used again.
            self.claim.session().handle().forget(&self.place.key);
            self.claim.retire();
        }
    }
}

impl fmt::Debug for EtcdLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdLease")
            .field("request", &self.request)
            .field("key", &self.place.key)
            .field("revision", &self.revision)
            .field("released", &self.released.get())
            .finish_non_exhaustive()
    }
}
