//! Waits for a backend that fails or does not answer: they end as unavailable, not as contended.

mod support;

use std::{
    error::Error as _,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use leasehold_core::{
    Capabilities, Error, ErrorKind, HolderRef, Inspection, LockClient, LockKey, Result, Revocation,
    RevokeOutcome, TestClock, Ttl,
    backend::{Attempt, LockBackend, Request, async_trait},
};
use leasehold_local::MemoryBackend;
use support::settle;

/// The time for which a client waits for an answer.
const RESPONSE: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Server {
    Runs,
    /// A stopped server: each request fails after the response timeout.
    Stands,
    /// A server that is gone: each request fails at once.
    Refuses,
}

/// An in-memory backend behind a server that can fail.
#[derive(Debug)]
struct Remote {
    inner: Arc<MemoryBackend>,
    server: Mutex<Server>,
    attempts: AtomicUsize,
}

impl Remote {
    fn set(&self, server: Server) {
        *self.server.lock().unwrap() = server;
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("remote")
    }
}

#[async_trait]
impl LockBackend for Remote {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        self.attempts.fetch_add(1, SeqCst);
        let server = *self.server.lock().unwrap();
        match server {
            Server::Runs => Arc::clone(&self.inner).try_acquire(request).await,
            Server::Stands => {
                tokio::time::sleep(RESPONSE).await;
                Err(Error::new(ErrorKind::Indeterminate, "no answer in time"))
            }
            Server::Refuses => Err(Error::new(ErrorKind::Unavailable, "connection refused")),
        }
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        self.inner.inspect(key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        self.inner.revoke(holder, revocation).await
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Returns two clients, as two processes have them.
fn clients() -> (Arc<Remote>, LockClient, LockClient) {
    let clock = Arc::new(TestClock::new());
    let inner = Arc::new(MemoryBackend::with_clock(clock.clone()));
    let remote = Arc::new(Remote {
        inner,
        server: Mutex::new(Server::Runs),
        attempts: AtomicUsize::new(0),
    });
    let ttl = Ttl::from_secs(TTL.as_secs()).unwrap();
    let client = || {
        LockClient::builder(Arc::clone(&remote))
            .with_ttl(ttl)
            .with_clock(clock.clone())
            .build()
    };
    let (one, other) = (client(), client());
    (remote, one, other)
}

fn cause(error: &Error) -> Option<ErrorKind> {
    error
        .source()
        .and_then(|source| source.downcast_ref::<Error>())
        .map(Error::kind)
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_nobody_answers_is_unavailable_with_the_cause() {
    for (server, fault) in [
        (Server::Stands, ErrorKind::Indeterminate),
        (Server::Refuses, ErrorKind::Unavailable),
    ] {
        let (remote, client, _) = clients();
        remote.set(server);
        let error = client
            .mutex("a")
            .lock_timeout(Duration::from_secs(6))
            .await
            .unwrap_err();
        assert_eq!(
            (error.kind(), cause(&error)),
            (ErrorKind::Unavailable, Some(fault)),
            "{error:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_shorter_than_the_response_timeout_is_unavailable() {
    let (remote, client, _) = clients();
    remote.set(Server::Stands);
    let error = client
        .mutex("a")
        .lock_timeout(RESPONSE / 2)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("did not answer"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn waiters_behind_an_unanswered_one_are_unavailable() {
    for limit in [RESPONSE / 2, RESPONSE * 4] {
        let (remote, client, _) = clients();
        remote.set(Server::Stands);
        let owner = client.reentrant_owner();
        let mut tasks = Vec::new();
        for task in 0..8 {
            let (client, owner) = (client.clone(), owner.clone());
            tasks.push(tokio::spawn(async move {
                if task < 4 {
                    client.mutex("a").lock_timeout(limit).await.map(drop)
                } else {
                    owner.lock_timeout("b", limit).await.map(drop)
                }
            }));
        }
        for (number, task) in tasks.into_iter().enumerate() {
            let error = task.await.unwrap().unwrap_err();
            if number >= 4 {
                // A task that becomes the first of its owner's queue as its time ends has one
                // attempt left.
                assert!(
                    matches!(
                        error.kind(),
                        ErrorKind::Unavailable | ErrorKind::Indeterminate
                    ),
                    "{error:?}"
                );
                continue;
            }
            let expected = (limit > RESPONSE).then_some(ErrorKind::Indeterminate);
            assert_eq!(
                (error.kind(), cause(&error)),
                (ErrorKind::Unavailable, expected),
                "{error:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn wait_for_any_holder_is_contention() {
    let limit = Duration::from_secs(2);
    let (_, client, other) = clients();
    let held = other.mutex("a").lock().await.unwrap();
    let waits = |client: &LockClient| {
        let client = client.clone();
        tokio::spawn(async move { client.mutex("a").lock_timeout(limit).await.unwrap() })
    };
    // The first task of a client sends a request, and all later ones queue in the process. The
    // holder's own client has tasks that queue behind the holder.
    for client in [&client, &other] {
        for waiting in [waits(client), waits(client), waits(client)] {
            assert!(waiting.await.unwrap().is_none());
        }
    }
    drop(held);
    // Another task is granted the lock while more tasks queue, and holds it.
    let (owner, another) = (client.reentrant_owner(), client.reentrant_owner());
    let _held = owner.lock_timeout("a", limit).await.unwrap().unwrap();
    assert!(another.lock_timeout("a", limit).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_was_refused_before_the_outage_is_contention() {
    let (remote, client, other) = clients();
    let held = other.mutex("a").lock().await.unwrap();
    let waiting = |limit: u64| {
        let mutex = client.mutex("a");
        tokio::spawn(async move { mutex.lock_timeout(Duration::from_secs(limit)).await })
    };
    let (asks, queues) = (waiting(5), waiting(5));
    settle().await;
    remote.set(Server::Stands);
    // The waiter must retry, because the holder's release cannot reach the server.
    drop(held);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let late = waiting(2);
    assert!(asks.await.unwrap().unwrap().is_none());
    assert!(queues.await.unwrap().unwrap().is_none());
    // This wait began after the server had stopped answering.
    assert_eq!(
        late.await.unwrap().unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test(start_paused = true)]
async fn wait_for_a_holder_that_left_before_an_outage_is_contention() {
    let (remote, client, _) = clients();
    let held = client.mutex("a").lock().await.unwrap();
    let waits = |limit| {
        let client = client.clone();
        tokio::spawn(async move { client.mutex("a").lock_timeout(limit).await.unwrap() })
    };
    let (first, second) = (waits(RESPONSE * 4), waits(RESPONSE * 2));
    tokio::time::sleep(RESPONSE / 2).await;
    remote.set(Server::Stands);
    drop(held);
    assert!(second.await.unwrap().is_none());
    assert!(first.await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn faults_of_the_first_and_of_later_attempts_are_retried() {
    for refused_first in [false, true] {
        for server in [Server::Stands, Server::Refuses] {
            let (remote, client, other) = clients();
            let held = if refused_first {
                Some(other.mutex("a").lock().await.unwrap())
            } else {
                None
            };
            if !refused_first {
                remote.set(server);
            }
            let mutex = client.mutex("a");
            let waiting =
                tokio::spawn(async move { mutex.lock_timeout(Duration::from_secs(6)).await });
            settle().await;
            remote.set(server);
            drop(held);
            tokio::time::sleep(RESPONSE * 3).await;
            assert!(
                !waiting.is_finished(),
                "{server:?}, refused first: {refused_first}"
            );
            remote.set(Server::Runs);
            assert!(waiting.await.unwrap().unwrap().unwrap().is_held());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unlimited_waiters_retry_an_outage_for_one_ttl() {
    let (remote, client, _) = clients();
    remote.set(Server::Stands);
    let begun = tokio::time::Instant::now();
    let waits = || {
        let mutex = client.mutex("a");
        tokio::spawn(async move { mutex.lock().await.map(drop).map_err(|error| error.kind()) })
    };
    let early: Vec<_> = (0..20).map(|_| waits()).collect();
    tokio::time::sleep(TTL / 2).await;
    let late = waits();
    for waiting in early {
        assert_eq!(waiting.await.unwrap(), Err(ErrorKind::Indeterminate));
    }
    // In simulated time, the elapsed time is exactly the requested wait.
    let took = begun.elapsed();
    assert!(took >= TTL && took < TTL + RESPONSE * 3, "{took:?}");
    assert!(!late.is_finished());
    remote.set(Server::Runs);
    assert_eq!(late.await.unwrap(), Ok(()));
}
