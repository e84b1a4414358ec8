//! [`Claim`]: what one acquisition has in a session, or may have.

use std::sync::{Arc, OnceLock};

use crate::{
    clock::Deadline,
    request::LossNotifier,
    session::{Session, SessionDriver},
};

/// What one acquisition has in a session, or may have: from before its request is sent until its
/// release is answered.
///
/// While it exists the session is in use, and reconciliation leaves what it names alone. When it is
/// dropped, whatever the server still has under this name is removed with the next reconciliation.
#[derive(Debug)]
pub struct Claim<D: SessionDriver> {
    session: Arc<Session<D>>,
    name: D::Claim,
    number: u64,
    /// Where the deadline was when an operator broke the lock gently.
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

    /// The session.
    #[must_use]
    pub fn session(&self) -> &Arc<Session<D>> {
        &self.session
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &D::Claim {
        &self.name
    }

    /// Until when a lock under this claim may be believed in: as long as its session, unless it was
    /// broken.
    #[must_use]
    pub fn valid_until(&self) -> Deadline {
        let session = self.session.valid_until();
        self.frozen
            .get()
            .map_or(session, |frozen| session.min(*frozen))
    }

    /// Whether the lock was broken gently: renewals no longer move its deadline.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.frozen.get().is_some()
    }

    /// It is granted: losses are told to this sink from now on, and the session is no longer
    /// renewed for it (the renewer does that through the lease). `false` if the session has ended
    /// meanwhile: then nothing was granted.
    #[must_use]
    pub fn hold(&self, sink: LossNotifier) -> bool {
        self.session.hold(&self.name, sink)
    }

    /// The release was answered: what it named is gone. Idempotent; dropping does the same.
    pub fn release(&self) {
        self.session.forget(&self.name, self.number);
    }

    /// Lets nobody claim this name again in this session: for drivers where something that was sent
    /// may still arrive.
    pub fn retire(&self) {
        self.session.retire(&self.name);
    }

    /// An operation on it ended without an answer: the server may have what nobody here knows of.
    /// The next renewal reconciles.
    pub fn doubt(&self) {
        self.session.doubt();
    }
}

impl<D: SessionDriver> Drop for Claim<D> {
    fn drop(&mut self) {
        self.release();
    }
}
