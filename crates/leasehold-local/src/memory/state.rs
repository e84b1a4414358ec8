//! [`State`]: the data that a backend, its leases and its waiters share.

use std::time::SystemTime;

use leasehold_core::backend::Request;

use super::{grant::Issuer, lock_entry::LockEntry, table::Table, wall_clock::WallClock};

#[derive(Debug)]
pub(super) struct State {
    pub(super) table: Table,
    pub(super) issuer: Issuer,
    pub(super) wall_clock: WallClock,
}

impl State {
    /// Returns the time that records show.
    pub(super) fn wall_clock(&self) -> SystemTime {
        self.wall_clock.now(self.issuer.now())
    }

    /// Runs `work` on the entry of the key of `request`.
    pub(super) fn with_entry<R>(
        &self,
        request: &Request,
        work: impl FnOnce(&mut LockEntry) -> R,
    ) -> R {
        self.table.with_entry(request.key(), request.mode(), work)
    }
}
