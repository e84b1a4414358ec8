//! [`Holders`]: the holders of one key. An operation on one of them costs the same however many there are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use leasehold_core::{AcquisitionId, FencingToken, Timestamp};

use super::grant::{Grant, Issuer};

#[derive(Debug)]
pub(super) struct Holder {
    pub(super) grant: Arc<Grant>,
    expires: Timestamp,
    /// Cleared when the lock is revoked gracefully.
    pub(super) renewable: bool,
    /// The grant's token, or the higher one that a quorum raised it to.
    pub(super) stored_token: Option<FencingToken>,
}

impl Holder {
    pub(super) fn new(grant: Arc<Grant>, expires: Timestamp) -> Self {
        let stored_token = grant.token;
        Self {
            grant,
            expires,
            renewable: true,
            stored_token,
        }
    }

    pub(super) fn expires(&self) -> Timestamp {
        self.expires
    }
}

/// An owner may be granted a key more than once; the number of the grant tells which it is.
type Id = (AcquisitionId, u64);

#[derive(Debug, Default)]
pub(super) struct Holders {
    by_id: BTreeMap<Id, Holder>,
    by_expiry: BTreeSet<(Timestamp, Id)>,
    /// How many holders were looked at.
    #[cfg(test)]
    looked_at: std::cell::Cell<usize>,
}

impl Holders {
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Any of them.
    pub(super) fn any(&self) -> Option<&Holder> {
        self.look(1);
        self.by_id.first_key_value().map(|(_, holder)| holder)
    }

    /// All of them, in the order of the grants.
    pub(super) fn list(&self) -> Vec<&Holder> {
        self.look(self.len());
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
        self.look(1);
        self.by_id.get_mut(&grant.id())
    }

    /// One of this owner's.
    pub(super) fn of_mut(&mut self, owner: AcquisitionId) -> Option<&mut Holder> {
        self.look(1);
        self.by_id
            .range_mut((owner, 0)..=(owner, u64::MAX))
            .next()
            .map(|(_, holder)| holder)
    }

    pub(super) fn remove(&mut self, grant: &Grant) -> Option<Holder> {
        self.look(1);
        let holder = self.by_id.remove(&grant.id())?;
        self.by_expiry.remove(&(holder.expires, grant.id()));
        Some(holder)
    }

    pub(super) fn remove_owner(&mut self, owner: AcquisitionId) -> Option<Holder> {
        let grant = Arc::clone(&self.of_mut(owner)?.grant);
        self.remove(&grant)
    }

    /// Lets this one expire later.
    pub(super) fn prolong(&mut self, grant: &Grant, expires: Timestamp) {
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

    /// Removes those that have expired.
    pub(super) fn expire(&mut self, issuer: &Issuer) {
        if self.is_empty() {
            return;
        }
        let now = issuer.now();
        while let Some(&(expiry, id)) = self.by_expiry.first()
            && expiry <= now
        {
            self.look(1);
            self.by_expiry.remove(&(expiry, id));
            self.by_id.remove(&id);
        }
    }

    #[cfg(test)]
    fn look(&self, at: usize) {
        self.looked_at.set(self.looked_at.get() + at);
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "counted in tests only")]
    fn look(&self, _: usize) {}

    #[cfg(test)]
    pub(super) fn looked_at(&self) -> usize {
        self.looked_at.get()
    }
}
