//! The state of a held lease, and its renewal.

pub(crate) mod held_lease;
pub(crate) mod renewal;
pub(crate) mod signal;
