//! [`Holders`]: the holders of one key. The cost of an operation on one holder does not depend on
//! their number.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use leasehold_core::{AcquisitionId, Timestamp};

use super::grant::{Grant, Holder, Issuer};

/// One acquisition may be granted a key more than once. The number distinguishes its grants.
type Id = (AcquisitionId, u64);

#[derive(Debug, Default)]
pub(super) struct Holders {
    by_id: BTreeMap<Id, Holder>,
    by_expiry: BTreeSet<(Timestamp, Id)>,
    /// The number of holders that were visited.
    #[cfg(test)]
    visited: std::cell::Cell<usize>,
}

impl Holders {
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Returns any holder.
    pub(super) fn any(&self) -> Option<&Holder> {
        self.visit(1);
        self.by_id.first_key_value().map(|(_, holder)| holder)
    }

    /// Returns all holders in the order of their grants.
    pub(super) fn list(&self) -> Vec<&Holder> {
        self.visit(self.len());
        let mut holders: Vec<_> = self.by_id.values().collect();
        holders.sort_unstable_by_key(|holder| holder.grant.id().1);
        holders
    }

    pub(super) fn add(&mut self, holder: Holder) {
        let id = holder.grant.id();
        self.by_expiry.insert((holder.expires, id));
        self.by_id.insert(id, holder);
    }

    pub(super) fn get_mut(&mut self, grant: &Grant) -> Option<&mut Holder> {
        self.visit(1);
        self.by_id.get_mut(&grant.id())
    }

    /// Returns a holder of this acquisition.
    pub(super) fn by_owner_mut(&mut self, owner: AcquisitionId) -> Option<&mut Holder> {
        self.visit(1);
        self.by_id
            .range_mut((owner, 0)..=(owner, u64::MAX))
            .next()
            .map(|(_, holder)| holder)
    }

    pub(super) fn remove(&mut self, grant: &Grant) -> Option<Holder> {
        self.visit(1);
        let holder = self.by_id.remove(&grant.id())?;
        self.by_expiry.remove(&(holder.expires, grant.id()));
        Some(holder)
    }

    pub(super) fn remove_owner(&mut self, owner: AcquisitionId) -> Option<Holder> {
        let grant = Arc::clone(&self.by_owner_mut(owner)?.grant);
        self.remove(&grant)
    }

    /// Moves the expiry of the holder to `expires`.
    pub(super) fn extend(&mut self, grant: &Grant, expires: Timestamp) {
        let Some(holder) = self.get_mut(grant) else {
            return;
        };
        let before = std::mem::replace(&mut holder.expires, expires);
        self.by_expiry.remove(&(before, grant.id()));
        self.by_expiry.insert((expires, grant.id()));
    }

    pub(super) fn first_expiry(&self) -> Option<Timestamp> {
        self.by_expiry.first().map(|(expiry, _)| *expiry)
    }

    /// Removes all holders that have expired.
    pub(super) fn expire(&mut self, issuer: &Issuer) {
        if self.is_empty() {
            return;
        }
        let now = issuer.now();
        while let Some(&(expiry, id)) = self.by_expiry.first()
            && expiry <= now
        {
            self.visit(1);
            self.by_expiry.remove(&(expiry, id));
            self.by_id.remove(&id);
        }
    }

    #[cfg(test)]
    fn visit(&self, count: usize) {
        self.visited.set(self.visited.get() + count);
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "counted in tests only")]
    fn visit(&self, _: usize) {}

    #[cfg(test)]
    pub(super) fn visited(&self) -> usize {
        self.visited.get()
    }
}
