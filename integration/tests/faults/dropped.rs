//! Acquisitions that are dropped or cancelled at any point.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use leasehold_core::{
    ErrorKind, LockClient, LockKey,
    backend::{LockBackend, Request},
};
use leasehold_integration::{held::HeldMode, steps::millis};

use crate::{
    fixture::Fixture,
    support::{SOON, nothing_left, soon},
};

/// More polls than any acquisition needs.
const POLLS: u32 = 30;

/// Polls `inner` at most this many times, each time it is woken, and then drops it.
struct GiveUp<F> {
    inner: Option<Pin<Box<F>>>,
    polls: u32,
}

impl<F: Future> GiveUp<F> {
    fn after(polls: u32, inner: F) -> Self {
        Self {
            inner: Some(Box::pin(inner)),
            polls,
        }
    }
}

impl<F: Future> Future for GiveUp<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            self.inner = None;
            return Poll::Ready(None);
        }
        self.polls -= 1;
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(done) = inner.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        if self.polls == 0 {
            // Nothing would wake this future again.
            self.inner = None;
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}

/// Runs a function before the poll with this number, and continues.
pub(crate) struct AtPoll<F, D> {
    pub(crate) inner: Pin<Box<F>>,
    pub(crate) polls: u32,
    pub(crate) act: Option<D>,
}

impl<F: Future, D: FnOnce() + Unpin> Future for AtPoll<F, D> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0
            && let Some(act) = self.act.take()
        {
            act();
        }
        self.polls = self.polls.saturating_sub(1);
        self.inner.as_mut().poll(cx)
    }
}

/// Drops acquisitions at every poll, uncontended and contended. Returns the numbers of dropped and
/// of granted acquisitions.
async fn drop_everywhere(client: &LockClient, rival: &LockClient, mode: HeldMode) -> (u32, u32) {
    let (mut given_up, mut granted) = (0, 0);
    for polls in 0..=POLLS {
        for (contended, limited) in [(false, false), (false, true), (true, false), (true, true)] {
            let key = format!("{mode:?}{polls}{contended}{limited}");
            let other = match contended {
                true => Some(mode.rival().lock(rival, &key).await.unwrap()),
                false => None,
            };
            // Releases a few polls after the first refusal, so that the release races with the
            // drop.
            let releasing = async {
                if let Some(other) = other {
                    tokio::time::sleep(millis(u64::from(polls % 5))).await;
                    other.release().await.unwrap();
                }
            };
            let acquiring = GiveUp::after(polls, async {
                if limited {
                    mode.lock_timeout(client, &key, SOON).await
                } else {
                    mode.lock(client, &key).await.map(Some)
                }
            });
            match tokio::join!(acquiring, releasing).0 {
                None => given_up += 1,
                Some(guard) => {
                    granted += 1;
                    drop(guard.unwrap().expect("the lock was refused"));
                }
            }
            // The lock is free long before its TTL of an hour has passed.
            let next = mode.rival().lock_timeout(rival, &key, SOON).await.unwrap();
            drop(next.unwrap_or_else(|| panic!("{key} is still held")));
        }
    }
    (given_up, granted)
}

async fn drop_all_everywhere(client: &LockClient, rival: &LockClient) {
    for mode in HeldMode::all(client) {
        let (given_up, granted) = drop_everywhere(client, rival, mode).await;
        // Four are never polled.
        assert!(
            given_up > 4 && granted >= 8,
            "{given_up} dropped, {granted} granted: nothing was tested"
        );
    }
}

pub(crate) async fn acquisition_dropped_at_any_poll_leaves_nothing(fixture: &mut dyn Fixture) {
    let (client, rival) = (fixture.client().await, fixture.client().await);
    drop_all_everywhere(&client, &rival).await;
    nothing_left(fixture);
}

/// Drops acquisitions on a runtime whose background tasks run only while the case waits.
pub(crate) async fn one_thread_acquisition_dropped_leaves_nothing(fixture: &mut dyn Fixture) {
    let (url, ttl) = (fixture.url(), fixture.ttl());
    let alone = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let client = || leasehold_integration::worker::client(&url, ttl, "test");
            let (client, rival) = (client().await.unwrap(), client().await.unwrap());
            drop_all_everywhere(&client, &rival).await;
            client.close().await.unwrap();
            rival.close().await.unwrap();
        });
    };
    tokio::task::spawn_blocking(alone).await.unwrap();
    nothing_left(fixture);
}

/// Cancels acquisitions of a backend at every poll. A caller of the contract cancels and then
/// drives the future to its end.
pub(crate) async fn acquisition_cancelled_at_any_poll_leaves_nothing(fixture: &mut dyn Fixture) {
    let (client, rival) = (fixture.client().await, fixture.client().await);
    let backend: &Arc<dyn LockBackend> = client.backend();
    let (mut cancelled, mut granted) = (0, 0);
    for polls in 0..=POLLS {
        for contended in [false, true] {
            let key = format!("c{polls}{contended}");
            let other = match contended {
                true => Some(rival.mutex(key.as_str()).lock().await.unwrap()),
                false => None,
            };
            let request = Request::new(LockKey::new(&key).unwrap())
                .with_ttl(fixture.ttl())
                .with_waiting(|waiting| waiting.keeps_waiting = true);
            let mut operation = Arc::clone(backend).acquire(request.clone());
            let releasing = async {
                if let Some(other) = other {
                    tokio::time::sleep(millis(u64::from(polls % 5))).await;
                    other.release().await.unwrap();
                }
            };
            let acquiring = async {
                match GiveUp::after(polls, &mut operation).await {
                    Some(done) => done,
                    None => {
                        request.cancel();
                        soon("the cancelled acquisition ends", operation).await
                    }
                }
            };
            match tokio::join!(acquiring, releasing).0 {
                Ok(lease) => {
                    granted += 1;
                    lease.release().await.unwrap();
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
                    cancelled += 1;
                }
            }
            let next = rival.mutex(key.as_str()).lock_timeout(SOON).await.unwrap();
            drop(next.unwrap_or_else(|| panic!("{key} is still held")));
        }
    }
    assert!(
        cancelled >= 2 && granted >= 8,
        "{cancelled} cancelled, {granted} granted: nothing was tested"
    );
    nothing_left(fixture);
}
