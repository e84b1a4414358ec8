//! Lost answers, silent and slow servers, and broken connections.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{PATIENCE, Server, granted, refused, request, ttl, until, until_within};
use leasehold_core::{
    ErrorKind, LockClient, Mode, Released, Revocation, RevokeOutcome,
    backend::{LockBackend, Request},
    quorum::Provision,
};
use leasehold_integration::steps::connected;
use leasehold_redis::{RedisBackend, RedisConfig, redis};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A proxy that can drop the server's answers, close connections, and switch to another server.
struct Proxy {
    address: SocketAddr,
    server: Arc<Mutex<SocketAddr>>,
    deaf: Arc<AtomicBool>,
    cut: Arc<AtomicBool>,
    refusing: Arc<AtomicBool>,
    /// Whether the lock `k` is freed before the next connection is closed.
    freeing: Arc<AtomicBool>,
}

impl Proxy {
    async fn before(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (deaf, cut) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let (server, refusing) = (
            Arc::new(Mutex::new(server.address())),
            Arc::new(AtomicBool::new(false)),
        );
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            server: Arc::clone(&server),
            deaf: Arc::clone(&deaf),
            cut: Arc::clone(&cut),
            refusing: Arc::clone(&refusing),
            freeing: Arc::default(),
        };
        let freeing = Arc::clone(&proxy.freeing);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if refusing.load(Ordering::SeqCst) {
                    continue;
                }
                let (mut from_client, mut to_client) = client.into_split();
                let server = *server.lock().unwrap();
                let (mut from_server, mut to_server) =
                    TcpStream::connect(server).await.unwrap().into_split();
                tokio::spawn(
                    async move { tokio::io::copy(&mut from_client, &mut to_server).await },
                );
                let (deaf, cut, freeing) =
                    (Arc::clone(&deaf), Arc::clone(&cut), Arc::clone(&freeing));
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                        // If `cut` is set, the first lost answer also closes the connection.
                        if deaf.load(Ordering::SeqCst) {
                            if cut.load(Ordering::SeqCst) {
                                deaf.store(false, Ordering::SeqCst);
                                if freeing.swap(false, Ordering::SeqCst) {
                                    let mut raw = TcpStream::connect(server).await.unwrap();
                                    raw.write_all(b"DEL k\r\n").await.unwrap();
                                    assert_eq!(
                                        raw.read(&mut buffer).await.unwrap(),
                                        b":1\r\n".len()
                                    );
                                }
                                return;
                            }
                            continue;
                        }
                        if to_client.write_all(&buffer[..count]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        proxy
    }

    /// Leads new connections to `server`. Open connections stay.
    fn lead_to(&self, server: &Server) {
        *self.server.lock().unwrap() = server.address();
    }

    async fn backend(&self) -> Arc<RedisBackend> {
        self.patient_backend(Duration::from_millis(200)).await
    }

    async fn patient_backend(&self, timeout: Duration) -> Arc<RedisBackend> {
        let client = redis::Client::open(format!("redis://{}/", self.address)).unwrap();
        let config = || RedisConfig::new().with_timeout(timeout);
        connected(|| RedisBackend::from_client(&client, config()))
            .await
            .unwrap()
    }

    /// Drops all answers from now on. If `cut` is set, the first one closes the connection and new
    /// connections are refused.
    fn lose_answers(&self, cut: bool) {
        self.refusing.store(cut, Ordering::SeqCst);
        self.cut_off_an_answer(cut);
    }

    /// Drops the next answer. If `cut` is set, this also closes the connection.
    fn cut_off_an_answer(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
        self.deaf.store(true, Ordering::SeqCst);
    }

    fn heal(&self) {
        self.refusing.store(false, Ordering::SeqCst);
        self.deaf.store(false, Ordering::SeqCst);
    }
}

fn modes() -> [Request; 3] {
    [
        request("k"),
        request("k").with_mode(Mode::Shared),
        request("k").with_permit_of(1.try_into().unwrap()),
    ]
}

#[tokio::test]
async fn a_lock_whose_answer_was_lost_is_undone() {
    let server = Server::start();
    let proxy = Proxy::before(&server).await;
    let backend = proxy.backend().await;
    for cut in [false, true] {
        for wanted in modes() {
            granted(&backend, request("warm"))
                .await
                .release()
                .await
                .unwrap();
            proxy.lose_answers(cut);
            let error = Arc::clone(&backend).try_acquire(wanted).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Indeterminate, "{error}");
            if !cut {
                // The server has granted the lock.
                assert!(!server.leftovers().await.is_empty());
            }
            proxy.heal();
            until("undone", || async { server.leftovers().await.is_empty() }).await;
        }
    }
}

/// Every operation that may be repeated is repeated.
#[tokio::test]
async fn truncated_reply_costs_nothing_while_the_server_runs() {
    let server = Server::start();
    let proxy = Proxy::before(&server).await;
    let backend = proxy.patient_backend(PATIENCE).await;
    for wanted in modes() {
        granted(&backend, request("warm"))
            .await
            .release()
            .await
            .unwrap();
        proxy.cut_off_an_answer(true);
        let lease = granted(&backend, wanted.clone()).await;
        let before = lease.valid_until();
        proxy.cut_off_an_answer(true);
        Arc::clone(&lease).renew().await.unwrap();
        assert!(lease.valid_until() > before);
        proxy.cut_off_an_answer(true);
        assert_eq!(
            backend
                .inspect(&crate::support::key("k"))
                .await
                .unwrap()
                .holders
                .len(),
            1
        );
        proxy.cut_off_an_answer(true);
        assert_eq!(lease.release().await.unwrap(), Released::Freed);
        assert_eq!(server.leftovers().await, Vec::<String>::new());
    }
}

/// The first sending of a repeated attempt may have registered a waiter.
#[tokio::test]
async fn a_waiter_that_is_granted_by_the_repetition_waits_no_longer() {
    let server = Server::start();
    let other = server.backend().await;
    for wanted in modes() {
        let proxy = Proxy::before(&server).await;
        let backend = proxy.patient_backend(PATIENCE).await;
        granted(&other, wanted.as_new_owner().with_ttl(ttl(120_000))).await;
        if wanted.mode() == Mode::Shared {
            let () = redis::cmd("SET")
                .arg("k")
                .arg("writer")
                .query_async(&mut server.raw().await)
                .await
                .unwrap();
        }
        if wanted.mode().is_permit() {
            continue;
        }
        proxy.freeing.store(true, Ordering::SeqCst);
        proxy.cut_off_an_answer(true);
        let lease = Arc::clone(&backend).acquire(wanted).await.unwrap();
        let waiters = other
            .inspect(&crate::support::key("k"))
            .await
            .unwrap()
            .waiters;
        assert!(waiters.is_empty(), "{waiters:?}");
        assert_eq!(lease.release().await.unwrap(), Released::Freed);
        let () = redis::cmd("FLUSHALL")
            .query_async(&mut server.raw().await)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn release_over_a_closed_connection_reports_the_earlier_loss() {
    let server = Server::start();
    for backend in without_pushes(&server).await {
        for wanted in modes() {
            let lease = granted(&backend, wanted.as_new_owner()).await;
            let holder = backend
                .inspect(&crate::support::key("k"))
                .await
                .unwrap()
                .holders
                .remove(0);
            backend
                .revoke(&holder, Revocation::Immediate)
                .await
                .unwrap();
            kill_clients(&server).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(
                lease.release().await.unwrap(),
                Released::AlreadyLost,
                "{wanted:?}"
            );
        }
    }
}

/// The new server does not know the lock and may have granted it to another holder.
#[tokio::test]
async fn release_answered_by_a_server_without_the_lock_is_a_loss() {
    for wanted in modes() {
        let (mut server, next) = (Server::start(), Server::start());
        let proxy = Proxy::before(&server).await;
        let backend = proxy.patient_backend(PATIENCE).await;
        let lease = granted(&backend, wanted.as_new_owner().with_ttl(ttl(120_000))).await;
        proxy.lead_to(&next);
        granted(
            &next.backend().await,
            wanted.as_new_owner().with_ttl(ttl(120_000)),
        )
        .await;
        server.signal("STOP");
        let releasing = tokio::spawn(lease.release());
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.kill();
        assert_eq!(
            releasing.await.unwrap().unwrap(),
            Released::AlreadyLost,
            "{wanted:?}"
        );
    }
}

/// The first connection is closed at the next request. The second is closed when it asks the server
/// to end the first.
#[tokio::test]
async fn lost_connection_is_killed_even_if_the_next_is_lost_too() {
    let server = Server::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (proxy, to) = (listener.local_addr().unwrap(), server.address());
    let armed = Arc::new(AtomicBool::new(false));
    let closing = Arc::clone(&armed);
    tokio::spawn(async move {
        for connection in 0.. {
            let (mut from_client, mut to_client) = listener.accept().await.unwrap().0.into_split();
            let (mut from_server, mut to_server) =
                TcpStream::connect(to).await.unwrap().into_split();
            let answers =
                tokio::spawn(
                    async move { tokio::io::copy(&mut from_server, &mut to_client).await },
                );
            let closing = Arc::clone(&closing);
            tokio::spawn(async move {
                let mut buffer = [0; 65536];
                while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                    let kills = buffer[..count].windows(4).any(|word| word == b"KILL");
                    if connection == 0 && closing.load(Ordering::SeqCst) || connection == 1 && kills
                    {
                        break;
                    }
                    to_server.write_all(&buffer[..count]).await.unwrap();
                }
                answers.abort();
            });
        }
    });
    let backend = RedisBackend::connect(&format!("redis://{proxy}/?timeout=30s"))
        .await
        .unwrap();
    armed.store(true, Ordering::SeqCst);
    let error = Arc::clone(&backend)
        .try_acquire(request("k"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Indeterminate, "{error}");
    until_within(PATIENCE, "both are ended", || async {
        server
            .info("commandstats")
            .await
            .contains("cmdstat_client|kill:calls=2,")
    })
    .await;
}

/// A node that could not be used at first may turn out to be a node that is known already.
#[tokio::test]
async fn a_node_that_comes_later_and_is_another_has_no_vote() {
    let mut servers = [Server::start(), Server::start()];
    let proxy = Proxy::before(&servers[0]).await;
    let third = Server::start();
    let hosts = |third: SocketAddr| {
        format!(
            "redlock://{},{},{third}/?node-timeout=10s",
            servers[0].address(),
            servers[1].address()
        )
    };
    let usual = leasehold_redis::redlock(&hosts(third.address()))
        .await
        .unwrap();
    usual
        .provision(&Provision::new(ttl(60_000)).with_never_used(true))
        .await
        .unwrap();
    proxy.refusing.store(true, Ordering::SeqCst);
    let quorum = leasehold_redis::redlock(&hosts(proxy.address))
        .await
        .unwrap();
    let client = LockClient::new(Arc::clone(&quorum));
    client
        .mutex("k")
        .try_lock()
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    servers[1].kill();
    proxy.refusing.store(false, Ordering::SeqCst);
    let is_found = || {
        quorum.nodes()[2]
            .problem
            .as_ref()
            .is_some_and(|problem| problem.contains("same server"))
    };
    until_within(PATIENCE, "found", || async {
        let attempt = client.mutex("k").try_lock().await;
        assert!(attempt.is_err(), "one server is a majority");
        is_found()
    })
    .await;
}

#[tokio::test]
async fn gathered_locks_whose_answers_were_lost_are_undone() {
    let server = Server::start();
    let proxy = Proxy::before(&server).await;
    let backend = proxy.backend().await;
    proxy.lose_answers(false);
    let tasks: Vec<_> = (0..200)
        .map(|n| tokio::spawn(Arc::clone(&backend).try_acquire(request(&format!("k{n}")))))
        .collect();
    for task in tasks {
        let error = task.await.unwrap().unwrap_err();
        assert!(
            matches!(
                error.kind(),
                ErrorKind::Indeterminate | ErrorKind::Unavailable
            ),
            "{error}"
        );
    }
    proxy.heal();
    until("undone", || async { server.leftovers().await.is_empty() }).await;
}

#[tokio::test]
async fn a_release_whose_answer_was_lost_can_be_repeated() {
    let server = Server::start();
    let proxy = Proxy::before(&server).await;
    let backend = proxy.backend().await;
    let lease = granted(&backend, request("k")).await;
    proxy.lose_answers(true);
    let error = Arc::clone(&lease).release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Indeterminate);
    assert!(error.is_retryable());
    proxy.heal();
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_renewal_whose_answer_was_lost_leaves_the_deadline() {
    let server = Server::start();
    let proxy = Proxy::before(&server).await;
    let backend = proxy.backend().await;
    let lease = granted(&backend, request("k")).await;
    let before = lease.valid_until();
    proxy.lose_answers(true);
    assert_eq!(
        Arc::clone(&lease).renew().await.unwrap_err().kind(),
        ErrorKind::Indeterminate
    );
    assert_eq!(lease.valid_until(), before);
    proxy.heal();
    Arc::clone(&lease).renew().await.unwrap();
    assert!(lease.valid_until() > before);
}

/// Ends all connections of clients.
async fn kill_clients(server: &Server) {
    let mut raw = server.raw().await;
    let () = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("normal")
        .query_async(&mut raw)
        .await
        .unwrap();
}

/// Returns clients that notice a lost connection only when they use it. One is configured to poll,
/// and one finds no RESP3 on the server.
async fn without_pushes(server: &Server) -> [Arc<RedisBackend>; 2] {
    let mut raw = server.raw().await;
    let mut acl = redis::cmd("ACL");
    acl.arg("SETUSER")
        .arg("old")
        .arg(&["on", ">pass", "~*", "+@all", "-hello"][..]);
    let () = acl.query_async(&mut raw).await.unwrap();
    let (polling, old) = (
        format!("{}?notifications=poll", server.url()),
        format!("redis://old:pass@{}/?prefix=old:", server.address()),
    );
    [
        RedisBackend::connect(&polling).await.unwrap(),
        RedisBackend::connect(&old).await.unwrap(),
    ]
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_costs_no_operation() {
    let server = Server::start();
    for backend in without_pushes(&server).await {
        for wanted in modes() {
            for _ in 0..3 {
                kill_clients(&server).await;
                let lease = granted(&backend, wanted.as_new_owner()).await;
                kill_clients(&server).await;
                Arc::clone(&lease).renew().await.unwrap();
                kill_clients(&server).await;
                let held = backend
                    .inspect(&crate::support::key("k"))
                    .await
                    .unwrap()
                    .holders;
                assert_eq!(held.len(), 1);
                kill_clients(&server).await;
                assert_eq!(lease.release().await.unwrap(), Released::Freed);
            }
            let lease = granted(&backend, wanted.as_new_owner()).await;
            let holder = backend
                .inspect(&crate::support::key("k"))
                .await
                .unwrap()
                .holders
                .remove(0);
            kill_clients(&server).await;
            let broken = backend.revoke(&holder, Revocation::Graceful).await.unwrap();
            assert!(
                matches!(broken, RevokeOutcome::FreeWithin(Some(_))),
                "{broken:?}"
            );
            drop(lease);
            let () = redis::cmd("FLUSHALL")
                .query_async(&mut server.raw().await)
                .await
                .unwrap();
        }
    }
}

/// All servers of a quorum close idle connections at the same time.
#[tokio::test]
async fn idle_connections_that_were_closed_cost_a_quorum_nothing() {
    let servers = [Server::start(), Server::start(), Server::start()];
    let hosts: Vec<_> = servers
        .iter()
        .map(|server| server.address().to_string())
        .collect();
    let url = format!(
        "redlock://{}/?node-timeout=10s&notifications=poll",
        hosts.join(",")
    );
    let quorum = leasehold_redis::redlock(&url).await.unwrap();
    quorum
        .provision(&Provision::new(ttl(60_000)).with_never_used(true))
        .await
        .unwrap();
    let client = LockClient::new(quorum);
    for _ in 0..3 {
        for server in &servers {
            kill_clients(server).await;
        }
        let guard = client.mutex("k").try_lock().await.unwrap().unwrap();
        for server in &servers {
            kill_clients(server).await;
        }
        assert_eq!(guard.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test]
async fn stopped_server_is_reported_in_time_and_leaves_no_orphan() {
    let server = Server::start();
    let backend = server.backend().await;
    let held = granted(&backend, request("held").with_ttl(ttl(60_000))).await;
    server.signal("STOP");
    for kind in [ErrorKind::Indeterminate, ErrorKind::Unavailable] {
        let started = Instant::now();
        let error = Arc::clone(&backend)
            .try_acquire(request("k"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    }
    let started = Instant::now();
    assert!(Arc::clone(&held).renew().await.unwrap_err().is_retryable());
    assert!(started.elapsed() < PATIENCE);
    server.signal("CONT");
    // The first attempt was in the server's buffer and is executed only now.
    until("undone", || async { server.leftovers().await == ["held"] }).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.leftovers().await, ["held"]);
    Arc::clone(&held).renew().await.unwrap();
    assert_eq!(held.release().await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn a_waiter_rides_out_lost_answers() {
    let server = Server::start();
    let proxy = Proxy::before(&server).await;
    let (a, b) = (server.backend().await, proxy.backend().await);
    let held = granted(&a, request("k")).await;
    let waiting = tokio::spawn(Arc::clone(&b).acquire(request("k")));
    until("registered", || async {
        !a.inspect(&crate::support::key("k"))
            .await
            .unwrap()
            .waiters
            .is_empty()
    })
    .await;
    // The answer of the grant is lost. The waiter must not mistake its own lock for that of another
    // holder.
    proxy.cut_off_an_answer(true);
    held.release().await.unwrap();
    let lease = tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .expect("hangs")
        .unwrap()
        .unwrap();
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
    until("nothing left", || async {
        server.leftovers().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn many_at_a_dead_server_share_one_attempt_to_connect() {
    let mut server = Server::start();
    let backend = server.backend().await;
    server.kill();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let started = Instant::now();
    let tasks: Vec<_> = (0..500)
        .map(|n| tokio::spawn(Arc::clone(&backend).try_acquire(request(&format!("k{n}")))))
        .collect();
    for task in tasks {
        assert_eq!(
            task.await.unwrap().unwrap_err().kind(),
            ErrorKind::Unavailable
        );
    }
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_server_that_may_not_write_is_a_typed_error() {
    let server = Server::start();
    let backend = server.backend().await;
    let mut raw = server.raw().await;
    for (setting, value, usual) in [("maxmemory", "1", "0"), ("min-replicas-to-write", "3", "0")] {
        let set = |value: &str| {
            let mut cmd = redis::cmd("CONFIG");
            cmd.arg("SET").arg(setting).arg(value);
            cmd
        };
        let () = set(value).query_async(&mut raw).await.unwrap();
        let error = Arc::clone(&backend)
            .try_acquire(request("k"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{setting}: {error}");
        let () = set(usual).query_async(&mut raw).await.unwrap();
        granted(&backend, request("k"))
            .await
            .release()
            .await
            .unwrap();
    }
    let () = redis::cmd("REPLICAOF")
        .arg("127.0.0.1")
        .arg("1")
        .query_async(&mut raw)
        .await
        .unwrap();
    let error = Arc::clone(&backend)
        .try_acquire(request("k"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("replica"), "{error}");
    let error = RedisBackend::connect(&server.url()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

/// A primary and its replica behind one address.
struct Pair {
    servers: [Server; 2],
    primary: usize,
    address: Proxy,
}

impl Pair {
    async fn start() -> Self {
        // By default, a primary waits for more replicas before it sends its data.
        let start = || Server::with(&["--repl-diskless-sync-delay", "0"]);
        let servers = [start(), start()];
        let pair = Self {
            address: Proxy::before(&servers[0]).await,
            servers,
            primary: 0,
        };
        pair.follow().await;
        pair
    }

    fn primary(&self) -> &Server {
        &self.servers[self.primary]
    }

    fn replica(&self) -> &Server {
        &self.servers[1 - self.primary]
    }

    /// Promotes the replica. The address then leads to the demoted server.
    async fn fail_over(&mut self) {
        let mut replica = self.replica().raw().await;
        let () = redis::cmd("REPLICAOF")
            .arg("NO")
            .arg("ONE")
            .query_async(&mut replica)
            .await
            .unwrap();
        self.primary = 1 - self.primary;
        self.follow().await;
    }

    /// Leads the address to the primary again.
    fn heal(&self) {
        self.address.lead_to(self.primary());
    }

    async fn follow(&self) {
        let port = self.primary().address().port();
        let mut replica = self.replica().raw().await;
        let () = redis::cmd("REPLICAOF")
            .arg("127.0.0.1")
            .arg(port)
            .query_async(&mut replica)
            .await
            .unwrap();
        until_within(PATIENCE, "synchronous", || async {
            self.replica()
                .info("replication")
                .await
                .contains("master_link_status:up")
        })
        .await;
    }

    /// Waits until the replica has received all writes of the primary.
    async fn settle(&self) {
        let offset = |info: String, field: &str| {
            info.lines()
                .find_map(|line| {
                    line.strip_prefix(field)
                        .map(|at| at.parse::<u64>().unwrap())
                })
                .unwrap()
        };
        let written = offset(
            self.primary().info("replication").await,
            "master_repl_offset:",
        );
        until_within(PATIENCE, "replicated", || async {
            offset(
                self.replica().info("replication").await,
                "slave_repl_offset:",
            ) >= written
        })
        .await;
    }
}

/// Renews locks in each way that an answer can arrive: alone, from a script, and in a batch.
#[tokio::test]
async fn demoted_server_is_left_for_its_successor_at_the_address() {
    let mut pair = Pair::start().await;
    // The time-out is long, because a missing answer on a busy machine would also open a new
    // connection.
    let backend = pair.address.patient_backend(PATIENCE).await;
    let shared = request("shared")
        .with_mode(Mode::Shared)
        .with_ttl(ttl(120_000));
    let alone = granted(&backend, request("alone").with_ttl(ttl(120_000))).await;
    let shared = granted(&backend, shared).await;
    let mut many = Vec::new();
    for n in 0..100 {
        many.push(granted(&backend, request(&format!("k{n}")).with_ttl(ttl(120_000))).await);
    }
    for leases in [
        vec![Arc::clone(&alone)],
        vec![Arc::clone(&shared)],
        many.clone(),
    ] {
        pair.settle().await;
        pair.fail_over().await;
        for message in ["replica", "connect"] {
            let renewing = leases.iter().map(|lease| Arc::clone(lease).renew());
            for renewed in futures_util::future::join_all(renewing).await {
                let error = renewed.expect_err("renewed at a replica");
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                assert!(error.to_string().contains(message), "{error}");
            }
        }
        pair.heal();
        for lease in leases {
            lease.renew().await.unwrap();
        }
    }
    // The second grant uses plain commands.
    for _ in 0..2 {
        granted(&backend, request("new"))
            .await
            .release()
            .await
            .unwrap();
    }
    pair.settle().await;
    pair.fail_over().await;
    let error = Arc::clone(&backend)
        .try_acquire(request("new"))
        .await
        .unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && error.to_string().contains("replica"),
        "{error}"
    );
    pair.heal();
    granted(&backend, request("new"))
        .await
        .release()
        .await
        .unwrap();
    pair.settle().await;
    pair.fail_over().await;
    pair.heal();
    let releasing = many.iter().map(|lease| Arc::clone(lease).release());
    for released in futures_util::future::join_all(releasing).await {
        assert_eq!(released.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    for lease in many.into_iter().chain([alone, shared]) {
        assert_eq!(lease.release().await.unwrap(), Released::Freed);
    }
    assert_eq!(pair.primary().leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_waiter_is_granted_by_the_primary_that_took_over() {
    let mut pair = Pair::start().await;
    let backend = pair.address.patient_backend(PATIENCE).await;
    let held = granted(&backend, request("k").with_ttl(ttl(120_000))).await;
    let waiting = tokio::spawn(Arc::clone(&backend).acquire(request("k").with_ttl(ttl(120_000))));
    until("registered", || async {
        !backend
            .inspect(&crate::support::key("k"))
            .await
            .unwrap()
            .waiters
            .is_empty()
    })
    .await;
    pair.settle().await;
    pair.fail_over().await;
    pair.heal();
    held.renew().await.unwrap_err();
    let other = pair.primary().backend().await;
    let holder = other
        .inspect(&crate::support::key("k"))
        .await
        .unwrap()
        .holders
        .remove(0);
    other.revoke(&holder, Revocation::Immediate).await.unwrap();
    let lease = tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("hangs")
        .unwrap()
        .unwrap();
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
}

#[tokio::test]
async fn closing_removes_what_an_attempt_of_unknown_outcome_has_left() {
    let server = Server::start();
    for cut in [false, true] {
        let proxy = Proxy::before(&server).await;
        let client = LockClient::new(proxy.backend().await);
        client
            .mutex("warm")
            .lock()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
        proxy.lose_answers(cut);
        let error = client.mutex("k").try_lock().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Indeterminate, "{error}");
        proxy.heal();
        client.close().await.unwrap();
        assert_eq!(server.leftovers().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn closing_strikes_off_a_waiter_that_lost_its_connection() {
    let server = Server::start();
    let proxy = Proxy::before(&server).await;
    let (backend, other) = (proxy.backend().await, server.backend().await);
    let held = granted(&other, request("k")).await;
    let wanted = request("k");
    let waiting = tokio::spawn(Arc::clone(&backend).acquire(wanted.clone()));
    until("registered", || async {
        !other
            .inspect(&crate::support::key("k"))
            .await
            .unwrap()
            .waiters
            .is_empty()
    })
    .await;
    proxy.refusing.store(true, Ordering::SeqCst);
    proxy.lose_answers(true);
    backend
        .inspect(&crate::support::key("k"))
        .await
        .unwrap_err();
    wanted.cancel();
    assert_eq!(
        waiting.await.unwrap().unwrap_err().kind(),
        ErrorKind::Cancelled
    );
    proxy.refusing.store(false, Ordering::SeqCst);
    backend.close().await.unwrap();
    assert!(
        other
            .inspect(&crate::support::key("k"))
            .await
            .unwrap()
            .waiters
            .is_empty()
    );
    held.release().await.unwrap();
}

#[tokio::test]
async fn close_releases_locks_even_over_a_new_connection() {
    let server = Server::start();
    let proxy = Proxy::before(&server).await;
    let client = LockClient::new(proxy.backend().await);
    let guard = client.mutex("k").lock().await.unwrap();
    proxy.refusing.store(true, Ordering::SeqCst);
    proxy.lose_answers(true);
    client.inspect("k").await.unwrap_err();
    let closing = tokio::spawn(async move { client.close().await });
    until("lost", || async { !guard.is_held() }).await;
    // The first release has failed by then.
    tokio::time::sleep(Duration::from_millis(100)).await;
    proxy.refusing.store(false, Ordering::SeqCst);
    closing.await.unwrap().unwrap();
    assert_eq!(server.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn closing_beside_a_dead_server_ends() {
    let mut server = Server::start();
    let backend = server.backend().await;
    server.signal("STOP");
    Arc::clone(&backend)
        .try_acquire(request("k"))
        .await
        .unwrap_err();
    server.kill();
    tokio::time::timeout(PATIENCE, backend.close())
        .await
        .expect("hangs")
        .unwrap();
}

#[tokio::test]
async fn a_closed_backend_says_so() {
    let server = Server::start();
    let backend = server.backend().await;
    refused(&backend, {
        granted(&backend, request("k")).await;
        request("k")
    })
    .await;
    backend.close().await.unwrap();
    assert_eq!(
        Arc::clone(&backend)
            .try_acquire(request("k"))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Closed
    );
}
