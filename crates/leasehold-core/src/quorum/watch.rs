//! [`Watch`]: the last state of a node that this client has read.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::quorum::node::{NodeState, Watched};

/// The tolerated difference between a node's wall clock and the client's clock between two reads,
/// in addition to 1 %. A larger difference is a step of the wall clock. NTP steps from 128 ms on.
const STEP: Duration = Duration::from_millis(100);

/// The last read of one node's state.
///
/// Time is tokio's monotonic clock, which nobody sets. It may stop while the machine is suspended.
/// The time of watching is then too short, but never too long.
#[derive(Debug, Default)]
pub(super) struct Watch(Mutex<Option<Look>>);

#[derive(Clone, Debug)]
struct Look {
    incarnation: String,
    version: String,
    watched_for: Duration,
    wall_clock: Option<Duration>,
    sent: Instant,
    answered: Instant,
}

impl Watch {
    /// Returns for how long the node has been watched since the last read, to be sent with the next
    /// one.
    pub(super) fn so_far(&self) -> Option<Watched> {
        let look = self.last()?;
        Some(Watched {
            version: look.version,
            before: look.watched_for,
            duration: look.answered.elapsed(),
        })
    }

    /// Records the answer to a read that was sent at `sent`. Returns by how much the node's wall
    /// clock was set ahead since the previous read, if it was.
    pub(super) fn seen(&self, node: &NodeState, sent: Instant) -> Option<Duration> {
        let look = Look {
            incarnation: node.incarnation.clone(),
            version: node.version.clone(),
            watched_for: node.eligibility.watched_for,
            wall_clock: node.wall_clock,
            sent,
            answered: Instant::now(),
        };
        let before = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(look.clone())?;
        if before.incarnation != look.incarnation {
            return None;
        }
        let shown = look.wall_clock?.checked_sub(before.wall_clock?)?;
        let at_most = look.answered - before.sent;
        shown.checked_sub(at_most + at_most / 100 + STEP)
    }

    fn last(&self) -> Option<Look> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fencing::FencingToken,
        quorum::eligibility::{Durability, Eligibility},
    };

    fn at(wall_clock: u64) -> NodeState {
        NodeState {
            incarnation: "r".into(),
            version: "v".into(),
            eligibility: Eligibility {
                durability: Durability::Unknown,
                watched_for: Duration::ZERO,
            },
            durable: false,
            recorded: None,
            largest_ttl: None,
            highest_token: FencingToken::new(0),
            wall_clock: Some(Duration::from_secs(wall_clock)),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_of_the_wall_clock_is_noticed_and_no_part_of_the_time() {
        let watch = Watch::default();
        assert!(watch.so_far().is_none());
        assert_eq!(watch.seen(&at(1_000), Instant::now()), None);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(watch.so_far().unwrap().duration, Duration::from_secs(10));
        assert_eq!(watch.seen(&at(1_010), Instant::now()), None);
        tokio::time::advance(Duration::from_secs(10)).await;
        let ahead = watch.seen(&at(1_081), Instant::now()).unwrap();
        assert_eq!(ahead, Duration::from_millis(61_000 - 100 - 100));
        // The clock was set back.
        assert_eq!(watch.seen(&at(900), Instant::now()), None);
        assert_eq!(watch.so_far().unwrap().duration, Duration::ZERO);
    }
}
