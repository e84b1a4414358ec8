//! Leases: from the grant to the release or the loss.

pub(crate) mod complete_on_drop;
pub(crate) mod detached_release;
pub(crate) mod grant;
pub(crate) mod held_lease;
pub(crate) mod owned_lease;
pub(crate) mod release;
pub(crate) mod renewal;
pub(crate) mod renewal_mode;
