//! Contention: decides when a failed attempt is retried.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    backend::{attempt::Contention, lease::BoxFuture},
    quorum::{
        jitter,
        reply::NodeReply,
        tally::{Majority, Tally},
    },
};

/// The shortest delay after a split vote, and the number of times that the longest delay doubles.
/// Clients that were notified together retry together, and each may win some of the nodes.
const MIN_SPLIT_DELAY: Duration = Duration::from_millis(1);
const DOUBLINGS: u32 = 2;
/// The delay if a node reports none.
const DEFAULT_DELAY: Duration = Duration::from_millis(100);
/// The delay if a node notifies the waiter instead.
const FALLBACK_DELAY: Duration = Duration::from_secs(3600);

/// The history of one acquisition's attempts.
#[derive(Debug, Default)]
pub(super) struct AttemptHistory {
    /// The number of consecutive attempts that ended in a split vote.
    splits: AtomicU32,
    /// Whether the last wait timed out on nodes that were reserved for an earlier waiter.
    overdue: Arc<AtomicBool>,
}

impl AttemptHistory {
    /// Returns whether the next attempt should respect the order of waiters.
    ///
    /// It should not after a split vote, because the nodes may disagree about the order and would
    /// split the next vote in the same way. It should not after waiting in vain for an earlier
    /// waiter, which may be dead.
    pub(super) fn respects_order(&self) -> bool {
        self.splits.load(Ordering::Relaxed) == 0 && !self.overdue.swap(false, Ordering::Relaxed)
    }
}

/// Returns a wait that ends when enough of the nodes that refused are free for a majority. After a
/// split vote, a random delay follows. The nodes' own notifications are moved out of `replies`.
pub(super) fn of(
    majority: Majority,
    replies: &mut [NodeReply],
    took: Duration,
    history: &AttemptHistory,
) -> Contention {
    let tally = Tally::of(majority, replies.iter().map(NodeReply::vote));
    let split = tally.granted() > 0;
    // Of several attempts that split a vote, only one has the first node. That one retries at once
    // after the other attempts have released theirs, and these delay their retry until it may be
    // done. If the attempts disagree about which node is the first, more rounds are needed.
    let answered = replies
        .iter()
        .find(|reply| matches!(reply, NodeReply::Granted(_) | NodeReply::Refused(_)));
    let first = matches!(answered, Some(NodeReply::Granted(_)));
    let splits = &history.splits;
    let before = if split {
        splits.fetch_add(1, Ordering::Relaxed)
    } else {
        splits.swap(0, Ordering::Relaxed)
    };
    let pause = if split && !first {
        MIN_SPLIT_DELAY.max(took) * (1 + jitter::draw() % (2 << before.min(DOUBLINGS)))
    } else {
        Duration::ZERO
    };
    let refusals = replies.iter_mut().filter_map(|reply| match reply {
        NodeReply::Refused(contention) => Some(std::mem::take(contention)),
        _ => None,
    });
    let (mut refused, mut last_token) = (Vec::new(), None);
    for refusal in refusals {
        last_token = last_token.max(refusal.last_token);
        let default = if refusal.wake.is_some() {
            FALLBACK_DELAY
        } else {
            DEFAULT_DELAY
        };
        let retry_after = refusal.retry_after.unwrap_or(default);
        let wake = refusal.wake.unwrap_or_else(|| Box::pin(sleep(retry_after)));
        refused.push(Refusal { wake, retry_after });
    }
    let needed = tally.wakes_needed();
    if refused.len() < needed {
        // Nodes that failed send no notification. If too few can, retry soon.
        return Contention {
            retry_after: Some(DEFAULT_DELAY + pause),
            last_token,
            wake: None,
        };
    }
    refused.sort_unstable_by_key(|node| node.retry_after);
    let retry_after = refused[needed - 1].retry_after + pause;
    let overdue = Arc::clone(&history.overdue);
    let wake = Box::pin(quorum_freed(refused, needed, pause, overdue));
    Contention {
        retry_after: Some(retry_after),
        last_token,
        wake: Some(wake),
    }
}

/// A node that refused.
struct Refusal {
    wake: BoxFuture<'static, ()>,
    retry_after: Duration,
}

/// Waits until `needed` nodes have notified the waiter, or until it is time to retry. A node that
/// is free but reserved for an earlier waiter may never send a notification, so that notifications
/// alone are not enough.
async fn quorum_freed(
    mut refused: Vec<Refusal>,
    needed: usize,
    pause: Duration,
    overdue: Arc<AtomicBool>,
) {
    let began = Instant::now();
    // The nodes are sorted by their delay. The timer covers as many of the first ones as are still
    // missing.
    let mut missing = needed;
    let mut timer = pin!(sleep_until(began + refused[missing - 1].retry_after));
    poll_fn(|cx| {
        let before = refused.len();
        refused.retain_mut(|node| node.wake.as_mut().poll(cx).is_pending());
        let notified = before - refused.len();
        if notified >= missing {
            return Poll::Ready(());
        }
        if notified > 0 {
            missing -= notified;
            timer
                .as_mut()
                .reset(began + refused[missing - 1].retry_after);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        overdue.store(true, Ordering::Relaxed);
        Poll::Ready(())
    })
    .await;
    drop(refused);
    if !pause.is_zero() {
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use tokio::sync::Notify;

    use super::*;
    use crate::{
        backend::lease::{KeepAlive, Lease, Released},
        clock::{Deadline, Timestamp},
        error::{Error, ErrorKind, Result},
        fencing::FencingToken,
    };

    fn refused(notify: &Arc<Notify>, retry_after: u64) -> NodeReply {
        let notify = Arc::clone(notify);
        NodeReply::Refused(Contention {
            retry_after: Some(Duration::from_secs(retry_after)),
            last_token: None,
            wake: Some(Box::pin(async move { notify.notified().await })),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn waiter_is_notified_when_a_majority_may_be_free() {
        let nodes: Vec<_> = (0..5).map(|_| Arc::new(Notify::new())).collect();
        let mut replies: Vec<_> = nodes
            .iter()
            .zip([5, 1, 4, 2, 3])
            .map(|(node, after)| refused(node, after))
            .collect();
        let contention = of(
            Majority::of(5),
            &mut replies,
            Duration::ZERO,
            &AttemptHistory::default(),
        );
        assert_eq!(contention.retry_after, Some(Duration::from_secs(3)));
        let mut wake = contention.wake.unwrap();
        nodes[0].notify_one();
        nodes[4].notify_one();
        assert!((&mut wake).now_or_never().is_none());
        nodes[2].notify_one();
        assert!((&mut wake).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_split_vote_only_one_retries_at_once() {
        let history = AttemptHistory::default();
        let nodes: Vec<_> = (0..3).map(|_| Arc::new(Notify::new())).collect();
        let pause = |mut replies: Vec<NodeReply>| {
            let contention = of(Majority::of(3), &mut replies, Duration::ZERO, &history);
            contention.retry_after.unwrap() - Duration::from_secs(5)
        };
        let lease = || NodeReply::Granted(Arc::new(Nothing));
        assert_eq!(
            pause(vec![lease(), refused(&nodes[1], 5), refused(&nodes[2], 5)]),
            Duration::ZERO
        );
        for _ in 0..20 {
            let paused = pause(vec![refused(&nodes[0], 5), lease(), refused(&nodes[2], 5)]);
            assert!(
                paused >= MIN_SPLIT_DELAY && paused <= MIN_SPLIT_DELAY * 8,
                "{paused:?}"
            );
        }
        assert_eq!(
            pause(vec![
                refused(&nodes[0], 5),
                refused(&nodes[1], 5),
                refused(&nodes[2], 5)
            ]),
            Duration::ZERO
        );
        assert_eq!(history.splits.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn node_reserved_for_another_counts_after_its_delay() {
        let nodes: Vec<_> = (0..5).map(|_| Arc::new(Notify::new())).collect();
        let began = Instant::now();
        let history = AttemptHistory::default();
        // One of the three deciding nodes is free already, and its state does not change.
        let mut replies = vec![
            refused(&nodes[0], 30),
            refused(&nodes[1], 1),
            refused(&nodes[2], 30),
        ];
        replies.extend([NodeReply::Pending, NodeReply::Pending]);
        let contention = of(Majority::of(5), &mut replies, Duration::ZERO, &history);
        let mut wake = contention.wake.unwrap();
        nodes[0].notify_one();
        nodes[2].notify_one();
        assert!((&mut wake).now_or_never().is_none());
        assert!(history.respects_order());
        wake.await;
        assert_eq!(began.elapsed().as_secs(), 1);
        assert!(
            !history.respects_order() && history.respects_order(),
            "the next attempt does not wait for it, those after it do"
        );
    }

    #[derive(Debug)]
    struct Nothing;

    #[crate::async_trait]
    impl Lease for Nothing {
        fn fencing_token(&self) -> Option<FencingToken> {
            None
        }

        fn valid_until(&self) -> Deadline {
            Deadline::at(Timestamp::default())
        }

        fn keep_alive(&self) -> KeepAlive {
            KeepAlive::PerLease
        }

        async fn renew(self: Arc<Self>) -> Result<()> {
            Ok(())
        }

        async fn release(self: Arc<Self>) -> Result<Released> {
            Ok(Released::Freed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn too_few_notifying_nodes_make_the_retry_soon() {
        let node = Arc::new(Notify::new());
        let failed = || NodeReply::Failed(Error::new(ErrorKind::Unavailable, "down"));
        let mut replies = vec![
            refused(&node, 9),
            refused(&node, 9),
            failed(),
            failed(),
            NodeReply::Pending,
        ];
        let contention = of(
            Majority::of(5),
            &mut replies,
            Duration::ZERO,
            &AttemptHistory::default(),
        );
        assert!(contention.wake.is_none());
        assert_eq!(contention.retry_after, Some(DEFAULT_DELAY));
    }
}
