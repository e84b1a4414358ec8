//! [`OwnedLease`]: one share of a lease, which a guard owns.

use std::sync::Arc;

use crate::{
    backend::lease::Released,
    error::Result,
    lease::{held_lease::HeldLease, release::Release},
};

/// One share of a lease. Dropping the last share releases the lease in the background.
pub(crate) struct OwnedLease {
    hold: Arc<HeldLease>,
    /// Whether the share must still be given up.
    owned: bool,
}

impl OwnedLease {
    pub(crate) fn new(hold: Arc<HeldLease>) -> Self {
        Self { hold, owned: true }
    }

    pub(crate) fn hold(&self) -> &Arc<HeldLease> {
        &self.hold
    }

    pub(crate) async fn release(mut self) -> Result<Released> {
        self.owned = false;
        let hold = &self.hold;
        if !hold.unshare() {
            return Ok(if hold.loss().is_some() {
                Released::AlreadyLost
            } else {
                Released::StillHeld
            });
        }
        match Release::start(hold) {
            Some(releasing) => releasing.await,
            None => Ok(Released::AlreadyLost),
        }
    }
}

impl Drop for OwnedLease {
    fn drop(&mut self) {
        if self.owned && self.hold.unshare() {
            Release::in_background(&self.hold);
        }
    }
}
