//! [`Floor`]: from where the nodes count new tokens.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use crate::fencing::FencingToken;

/// Tokens end where a script cannot tell a number from its neighbour.
const END: u64 = 1 << 52;

/// Microseconds since 1970 by default. All nodes that grant to one attempt then grant the same
/// token, unless they had a larger one already. Nothing depends on it: a clock that is wrong costs
/// a round trip.
#[derive(Clone)]
pub(super) enum Floor {
    Clock(Arc<AtomicU64>),
    Given(Arc<dyn Fn() -> FencingToken + Send + Sync>),
}

impl Floor {
    pub(super) fn new(given: Option<Arc<dyn Fn() -> FencingToken + Send + Sync>>) -> Self {
        given.map_or_else(|| Self::Clock(Arc::default()), Self::Given)
    }

    pub(super) fn next(&self) -> FencingToken {
        match self {
            Self::Given(floor) => floor(),
            Self::Clock(last) => {
                let now = SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default();
                let now = u64::try_from(now.as_micros()).unwrap_or(END).min(END);
                FencingToken::new(last.fetch_max(now, Ordering::Relaxed).max(now))
            }
        }
    }
}

impl fmt::Debug for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clock(_) => "Clock",
            Self::Given(_) => "Given",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_falls() {
        let floor = Floor::new(None);
        let first = floor.next();
        assert!(first.get() > 1_000_000_000_000_000);
        assert!(floor.next() >= first);
    }
}
