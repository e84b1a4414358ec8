//! [`Reply`]: the answer of a node to one attempt.

use std::sync::Arc;

use crate::{
    backend::{attempt::Contention, lease::Lease},
    error::Error,
    quorum::tally::Vote,
};

/// The answer of a node so far.
pub(super) enum Reply {
    Pending,
    Granted(Arc<dyn Lease>),
    Refused(Contention),
    Failed(Error),
}

impl Reply {
    pub(super) const fn vote(&self) -> Vote {
        match self {
            Self::Pending => Vote::Pending,
            Self::Granted(_) => Vote::Granted,
            Self::Refused(_) => Vote::Refused,
            Self::Failed(_) => Vote::Failed,
        }
    }

    pub(super) fn lease(&self) -> Option<&Arc<dyn Lease>> {
        match self {
            Self::Granted(lease) => Some(lease),
            _ => None,
        }
    }
}
