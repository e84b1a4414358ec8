//! [`LockGuard`]: the right to the lock, and the news about it.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    backend::Released,
    clock::Deadline,
    error::Result,
    fencing::FencingToken,
    held_lease::{Facts, HeldLease},
    key::LockKey,
    mode::Mode,
    release::Releasing,
    request::Request,
    signal::LossReason,
    ttl::Ttl,
};

/// The right to a lock until a deadline, which renewals move.
///
/// Dropping it releases the lock in the background. That never blocks or panics, wherever it
/// happens: outside of a runtime, during a panic, while the runtime shuts down; in the worst case
/// the lock expires. After the client's runtime has ended, only memory and files are released; any
/// other lock expires after its TTL. To know that it is free, [`release`](Self::release) it. A
/// panic in the backend, in a metrics recorder or in a tracing subscriber does not prevent the
/// release.
///
/// # Guaranteed
/// While [`is_held`](LeaseInfo::is_held) says `true`, the backend has granted the lock to nobody
/// else, as far as its [capabilities](crate::Capabilities) and the clocks'
/// [drift](crate::ClockDrift) go.
///
/// # Not guaranteed
/// That a write which starts while it is held ends while it is held. Only the resource can refuse
/// what comes late, by the [fencing token](FencingToken). A virtual machine that is paused and
/// restored is seen by no clock.
#[must_use = "dropping the guard releases the lock; bind it to a name, not `_`"]
pub struct LockGuard {
    hold: Arc<HeldLease>,
    /// Until it is released.
    owned: bool,
    view: LeaseInfo,
}

impl LockGuard {
    pub(crate) fn new(hold: Arc<HeldLease>) -> Self {
        Self {
            view: LeaseInfo(Of::Guard(Arc::clone(&hold))),
            hold,
            owned: true,
        }
    }

    pub(crate) fn hold(&self) -> &Arc<HeldLease> {
        &self.hold
    }

    /// Renews for another TTL, counted from now. Automatic renewal needs no help; this is for
    /// [`Renewal::Manual`](crate::Renewal::Manual).
    ///
    /// # Errors
    /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) is final. After any other error the deadline is
    /// where it was.
    ///
    /// # Cancel safety
    /// The renewal may or may not have happened; the guard stays valid either way.
    pub async fn renew(&self) -> Result<()> {
        self.hold.renew().await
    }

    /// Gives the lock back and tells the truth about it: [`Released::AlreadyLost`] means that
    /// another may have held it before you were done.
    ///
    /// # Errors
    /// As the backend fails. The release is then tried again in the background until the lease is
    /// over anyway.
    ///
    /// # Cancel safety
    /// Safe: dropped half-way, the release goes on in the background.
    pub async fn release(mut self) -> Result<Released> {
        self.owned = false;
        let hold = &self.hold;
        if !hold.unshare() {
            return Ok(if hold.loss().is_some() {
                Released::AlreadyLost
            } else {
                Released::StillHeld
            });
        }
        match Releasing::start(hold) {
            Some(releasing) => releasing.await,
            None => Ok(Released::AlreadyLost),
        }
    }

    /// A view of the lease for other tasks: it tells, and does not own.
    #[must_use]
    pub fn view(&self) -> LeaseInfo {
        self.view.clone()
    }
}

/// What is told about the lease.
impl std::ops::Deref for LockGuard {
    type Target = LeaseInfo;

    fn deref(&self) -> &LeaseInfo {
        &self.view
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if self.owned && self.hold.unshare() {
            Releasing::in_background(&self.hold);
        }
    }
}

/// What a lease tells about itself. Cheap to clone, and no guard: it keeps neither the lock nor the
/// connection of the client.
pub struct LeaseInfo(Of);

enum Of {
    /// Within a guard, which keeps what it guards.
    Guard(Arc<HeldLease>),
    View(Weak<HeldLease>, Arc<Facts>),
}

impl Clone for LeaseInfo {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Of::Guard(hold) => Of::View(Arc::downgrade(hold), Arc::clone(hold.facts())),
            Of::View(hold, facts) => Of::View(Weak::clone(hold), Arc::clone(facts)),
        })
    }
}

impl LeaseInfo {
    fn request(&self) -> &Request {
        match &self.0 {
            Of::Guard(hold) => &hold.request,
            Of::View(_, facts) => &facts.request,
        }
    }

    /// Asks what is held; `None` if it was released, or lost and forgotten.
    fn ask<T>(&self, ask: impl FnOnce(&Arc<HeldLease>) -> T) -> Option<T> {
        match &self.0 {
            Of::Guard(hold) => Some(ask(hold)),
            Of::View(hold, _) => hold.upgrade().as_ref().map(ask),
        }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &LockKey {
        self.request().key()
    }

    /// How the key is held.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.request().mode()
    }

    /// How long each renewal lasts.
    #[must_use]
    pub fn ttl(&self) -> Ttl {
        self.request().ttl()
    }

    /// The token to show to the resource. `None` for permits, and where the backend has none.
    #[must_use]
    pub fn fencing_token(&self) -> Option<FencingToken> {
        match &self.0 {
            Of::Guard(hold) => hold.token(),
            Of::View(_, facts) => facts.token,
        }
    }

    /// Until when the lock may be believed in, as it stands now, on the client's clock.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        match &self.0 {
            Of::Guard(hold) => hold.deadline(),
            Of::View(hold, facts) => hold
                .upgrade()
                .map_or_else(|| facts.last_deadline(), |hold| hold.deadline()),
        }
    }

    /// The time until the deadline; zero if the lock is no longer held.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.ask(|hold| hold.remaining()).unwrap_or_default()
    }

    /// Whether the lock is held: neither lost nor released, and the deadline not reached on a clock
    /// that is read now.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.ask(|hold| hold.is_held()).unwrap_or_default()
    }

    /// Why the lock was lost, if it was.
    #[must_use]
    pub fn loss(&self) -> Option<LossReason> {
        self.ask(HeldLease::loss)
            .unwrap_or_else(|| self.request().signal().loss())
    }

    /// Completes when the lock is lost: at the deadline at the latest, or as soon as the backend
    /// tells. Never completes while the lock is held, nor after it was released.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) -> LossReason {
        let ended = match &self.0 {
            Of::Guard(hold) => hold.ended().await,
            Of::View(hold, facts) => match hold.upgrade() {
                Some(hold) => hold.ended().await,
                None => facts.request.signal().loss(),
            },
        };
        match ended {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// A token that is cancelled when the lock is lost.
    #[must_use]
    pub fn cancellation_token(&self) -> CancellationToken {
        self.ask(|hold| hold.cancellation_token())
            .unwrap_or_else(|| {
                let token = CancellationToken::new();
                if self.loss().is_some() {
                    token.cancel();
                }
                token
            })
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view.describe(f.debug_struct("LockGuard"))
    }
}

impl fmt::Debug for LeaseInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(f.debug_struct("LeaseInfo"))
    }
}

impl LeaseInfo {
    fn describe(&self, mut out: fmt::DebugStruct<'_, '_>) -> fmt::Result {
        out.field("key", self.key())
            .field("mode", &self.mode())
            .field("token", &self.fencing_token())
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}
