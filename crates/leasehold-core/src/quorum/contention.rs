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
    backend::contract::{BoxFuture, Contention},
    quorum::{
        attempt::Reply,
        jitter,
        tally::{Majority, Tally},
    },
};

/// The shortest delay after a split vote, and the number of times that the longest delay doubles.
/// Clients that were notified together retry together, and each may win some of the nodes.
const SLOT: Duration = Duration::from_millis(1);
const DOUBLINGS: u32 = 2;
/// The delay if a node reports none.
const UNTOLD: Duration = Duration::from_millis(100);
/// The delay if a node notifies the waiter instead.
const NET: Duration = Duration::from_secs(3600);

/// The history of one acquisition's attempts.
#[derive(Debug, Default)]
pub(super) struct Tries {
    /// The number of consecutive attempts that ended in a split vote.
    splits: AtomicU32,
    /// Whether the last wait timed out on nodes that were reserved for an earlier waiter.
    overdue: Arc<AtomicBool>,
}

impl Tries {
    /// Returns whether the next attempt should respect the order of waiters.
    ///
    /// It should not after a split vote, because the nodes may disagree about the order and would
    /// split the next vote in the same way. It should not after waiting in vain for an earlier
    /// waiter, which may be dead.
    pub(super) fn are_in_order(&self) -> bool {
        self.splits.load(Ordering::Relaxed) == 0 && !self.overdue.swap(false, Ordering::Relaxed)
    }
}

/// Returns a wait that ends when enough of the nodes that refused are free for a majority. After a
/// split vote, a random delay follows. The nodes' own notifications are moved out of `replies`.
pub(super) fn of(
    majority: Majority,
    replies: &mut [Reply],
    took: Duration,
    tries: &Tries,
) -> Contention {
    let tally = Tally::of(majority, replies.iter().map(Reply::vote));
    let split = tally.granted() > 0;
    // Of several attempts that split a vote, only one has the first node. That one retries at once
    // after the other attempts have released theirs, and these delay their retry until it may be done.
    // If the attempts disagree about which node is the first, more rounds are needed.
    let answered = replies
        .iter()
        .find(|reply| matches!(reply, Reply::Granted(_) | Reply::Refused(_)));
    let first = matches!(answered, Some(Reply::Granted(_)));
    let splits = &tries.splits;
    let before = if split {
        splits.fetch_add(1, Ordering::Relaxed)
    } else {
        splits.swap(0, Ordering::Relaxed)
    };
    let pause = if split && !first {
        SLOT.max(took) * (1 + jitter::draw() % (2 << before.min(DOUBLINGS)))
    } else {
        Duration::ZERO
    };
    let refusals = replies.iter_mut().filter_map(|reply| match reply {
        Reply::Refused(contention) => Some(std::mem::take(contention)),
        _ => None,
    });
    let (mut refused, mut last_token) = (Vec::new(), None);
    for refusal in refusals {
        last_token = last_token.max(refusal.last_token);
        let untold = if refusal.wake.is_some() { NET } else { UNTOLD };
        let retry_after = refusal.retry_after.unwrap_or(untold);
        let wake = refusal.wake.unwrap_or_else(|| Box::pin(sleep(retry_after)));
        refused.push(Refused { wake, retry_after });
    }
    let needed = tally.wakes_needed();
    if refused.len() < needed {
        // Nodes that failed send no notification. If too few can, retry soon.
        return Contention {
            retry_after: Some(UNTOLD + pause),
            last_token,
            wake: None,
        };
    }
    refused.sort_unstable_by_key(|node| node.retry_after);
    let retry_after = refused[needed - 1].retry_after + pause;
    let overdue = Arc::clone(&tries.overdue);
    let wake = Box::pin(enough(refused, needed, pause, overdue));
    Contention {
        retry_after: Some(retry_after),
        last_token,
        wake: Some(wake),
    }
}

/// A node that refused.
struct Refused {
    wake: BoxFuture<'static, ()>,
    retry_after: Duration,
}

/// Waits until `needed` nodes have notified the waiter, or until it is time to retry. A node that
/// is free but reserved for an earlier waiter may never send a notification, so that notifications
/// alone are not enough.
async fn enough(
    mut refused: Vec<Refused>,
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
        let woken = before - refused.len();
        if woken >= missing {
            return Poll::Ready(());
        }
        if woken > 0 {
            missing -= woken;
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
        backend::contract::{KeepAlive, Lease, Released},
        clock::{Deadline, Timestamp},
        error::{Error, ErrorKind, Result},
        fencing::FencingToken,
    };

    fn refused(notify: &Arc<Notify>, retry_after: u64) -> Reply {
        let notify = Arc::clone(notify);
        Reply::Refused(Contention {
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
            &Tries::default(),
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
        let tries = Tries::default();
        let nodes: Vec<_> = (0..3).map(|_| Arc::new(Notify::new())).collect();
        let pause = |mut replies: Vec<Reply>| {
            let contention = of(Majority::of(3), &mut replies, Duration::ZERO, &tries);
            contention.retry_after.unwrap() - Duration::from_secs(5)
        };
        let lease = || Reply::Granted(Arc::new(Nothing));
        assert_eq!(
            pause(vec![lease(), refused(&nodes[1], 5), refused(&nodes[2], 5)]),
            Duration::ZERO
        );
        for _ in 0..20 {
            let paused = pause(vec![refused(&nodes[0], 5), lease(), refused(&nodes[2], 5)]);
            assert!(paused >= SLOT && paused <= SLOT * 8, "{paused:?}");
        }
        assert_eq!(
            pause(vec![
                refused(&nodes[0], 5),
                refused(&nodes[1], 5),
                refused(&nodes[2], 5)
            ]),
            Duration::ZERO
        );
        assert_eq!(tries.splits.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn node_reserved_for_another_counts_after_its_delay() {
        let nodes: Vec<_> = (0..5).map(|_| Arc::new(Notify::new())).collect();
        let began = Instant::now();
        let tries = Tries::default();
        // One of the three deciding nodes is free already, and its state does not change.
        let mut replies = vec![
            refused(&nodes[0], 30),
            refused(&nodes[1], 1),
            refused(&nodes[2], 30),
        ];
        replies.extend([Reply::Pending, Reply::Pending]);
        let contention = of(Majority::of(5), &mut replies, Duration::ZERO, &tries);
        let mut wake = contention.wake.unwrap();
        nodes[0].notify_one();
        nodes[2].notify_one();
        assert!((&mut wake).now_or_never().is_none());
        assert!(tries.are_in_order());
        wake.await;
        assert_eq!(began.elapsed().as_secs(), 1);
        assert!(
            !tries.are_in_order() && tries.are_in_order(),
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
        let failed = || Reply::Failed(Error::new(ErrorKind::Unavailable, "down"));
        let mut replies = vec![
            refused(&node, 9),
            refused(&node, 9),
            failed(),
            failed(),
            Reply::Pending,
        ];
        let contention = of(
            Majority::of(5),
            &mut replies,
            Duration::ZERO,
            &Tries::default(),
        );
        assert!(contention.wake.is_none());
        assert_eq!(contention.retry_after, Some(UNTOLD));
    }
}
