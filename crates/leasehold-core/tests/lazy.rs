//! A backend that connects when it is first used.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use leasehold_core::{
    Capabilities, Clock, Error, ErrorKind, Fencing, LockClient, LockKey, Mode, TestClock,
    Timestamp, Ttl,
    backend::{Attempt, LazyBackend, LockBackend, Request, async_trait},
};
use leasehold_local::MemoryBackend;
use support::{secs, settle, spy::Spy};
use tokio::sync::Semaphore;

/// A server that is down at first.
#[derive(Debug)]
struct Server {
    memory: Arc<MemoryBackend>,
    up: AtomicBool,
    attempts: AtomicUsize,
    /// Each attempt to connect takes one permit.
    answers: Semaphore,
    panics: AtomicBool,
}

impl Server {
    fn down(clock: &Arc<TestClock>) -> Arc<Self> {
        Arc::new(Self {
            memory: Arc::new(MemoryBackend::with_clock(
                Arc::clone(clock) as Arc<dyn Clock>
            )),
            up: AtomicBool::new(false),
            attempts: AtomicUsize::new(0),
            answers: Semaphore::new(Semaphore::MAX_PERMITS),
            panics: AtomicBool::new(false),
        })
    }

    async fn connect(&self) -> Result<Arc<MemoryBackend>, Error> {
        self.attempts.fetch_add(1, SeqCst);
        self.answers.acquire().await.unwrap().forget();
        assert!(!self.panics.load(SeqCst), "made to panic");
        if self.up.load(SeqCst) {
            return Ok(Arc::clone(&self.memory));
        }
        let cause = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        Err(Error::new(ErrorKind::Unavailable, "nobody listens").with_source(cause))
    }

    fn client(self: &Arc<Self>, clock: &Arc<TestClock>) -> LockClient {
        let server = Arc::clone(self);
        let lazy = LazyBackend::new(weakest(), move || {
            let server = Arc::clone(&server);
            async move { server.connect().await }
        });
        LockClient::builder(lazy)
            .with_ttl(secs(10))
            .with_clock(Arc::clone(clock) as Arc<dyn Clock>)
            .build()
    }
}

fn weakest() -> Capabilities {
    let mut capabilities = MemoryBackend::new().capabilities();
    capabilities.fencing = Fencing::None;
    capabilities.max_ttl = Ttl::MAX;
    capabilities
}

fn simulated() -> (Arc<Server>, LockClient, Arc<TestClock>) {
    let clock = Arc::new(TestClock::new());
    let server = Server::down(&clock);
    let client = server.client(&clock);
    (server, client, clock)
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_down_is_unavailable_with_the_cause() {
    let (server, client, _) = simulated();
    assert_eq!(server.attempts.load(SeqCst), 0);
    let outcomes = [
        client.mutex("k").try_lock().await.map(drop),
        client.inspect("k").await.map(drop),
        client.ping().await.map(drop),
    ];
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert_eq!(
            (error.kind(), error.backend()),
            (ErrorKind::Unavailable, Some("memory")),
            "{error}"
        );
        assert!(error.to_string().contains("nobody listens"), "{error}");
        assert!(
            std::error::Error::source(&error)
                .unwrap()
                .is::<std::io::Error>()
        );
    }
    assert_eq!(server.attempts.load(SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn requests_are_checked_against_the_connected_server() {
    let ttl = Ttl::from_secs(60).unwrap();
    let lazy = Arc::new(LazyBackend::new(weakest(), || async {
        let spy = Spy::new(MemoryBackend::new());
        *spy.watched.max_ttl.lock().unwrap() = Some(Ttl::from_secs(59).unwrap());
        Ok(spy)
    }));
    let request = || Request::new(LockKey::new("k").unwrap()).with_ttl(ttl);
    weakest().check(Mode::Exclusive, ttl).unwrap();
    for round in ["connects", "is connected"] {
        let acquired = Arc::clone(&lazy).acquire(request()).await.map(drop);
        let tried = Arc::clone(&lazy).try_acquire(request()).await.map(drop);
        for outcome in [acquired, tried] {
            assert_eq!(
                outcome.unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{round}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn once_the_server_is_up_everything_works() {
    let (server, client, _) = simulated();
    let provisional = client.capabilities();
    assert!(provisional.provisional && provisional.fencing == Fencing::None);
    client.mutex("k").try_lock().await.unwrap_err();
    server.up.store(true, SeqCst);
    let guard = client.mutex("k").lock().await.unwrap();
    assert!(guard.fencing_token().is_some());
    assert_eq!(client.inspect("k").await.unwrap().holders.len(), 1);
    client.ping().await.unwrap();
    let capabilities = client.capabilities();
    assert!(!capabilities.provisional && capabilities.fencing == Fencing::UntilDataLoss);
    client.close().await.unwrap();
    assert!(!guard.is_held());
    assert_eq!(server.attempts.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_lock_is_granted_when_the_server_comes() {
    let (server, client, _) = simulated();
    let mutex = client.mutex("k");
    let waiting = tokio::spawn(async move { mutex.lock().await });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!waiting.is_finished() && server.attempts.load(SeqCst) > 1);
    server.up.store(true, SeqCst);
    assert!(waiting.await.unwrap().unwrap().is_held());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_lock_gives_up_after_a_ttl() {
    let (_server, client, clock) = simulated();
    let before = clock.now();
    let error = client.mutex("k").lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        clock.now().since(before) >= Duration::from_secs(10) && before > Timestamp::from_nanos(0)
    );
}

#[tokio::test(start_paused = true)]
async fn one_connection_attempt_serves_all_callers() {
    let (server, client, _) = simulated();
    server.answers.forget_permits(Semaphore::MAX_PERMITS);
    server.up.store(true, SeqCst);
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..20 {
        let mutex = client.mutex(format!("k{n}"));
        asking.spawn(async move { mutex.lock().await.map(drop) });
    }
    settle().await;
    assert_eq!(server.attempts.load(SeqCst), 1);
    server.answers.add_permits(1);
    for outcome in asking.join_all().await {
        outcome.unwrap();
    }
    assert_eq!(server.attempts.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn connection_attempt_continues_without_its_caller() {
    let (server, client, _) = simulated();
    server.answers.forget_permits(Semaphore::MAX_PERMITS);
    server.up.store(true, SeqCst);
    for _ in 0..3 {
        let mutex = client.mutex("k");
        tokio::time::timeout(Duration::from_secs(1), mutex.lock())
            .await
            .unwrap_err();
    }
    assert_eq!(server.attempts.load(SeqCst), 1);
    server.answers.add_permits(1);
    settle().await;
    assert!(!client.capabilities().provisional);
    drop(client.mutex("k").try_lock().await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_panics_is_unavailable_and_tried_again() {
    let (server, client, _) = simulated();
    server.panics.store(true, SeqCst);
    let error = client.mutex("k").try_lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("made to panic"), "{error}");
    server.panics.store(false, SeqCst);
    server.up.store(true, SeqCst);
    drop(client.mutex("k").try_lock().await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_close_before_and_during_an_attempt_leaves_nothing_open() {
    let (server, client, _) = simulated();
    client.close().await.unwrap();
    assert_eq!(server.attempts.load(SeqCst), 0);
    assert_eq!(client.ping().await.unwrap_err().kind(), ErrorKind::Closed);

    let (server, client, _) = simulated();
    server.answers.forget_permits(Semaphore::MAX_PERMITS);
    server.up.store(true, SeqCst);
    let pinging = tokio::spawn({
        let client = client.clone();
        async move { client.ping().await.map(drop) }
    });
    settle().await;
    let closing = tokio::spawn({
        let client = client.clone();
        async move { client.close().await }
    });
    settle().await;
    server.answers.add_permits(1);
    closing.await.unwrap().unwrap();
    assert_eq!(
        pinging.await.unwrap().unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert!(client.capabilities().provisional);
}

#[tokio::test(start_paused = true)]
async fn bad_input_needs_no_server() {
    let (server, client, _) = simulated();
    assert_eq!(
        client.mutex("").lock().await.unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(server.attempts.load(SeqCst), 0);
}

/// A server that accepts no TTL above ten seconds.
#[derive(Debug)]
struct Narrow(Arc<MemoryBackend>);

impl std::fmt::Display for Narrow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl LockBackend for Narrow {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.0.capabilities();
        capabilities.max_ttl = secs(10);
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt, Error> {
        self.capabilities().check(request.mode(), request.ttl())?;
        Arc::clone(&self.0).try_acquire(request).await
    }
}

#[tokio::test]
async fn default_ttl_of_the_first_lock_adapts_to_the_server() {
    let client = |ttl: Option<Ttl>| {
        let lazy = LazyBackend::new(weakest(), || async {
            Ok(Narrow(Arc::new(MemoryBackend::new())))
        });
        let builder = LockClient::builder(lazy);
        match ttl {
            Some(ttl) => builder.with_ttl(ttl).build(),
            None => builder.build(),
        }
    };
    let guards = [
        client(None).mutex("k").lock().await.unwrap(),
        client(None).mutex("k").try_lock().await.unwrap().unwrap(),
        client(None)
            .mutex("k")
            .lock_timeout(Duration::from_secs(60))
            .await
            .unwrap()
            .unwrap(),
    ];
    for guard in guards {
        assert_eq!(guard.ttl(), secs(10));
    }
    // A TTL that was asked for is not adapted.
    let error = client(Some(secs(30))).mutex("k").lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}

/// A server that refuses every attempt.
#[derive(Debug)]
struct Refusing {
    kind: ErrorKind,
    attempts: AtomicUsize,
}

impl std::fmt::Display for Refusing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("refusing")
    }
}

#[async_trait]
impl LockBackend for Refusing {
    fn capabilities(&self) -> Capabilities {
        weakest()
    }

    async fn try_acquire(self: Arc<Self>, _request: Request) -> Result<Attempt, Error> {
        self.attempts.fetch_add(1, SeqCst);
        Err(Error::new(self.kind, "made to refuse"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_not_about_the_ttl_is_final() {
    for (kind, is_lazy) in [
        (ErrorKind::Denied, true),
        (ErrorKind::Denied, false),
        (ErrorKind::InvalidInput, false),
    ] {
        let server = Arc::new(Refusing {
            kind,
            attempts: AtomicUsize::new(0),
        });
        let client = if is_lazy {
            let server = Arc::clone(&server);
            LockClient::new(LazyBackend::new(weakest(), move || {
                let server = Arc::clone(&server);
                async move { Ok(server) }
            }))
        } else {
            LockClient::new(Arc::clone(&server))
        };
        let error = client.mutex("k").try_lock().await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_eq!(server.attempts.load(SeqCst), 1, "{kind:?}, {is_lazy}");
    }
}
