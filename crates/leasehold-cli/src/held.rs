//! [`Held`]: what a program runs under, locks or the term of an election.

use leasehold::{AllGuard, AllInfo, LockKey, Released, Result, Term};

/// A guard of the locks of a program, or of its term as a leader.
#[derive(Debug)]
pub(crate) enum Held {
    Locks(AllGuard),
    Term(Term),
}

impl Held {
    /// Returns a view of the leases.
    pub(crate) fn info(&self) -> AllInfo {
        match self {
            Self::Locks(guard) => guard.info(),
            Self::Term(term) => AllInfo::from((*term.info()).clone()),
        }
    }

    /// Renews the leases for another TTL.
    pub(crate) async fn renew(&self) -> Result<()> {
        match self {
            Self::Locks(guard) => guard.renew().await,
            Self::Term(term) => term.renew().await,
        }
    }

    /// Releases the locks, and returns for each of them whether it was still held.
    pub(crate) async fn release(self) -> Result<Vec<(LockKey, Released)>> {
        match self {
            Self::Locks(guard) => guard.release().await,
            Self::Term(term) => {
                let key = term.key().clone();
                term.resign().await.map(|released| vec![(key, released)])
            }
        }
    }
}
