//! Leases: from the grant to the release or the loss.

pub(crate) mod grant;
pub(crate) mod held_lease;
pub(crate) mod record_writes;
pub(crate) mod release;
pub(crate) mod renewal;
pub(crate) mod write_record;
