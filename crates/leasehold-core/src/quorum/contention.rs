//! When to try again after an attempt that nobody lost alone.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicU32, Ordering},
    task::Poll,
    time::Duration,
};

use crate::{
    backend::{BoxFuture, Contention},
    quorum::{
        attempt::Reply,
        jitter,
        tally::{Majority, Tally},
    },
};

/// The shortest pause after a split vote, and how often the longest is doubled at most. Several clients that were woken together
/// ask together, and each may get some of the nodes.
const SLOT: Duration = Duration::from_millis(1);
const DOUBLINGS: u32 = 2;
/// Where no node says when to try again.
const UNTOLD: Duration = Duration::from_millis(100);

/// Wakes when so many of the nodes that refused have become free that a majority is possible, after a random pause if the
/// vote was split. Takes the nodes' own wake-ups out of `replies`.
pub(super) fn of(majority: Majority, replies: &mut [Reply], took: Duration, splits: &AtomicU32) -> Contention {
    let tally = Tally::of(majority, replies.iter().map(Reply::vote));
    let split = tally.granted() > 0;
    // Of those among whom a vote was split only one has the first node. It asks again at once, when the others have released
    // theirs; they let it, for a time in which an attempt can be over. Where they do not agree on which node is the first, it
    // takes a few rounds more.
    let answered = replies.iter().find(|reply| matches!(reply, Reply::Granted(_) | Reply::Refused(_)));
    let first = matches!(answered, Some(Reply::Granted(_)));
    let before = if split { splits.fetch_add(1, Ordering::Relaxed) } else { splits.swap(0, Ordering::Relaxed) };
    let pause = if split && !first {
        SLOT.max(took) * (1 + jitter::draw() % (2 << before.min(DOUBLINGS)))
    } else {
        Duration::ZERO
    };
    let refusals = replies.iter_mut().filter_map(|reply| match reply {
        Reply::Refused(contention) => Some(std::mem::take(contention)),
        _ => None,
    });
    let (mut wakes, mut times, mut last_token) = (Vec::new(), Vec::new(), None);
    for refusal in refusals {
        last_token = last_token.max(refusal.last_token);
        times.extend(refusal.retry_after);
        match (refusal.wake, refusal.retry_after) {
            (Some(wake), _) => wakes.push(wake),
            (None, retry_after) => wakes.push(Box::pin(tokio::time::sleep(retry_after.unwrap_or(UNTOLD)))),
        }
    }
    let needed = tally.wakes_needed();
    times.sort_unstable();
    // When as many of the holders' grants have ended. Nodes that failed do not wake: without enough that do, ask soon.
    let retry_after = if wakes.len() < needed { UNTOLD } else { times.get(needed - 1).copied().unwrap_or(UNTOLD) };
    let wake = (wakes.len() >= needed).then(|| Box::pin(enough(wakes, needed, pause)) as BoxFuture<'static, ()>);
    Contention { retry_after: Some(retry_after + pause), last_token, wake }
}

async fn enough(mut wakes: Vec<BoxFuture<'static, ()>>, needed: usize, pause: Duration) {
    let enough = wakes.len().saturating_sub(needed);
    poll_fn(|cx| {
        wakes.retain_mut(|wake| wake.as_mut().poll(cx).is_pending());
        if wakes.len() <= enough { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    drop(wakes);
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use tokio::sync::Notify;

    use super::*;
    use crate::{
        backend::{Lease, Released, Upkeep},
        clock::{Deadline, Moment},
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
    async fn it_wakes_when_a_majority_may_be_free_and_not_at_the_first_node() {
        let nodes: Vec<_> = (0..5).map(|_| Arc::new(Notify::new())).collect();
        let mut replies: Vec<_> = nodes.iter().zip([5, 1, 4, 2, 3]).map(|(node, after)| refused(node, after)).collect();
        let contention = of(Majority::of(5), &mut replies, Duration::ZERO, &AtomicU32::new(0));
        assert_eq!(contention.retry_after, Some(Duration::from_secs(3)));
        let mut wake = contention.wake.unwrap();
        nodes[0].notify_one();
        nodes[4].notify_one();
        assert!((&mut wake).now_or_never().is_none());
        nodes[2].notify_one();
        assert!((&mut wake).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_split_vote_only_who_has_the_first_node_asks_again_at_once() {
        let splits = AtomicU32::new(0);
        let nodes: Vec<_> = (0..3).map(|_| Arc::new(Notify::new())).collect();
        let pause = |mut replies: Vec<Reply>| {
            let contention = of(Majority::of(3), &mut replies, Duration::ZERO, &splits);
            contention.retry_after.unwrap() - Duration::from_secs(5)
        };
        let lease = || Reply::Granted(Arc::new(Nothing));
        assert_eq!(pause(vec![lease(), refused(&nodes[1], 5), refused(&nodes[2], 5)]), Duration::ZERO);
        for _ in 0..20 {
            let paused = pause(vec![refused(&nodes[0], 5), lease(), refused(&nodes[2], 5)]);
            assert!(paused >= SLOT && paused <= SLOT * 8, "{paused:?}");
        }
        assert_eq!(pause(vec![refused(&nodes[0], 5), refused(&nodes[1], 5), refused(&nodes[2], 5)]), Duration::ZERO);
        assert_eq!(splits.load(Ordering::Relaxed), 0);
    }

    #[derive(Debug)]
    struct Nothing;

    #[crate::async_trait]
    impl Lease for Nothing {
        fn fencing_token(&self) -> Option<FencingToken> {
            None
        }

        fn valid_until(&self) -> Deadline {
            Deadline::at(Moment::default())
        }

        fn upkeep(&self) -> Upkeep {
            Upkeep::Alone
        }

        async fn renew(self: Arc<Self>) -> Result<()> {
            Ok(())
        }

        async fn release(self: Arc<Self>) -> Result<Released> {
            Ok(Released::Freed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_enough_nodes_that_wake_it_asks_soon() {
        let node = Arc::new(Notify::new());
        let failed = || Reply::Failed(Error::new(ErrorKind::Unavailable, "down"));
        let mut replies = vec![refused(&node, 9), refused(&node, 9), failed(), failed(), Reply::Pending];
        let contention = of(Majority::of(5), &mut replies, Duration::ZERO, &AtomicU32::new(0));
        assert!(contention.wake.is_none());
        assert_eq!(contention.retry_after, Some(UNTOLD));
    }
}
