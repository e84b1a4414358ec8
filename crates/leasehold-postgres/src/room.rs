//! Who takes up room: [`Counted`] connections, and each [`Place`] in their sessions.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use leasehold_core::session::Claim;

use crate::{connection::Link, session::PostgresSessions};

/// One of the connections that the configuration allows.
pub(crate) struct Counted(Arc<Link>);

impl Counted {
    /// One more, unless there are as many as there may be.
    pub(crate) fn one_more(link: &Arc<Link>) -> Option<Self> {
        let max = link.config.max_sessions;
        let more = |holding| (holding < max).then_some(holding + 1);
        link.holding.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Self(Arc::clone(link)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.holding.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A claim that its session counts until it is released.
#[derive(Debug)]
pub(crate) struct Place {
    claim: Claim<PostgresSessions>,
    released: AtomicBool,
}

impl Place {
    pub(crate) fn new(claim: Claim<PostgresSessions>) -> Self {
        let place = Self { claim, released: AtomicBool::new(false) };
        place.count().fetch_add(1, Ordering::AcqRel);
        place
    }

    /// What it named is gone. Idempotent; dropping does the same.
    pub(crate) fn release(&self) {
        self.claim.release();
        if !self.released.swap(true, Ordering::AcqRel) {
            self.count().fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn count(&self) -> &AtomicUsize {
        &self.claim.session().handle().places
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.release();
    }
}

impl Deref for Place {
    type Target = Claim<PostgresSessions>;

    fn deref(&self) -> &Self::Target {
        &self.claim
    }
}
