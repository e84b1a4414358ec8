//! [`Floor`]: a lower bound for the tokens that nodes grant.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use crate::fencing::FencingToken;

/// The largest floor. Lua scripts compute exactly below 2^53, which leaves room for larger tokens.
const END: u64 = 1 << 52;

/// The source of token floors, by default the microseconds since 1970.
///
/// With a common floor, all nodes that grant to one attempt grant the same token, unless one had a
/// larger token already. Correctness does not depend on it: a wrong clock costs one round trip.
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
