//! [`OwnedLease`]: one share of a lease, which a guard owns.

use std::sync::Arc;

use crate::{
    backend::lease::Released,
    error::Result,
    lease::{held_lease::HeldLease, release::Release},
};

/// One share of a lease. Dropping the last share releases the lease in the background.
pub(crate) struct OwnedLease {
    held: Arc<HeldLease>,
    /// Whether the share must still be given up.
    owned: bool,
}

impl OwnedLease {
    pub(crate) fn new(held: Arc<HeldLease>) -> Self {
        Self { held, owned: true }
    }

    pub(crate) fn held(&self) -> &Arc<HeldLease> {
        &self.held
    }

    pub(crate) async fn release(mut self) -> Result<Released> {
        self.owned = false;
        let held = &self.held;
        if !held.unshare() {
            return Ok(if held.loss().is_some() {
                Released::AlreadyLost
            } else {
                Released::StillHeld
            });
        }
        match Release::start(held) {
            Some(releasing) => releasing.await,
            None => Ok(Released::AlreadyLost),
        }
    }
}

impl Drop for OwnedLease {
    fn drop(&mut self) {
        if self.owned && self.held.unshare() {
            Release::in_background(&self.held);
        }
    }
}
