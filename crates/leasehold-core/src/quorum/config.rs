//! [`QuorumConfig`]: the options of a quorum.

use std::{fmt, sync::Arc, time::Duration};

use crate::{fencing::FencingToken, ttl::Ttl};

/// The default time within which a node must answer, as a part of the TTL, and its bounds. A
/// twentieth leaves a holder nearly its whole TTL even if a node does not answer. The upper bound
/// limits the delay of a waiter. The lower bound allows for a busy machine.
const TIMEOUT_PART: u32 = 20;
const TIMEOUT_BOUNDS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The options of a quorum.
///
/// ```
/// use std::time::Duration;
/// use leasehold_core::quorum::QuorumConfig;
///
/// let config = QuorumConfig::new().with_node_timeout(Duration::from_millis(100));
/// ```
#[derive(Clone)]
pub struct QuorumConfig {
    node_timeout: Option<Duration>,
    pub(super) largest_ttl: Ttl,
    pub(super) scheme: &'static str,
    pub(super) floor: Option<Arc<dyn Fn() -> FencingToken + Send + Sync>>,
}

impl QuorumConfig {
    /// Creates the default options: a node must answer within a twentieth of the TTL, bounded to 50
    /// ms and 1 s, and no lock has a TTL above 60 s.
    #[must_use]
    pub fn new() -> Self {
        // Twice the default TTL.
        let largest_ttl = Ttl::from_secs(60).unwrap_or(Ttl::DEFAULT);
        Self {
            node_timeout: None,
            largest_ttl,
            scheme: "quorum",
            floor: None,
        }
    }

    /// Sets the time within which a node must answer before it counts as failed. A node that was
    /// late gets only one request at a time until it answers.
    #[must_use]
    pub fn with_node_timeout(mut self, timeout: Duration) -> Self {
        self.node_timeout = Some(timeout);
        self
    }

    /// Sets the longest TTL that any lock of this quorum may have, in *all* programs that use it. A
    /// node that restarted does not vote for that time. A value with which the nodes were
    /// provisioned takes precedence.
    ///
    /// Nodes that cannot [vote on tokens](super::QuorumNode) have no such grace period. One that
    /// frees its locks when it restarts votes at once.
    #[must_use]
    pub fn with_largest_ttl(mut self, ttl: Ttl) -> Self {
        self.largest_ttl = ttl;
        self
    }

    /// Sets the backend's name in errors, traces and capabilities. The default is `quorum`.
    #[must_use]
    pub fn with_name(mut self, name: &'static str) -> Self {
        self.scheme = name;
        self
    }

    /// Replaces the floor of new tokens, which is the wall clock in microseconds by default. Tokens
    /// are unique and ordered with any floor. A floor that grows at the same rate in all processes
    /// saves the second round trip.
    #[must_use]
    pub fn with_token_floor(
        mut self,
        floor: impl Fn() -> FencingToken + Send + Sync + 'static,
    ) -> Self {
        self.floor = Some(Arc::new(floor));
        self
    }

    /// Returns the time within which a node must answer a request for a lock of this TTL.
    pub(super) fn node_timeout(&self, ttl: Ttl) -> Duration {
        let part = || (ttl.as_duration() / TIMEOUT_PART).clamp(TIMEOUT_BOUNDS.0, TIMEOUT_BOUNDS.1);
        self.node_timeout.unwrap_or_else(part)
    }
}

impl Default for QuorumConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for QuorumConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuorumConfig")
            .field("node_timeout", &self.node_timeout)
            .field("largest_ttl", &self.largest_ttl)
            .field("name", &self.scheme)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_timeout_is_proportional_to_the_ttl() {
        let timeout = |millis| {
            QuorumConfig::new()
                .node_timeout(Ttl::from_millis(millis).unwrap())
                .as_millis()
        };
        assert_eq!(
            (timeout(100), timeout(10_000), timeout(30_000)),
            (50, 500, 1_000)
        );
        let fixed = QuorumConfig::new().with_node_timeout(Duration::from_millis(7));
        assert_eq!(fixed.node_timeout(Ttl::DEFAULT).as_millis(), 7);
    }
}
