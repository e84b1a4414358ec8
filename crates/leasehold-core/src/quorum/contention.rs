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

/// The shortest pause after a split vote, and how often it is doubled at most. Several clients that were woken together ask
/// together, and each may get some of the nodes; who pauses for the shortest random time then wins.
const SLOT: Duration = Duration::from_millis(1);
const DOUBLINGS: u32 = 5;
/// Where no node says when to try again.
const UNTOLD: Duration = Duration::from_millis(100);

/// Wakes when so many of the nodes that refused have become free that a majority is possible, after a random pause if the
/// vote was split. Takes the nodes' own wake-ups out of `replies`.
pub(super) fn of(majority: Majority, replies: &mut [Reply], took: Duration, splits: &AtomicU32) -> Contention {
    let tally = Tally::of(majority, replies.iter().map(Reply::vote));
    let split = tally.granted() > 0;
    let before = if split { splits.fetch_add(1, Ordering::Relaxed) } else { splits.swap(0, Ordering::Relaxed) };
    // A pause shorter than an attempt separates nobody.
    let pause = if split { SLOT.max(took) * (jitter::draw() % (2 << before.min(DOUBLINGS))) } else { Duration::ZERO };
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
    use crate::error::{Error, ErrorKind};

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
    async fn without_enough_nodes_that_wake_it_asks_soon() {
        let node = Arc::new(Notify::new());
        let failed = || Reply::Failed(Error::new(ErrorKind::Unavailable, "down"));
        let mut replies = vec![refused(&node, 9), refused(&node, 9), failed(), failed(), Reply::Pending];
        let contention = of(Majority::of(5), &mut replies, Duration::ZERO, &AtomicU32::new(0));
        assert!(contention.wake.is_none());
        assert_eq!(contention.retry_after, Some(UNTOLD));
    }
}
