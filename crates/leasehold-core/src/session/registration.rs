//! [`Claim`]: the registration of one acquisition in a session.

use std::sync::{Arc, OnceLock};

use crate::{
    backend::{
        backend_errors::BackendErrors, lease::KeepAlive, release_tracker::ReleaseTracker,
        request::LossNotifier,
    },
    clock::Deadline,
    error::{Error, ErrorKind, Result},
    session::{
        session::{Session, SessionDriver},
        state::ClaimState,
    },
};

/// The registration of one acquisition in a session, from before its request is sent until its
/// release is answered.
///
/// While the claim exists, the session is in use, and reconciliation does not remove the entry that
/// the claim names. After it is dropped, the next reconciliation removes an entry of this name that
/// is still on the server.
///
/// See [`Sessions`](super::Sessions) for an example.
#[derive(Debug)]
pub struct Claim<D: SessionDriver> {
    session: Arc<Session<D>>,
    name: D::Claim,
    number: u64,
    /// The deadline at the time of a graceful revocation.
    frozen: Arc<OnceLock<Deadline>>,
}

impl<D: SessionDriver> Claim<D> {
    pub(super) fn new(
        session: Arc<Session<D>>,
        name: D::Claim,
        number: u64,
        frozen: Arc<OnceLock<Deadline>>,
    ) -> Self {
        Self {
            session,
            name,
            number,
            frozen,
        }
    }

    /// Returns the session.
    #[must_use]
    pub fn session(&self) -> &Arc<Session<D>> {
        &self.session
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &D::Claim {
        &self.name
    }

    /// Returns the deadline until which a lock under this claim is valid: the deadline of the
    /// session, or the one at which it was frozen by a graceful revocation, whichever is earlier.
    #[must_use]
    pub fn valid_until(&self) -> Deadline {
        let session = self.session.valid_until();
        self.frozen
            .get()
            .map_or(session, |frozen| session.min(*frozen))
    }

    /// Returns whether the lock was gracefully revoked. Renewals then no longer move its deadline.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.frozen.get().is_some()
    }

    /// Returns whether a lock under this claim is still valid, by the clock of the session.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        // Read the clock first: see `AtomicDeadline::get`.
        let now = self.session.now();
        !self.valid_until().is_past(now)
    }

    /// Returns how a lease under this claim is renewed: together with all leases of the session.
    #[must_use]
    pub fn keep_alive(&self) -> KeepAlive {
        KeepAlive::Session(self.session.id())
    }

    /// Renews the session for a lease under this claim, as
    /// [`Lease::renew`](crate::backend::Lease::renew) requires. `release` is the lease's release,
    /// and `errors` name the backend.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Lost`] if the lease's release has started, [`ErrorKind::Revoked`] if
    /// the lock was gracefully revoked, and the errors of [`Session::renew`].
    ///
    /// # Cancel safety
    /// Not cancel safe: the future must be driven to completion.
    pub async fn renew(&self, release: &ReleaseTracker, errors: &BackendErrors) -> Result<()> {
        if release.has_started() {
            return Err(errors.released());
        }
        let renewed = self.session.renew().await;
        renewed.map_err(|error| errors.named(error, "renew"))?;
        if self.is_revoked() {
            return Err(errors.revoked());
        }
        Ok(())
    }

    /// Records that the lock is granted. From now on `notifier` is notified of a loss, and the
    /// session is no longer renewed for this claim: the renewal task renews it through the lease.
    /// Returns `false` if the session has ended, in which case the lock is not granted.
    #[must_use]
    pub fn hold(&self, notifier: LossNotifier) -> bool {
        self.session.hold(&self.name, notifier)
    }

    /// Records that the release was answered and the entry is gone. It is idempotent. Dropping the
    /// claim does the same.
    pub fn release(&self) {
        self.session.remove(&self.name, self.number);
    }

    /// Prevents the name from being claimed again in this session, and does what
    /// [`mark_uncertain`](Self::mark_uncertain) does. Call it if a request that was sent for this
    /// name may still arrive at the server.
    pub fn tombstone(&self) {
        self.session.tombstone(&self.name);
    }

    /// Records that an operation on this claim ended without an answer. Its request may still
    /// arrive, so that the server has an entry that this process does not know of. The session is
    /// renewed and reconciled within a second, and then at intervals that double up to those of the
    /// usual renewals.
    pub fn mark_uncertain(&self) {
        self.session.mark_uncertain();
    }
}

impl<D: SessionDriver> Drop for Claim<D> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<D: SessionDriver> Session<D> {
    /// Registers a name.
    pub(super) fn claim(self: &Arc<Self>, name: D::Claim) -> Result<Claimed<D>> {
        let mut state = self.lock();
        if state.end.is_some() {
            return Ok(Claimed::Ended);
        }
        // The session may have filled up since it was chosen.
        if state.weight >= self.driver().capacity() {
            return Ok(Claimed::Full);
        }
        if state.claims.contains_key(&name)
            || state.deleting.contains(&name)
            || state.tombstones.contains(&name)
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                "this session already has a claim of this name",
            ));
        }
        state.next += 1;
        let claim_state = ClaimState {
            number: state.next,
            holder: None,
            frozen: Arc::default(),
        };
        let (number, frozen) = (claim_state.number, Arc::clone(&claim_state.frozen));
        state.pending += 1;
        if let Some(touched) = &mut state.touched {
            touched.insert(name.clone());
        }
        state.weight += self.driver().weight(&name);
        state.claims.insert(name.clone(), claim_state);
        drop(state);
        Ok(Claimed::Place(Claim::new(
            Arc::clone(self),
            name,
            number,
            frozen,
        )))
    }
}

/// The outcome of [`Session::claim`].
pub(super) enum Claimed<D: SessionDriver> {
    Place(Claim<D>),
    /// The session has reached the capacity that the driver allows.
    Full,
    Ended,
}
