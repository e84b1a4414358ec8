use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::join_all;
use leasehold_core::{
    ErrorKind, LockClient, LockGuard, LockKey, Result, Ttl,
    backend::{LockBackend, Request},
};
use leasehold_integration::{
    held::Held,
    leftovers,
    proxy::{Direction, Proxy},
    server::RedisServer,
};

use crate::support::{
    PATIENCE, Stage, client_of, is_a_fault, millis, nothing_left, nothing_panicked, token,
};

/// Leftovers would stay this long, so no test passes because of an expiry.
pub(crate) const LONG_TTL: u64 = 60_000;

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

/// The kind of lock to acquire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Mutex,
    Read,
    Permit,
}

impl What {
    async fn lock(
        self,
        client: &LockClient,
        key: &str,
        limit: Option<Duration>,
    ) -> Result<Option<Held>> {
        let lock = |guard: Option<LockGuard>| guard.map(Held::from);
        Ok(match (self, limit) {
            (Self::Mutex, None) => Some(client.mutex(key).lock().await?.into()),
            (Self::Mutex, Some(limit)) => lock(client.mutex(key).lock_timeout(limit).await?),
            (Self::Read, None) => Some(client.rwlock(key).read().await?.into()),
            (Self::Read, Some(limit)) => lock(client.rwlock(key).read_timeout(limit).await?),
            (Self::Permit, None) => Some(client.semaphore(key, 1).acquire().await?.into()),
            (Self::Permit, Some(limit)) => client
                .semaphore(key, 1)
                .acquire_timeout(limit)
                .await?
                .map(Held::from),
        })
    }

    /// Returns the kind of lock that conflicts with this one.
    fn rival(self) -> Self {
        if self == Self::Read {
            Self::Mutex
        } else {
            self
        }
    }
}

/// Drops acquisitions at every poll, uncontended and contended. Returns the numbers of dropped and
/// of granted acquisitions; both must occur.
async fn drop_everywhere(client: &LockClient, rival: &LockClient, what: What) -> (u32, u32) {
    let (mut given_up, mut granted) = (0, 0);
    for polls in 0..=POLLS {
        for (contended, limit) in [
            (false, None),
            (false, Some(PATIENCE)),
            (true, None),
            (true, Some(PATIENCE)),
        ] {
            let key = format!("{what:?}{polls}{contended}{limit:?}");
            let other = if contended {
                what.rival().lock(rival, &key, None).await.unwrap()
            } else {
                None
            };
            // Releases a few polls after the first refusal, so that the release races with the
            // drop.
            let releasing = async {
                if let Some(other) = other {
                    tokio::time::sleep(millis(u64::from(polls % 5))).await;
                    other.release().await.unwrap();
                }
            };
            match tokio::join!(
                GiveUp::after(polls, what.lock(client, &key, limit)),
                releasing
            )
            .0
            {
                None => given_up += 1,
                Some(guard) => {
                    granted += 1;
                    drop(guard.unwrap().expect("the lock was refused"));
                }
            }
            // The lock must be free immediately, not after an expiry.
            let next = what.rival().lock(rival, &key, Some(millis(3000))).await;
            drop(
                next.unwrap()
                    .unwrap_or_else(|| panic!("{key} is still held")),
            );
        }
    }
    (given_up, granted)
}

/// Drops acquisitions of mutexes, read locks and permits.
pub(crate) async fn drop_all_everywhere(url: &str) {
    let (client, rival) = (
        client_of(url, LONG_TTL).await,
        client_of(url, LONG_TTL).await,
    );
    for what in [What::Mutex, What::Read, What::Permit] {
        let (given_up, granted) = drop_everywhere(&client, &rival, what).await;
        println!("{url}, {what:?}: {given_up} given up, {granted} granted");
        // Four are never polled.
        assert!(
            given_up > 4 && granted >= 8,
            "{given_up} dropped, {granted} granted: nothing was tested"
        );
    }
}

/// Cancels acquisitions of a backend at every poll. A caller of the contract cancels and then
/// drives the future to its end.
pub(crate) async fn cancel_everywhere(
    backend: Arc<dyn LockBackend>,
    rival: &LockClient,
) -> (u32, u32) {
    let (mut cancelled, mut granted) = (0, 0);
    for polls in 0..=POLLS {
        for contended in [false, true] {
            let key = format!("c{polls}{contended}");
            let other = if contended {
                Some(rival.mutex(key.as_str()).lock().await.unwrap())
            } else {
                None
            };
            let ttl = Ttl::from_millis(LONG_TTL).unwrap();
            let request = Request::new(LockKey::new(&key).unwrap())
                .with_ttl(ttl)
                .with_waiting(|waiting| waiting.keeps_waiting = true);
            let mut operation = Arc::clone(&backend).acquire(request.clone());
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
                        tokio::time::timeout(millis(5000), operation)
                            .await
                            .expect("the cancelled acquisition hangs")
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
            let next = rival.mutex(key.as_str()).lock_timeout(millis(3000)).await;
            drop(
                next.unwrap()
                    .unwrap_or_else(|| panic!("{key} is still held")),
            );
        }
    }
    (cancelled, granted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acquisition_dropped_at_any_poll_leaves_nothing_on_redis() {
    let server = RedisServer::start().unwrap();
    drop_all_everywhere(&server.url()).await;
    nothing_left(&server, millis(3000));
    nothing_panicked();
}

/// The background tasks of this runtime run only while the test waits.
#[tokio::test]
async fn one_thread_acquisition_dropped_leaves_nothing_on_redis() {
    let server = RedisServer::start().unwrap();
    drop_all_everywhere(&server.url()).await;
    tokio::task::spawn_blocking(move || nothing_left(&server, millis(3000)))
        .await
        .unwrap();
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acquisition_dropped_at_any_poll_leaves_nothing_in_files() {
    let stage = Stage::on_files(LONG_TTL);
    drop_all_everywhere(stage.url()).await;
    leftovers::nothing_left(millis(3000), || leftovers::files(&stage.locks())).unwrap();
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acquisition_cancelled_at_any_poll_leaves_nothing() {
    let server = RedisServer::start().unwrap();
    let stage = Stage::on_files(LONG_TTL);
    for url in [server.url(), stage.url().to_owned()] {
        let (client, rival) = (
            client_of(&url, LONG_TTL).await,
            client_of(&url, LONG_TTL).await,
        );
        let (cancelled, granted) = cancel_everywhere(Arc::clone(client.backend()), &rival).await;
        assert!(
            cancelled >= 2 && granted >= 8,
            "{url}: {cancelled} cancelled, {granted} granted: nothing was tested"
        );
    }
    nothing_left(&server, millis(3000));
    leftovers::nothing_left(millis(3000), || leftovers::files(&stage.locks())).unwrap();
    nothing_panicked();
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

/// The point at which a connection is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cut {
    /// Before this poll of the acquisition.
    Poll(u32),
    Chunks(Direction, u64),
    Bytes(Direction, u64),
}

/// The TTL of what a cut connection may leave, which must expire.
const TTL: u64 = 1000;

/// Cuts the connection during an acquisition and verifies the outcome.
async fn cut_within(server: &RedisServer, cut: Cut, contended: bool) -> bool {
    let proxy = Proxy::start(server.addr()).unwrap();
    let key = format!("{cut:?}{contended}");
    let client = client_of(&server.url_at(proxy.addr()), TTL).await;
    client
        .mutex("warm")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let rival = client_of(&server.url(), TTL).await;
    let other = if contended {
        Some(rival.mutex(key.as_str()).lock().await.unwrap())
    } else {
        None
    };
    let mut at_poll = u32::MAX;
    match cut {
        Cut::Poll(polls) => at_poll = polls,
        Cut::Chunks(direction, chunks) => proxy.cut_after_chunks(direction, chunks),
        Cut::Bytes(direction, bytes) => proxy.cut_after_bytes(direction, bytes),
    }
    let mutex = client.mutex(key.as_str());
    let releasing = async {
        if let Some(other) = other {
            tokio::time::sleep(millis(100)).await;
            other.release().await.unwrap();
        }
    };
    let locking = tokio::time::timeout(
        millis(8000),
        AtPoll {
            inner: Box::pin(mutex.lock_timeout(millis(3000))),
            polls: at_poll,
            act: Some(|| proxy.disconnect()),
        },
    );
    let (outcome, ()) = tokio::join!(locking, releasing);
    match outcome.unwrap_or_else(|_| panic!("{cut:?}, contended {contended}: the call hangs")) {
        Ok(None) => assert!(contended, "{cut:?}: refused without a holder"),
        Ok(Some(guard)) => {
            assert!(guard.is_held() && token(&guard) > 0);
            let released = guard.release().await;
            assert!(
                released
                    .as_ref()
                    .map_or_else(|error| is_a_fault(error.kind()), |_| true),
                "{released:?}"
            );
        }
        Err(error) => assert!(
            is_a_fault(error.kind()),
            "{cut:?}, contended {contended}: {error:?}"
        ),
    }
    let next = rival
        .mutex(key.as_str())
        .lock_timeout(millis(2 * TTL))
        .await;
    next.unwrap()
        .unwrap_or_else(|| panic!("{cut:?}, contended {contended}: still held"))
        .release()
        .await
        .unwrap();
    proxy.counters().trips > 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_anywhere_in_acquisition_leaves_no_lock_and_no_waiter() {
    let server = RedisServer::start().unwrap();
    let both = [Direction::ClientToServer, Direction::ServerToClient];
    let chunks = both
        .into_iter()
        .flat_map(|direction| (0..8).map(move |chunks| Cut::Chunks(direction, chunks)));
    let bytes = both.into_iter().flat_map(|direction| {
        (1..400)
            .step_by(20)
            .map(move |bytes| Cut::Bytes(direction, bytes))
    });
    let polls = (0..8).map(Cut::Poll);
    let cases: Vec<_> = polls
        .chain(chunks)
        .chain(bytes)
        .flat_map(|cut| [(cut, false), (cut, true)])
        .collect();
    let mut cuts = 0;
    for some in cases.chunks(16) {
        let mut running = Vec::new();
        for (cut, contended) in some {
            running.push(cut_within(&server, *cut, *contended));
        }
        cuts += join_all(running)
            .await
            .into_iter()
            .filter(|cut| *cut)
            .count();
    }
    assert!(
        cuts >= 24,
        "only {cuts} of {} connections were cut",
        cases.len()
    );
    nothing_left(&server, millis(2 * TTL + 3000));
    nothing_panicked();
}
