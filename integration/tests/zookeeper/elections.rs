//! Candidates of elections: their nodes, the leader that others see, and the values it proclaims.

use std::{sync::Arc, time::Instant};

use leasehold_core::{
    ErrorKind, HolderRef, LockKey, Mode, Record, Revocation, RevokeOutcome,
    backend::{Lease, LockBackend, RecordRead, RecordReading, RecordWrite, Request},
};
use leasehold_integration::{
    leases::{acquired, acquiring, free, granted, is_refused, settled, write, written},
    proxy::{Direction, Proxy},
    server::ZookeeperServer,
    steps::{is_a_fault, millis},
};
use leasehold_zookeeper::{
    ZookeeperBackend,
    zookeeper_client::{Client, CreateMode},
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::support::{SOON, members, nothing_left, ttl, until};

fn key() -> LockKey {
    LockKey::new("k").unwrap()
}

fn request() -> Request {
    Request::new(key()).with_ttl(ttl(10)).with_label("web-3")
}

fn candidate(proposal: &str) -> Request {
    request().with_proposal(proposal.as_bytes())
}

async fn backend(server: &ZookeeperServer, options: &str) -> Arc<ZookeeperBackend> {
    let url = format!("{}{options}", server.url());
    ZookeeperBackend::connect(&url).await.unwrap()
}

async fn two_backends(
    server: &ZookeeperServer,
    options: &str,
) -> (Arc<ZookeeperBackend>, Arc<ZookeeperBackend>) {
    (
        backend(server, options).await,
        backend(server, options).await,
    )
}

async fn operator(server: &ZookeeperServer) -> Client {
    Client::connect(&server.addr().to_string()).await.unwrap()
}

/// Starts to wait, and returns once this number of nodes is there.
async fn queued(
    server: &ZookeeperServer,
    backend: &Arc<ZookeeperBackend>,
    request: Request,
    count: usize,
) -> JoinHandle<Arc<dyn Lease>> {
    let waiting = acquiring(backend, request);
    until("all are queued", || members(server).len() == count).await;
    waiting
}

async fn read(backend: &Arc<ZookeeperBackend>, watch: bool) -> RecordReading {
    let mut read = RecordRead::new(key());
    (read.while_held, read.watch) = (true, watch);
    Arc::clone(backend).read_record(read).await.unwrap()
}

async fn leader(backend: &Arc<ZookeeperBackend>) -> Option<Record> {
    read(backend, false).await.record
}

/// Returns the value of the leader.
async fn value(backend: &Arc<ZookeeperBackend>) -> Option<String> {
    let leader = leader(backend).await?;
    Some(String::from_utf8(leader.value).unwrap())
}

async fn record(backend: &Arc<ZookeeperBackend>) -> Option<Record> {
    let read = RecordRead::new(key());
    Arc::clone(backend).read_record(read).await.unwrap().record
}

async fn holder(backend: &Arc<ZookeeperBackend>) -> HolderRef {
    let mut holders = backend.inspect(&key()).await.unwrap().holders;
    assert_eq!(holders.len(), 1);
    holders.remove(0)
}

const KINDS: [(&str, &str); 2] = [("", "-latch-"), ("?election=selector", "-lock-")];

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_is_one_node_with_its_proposal() {
    let server = ZookeeperServer::start().unwrap();
    let operator = operator(&server).await;
    for (options, mark) in KINDS {
        let one = backend(&server, options).await;
        assert!(one.capabilities().proposals);
        let lease = acquired(&one, candidate("node-3:8080")).await;
        let nodes = members(&server);
        let node = nodes.first().unwrap();
        assert!(nodes.len() == 1 && node.contains(mark), "{nodes:?}");
        let (data, stat) = operator.get_data(node).await.unwrap();
        assert_eq!(data, b"node-3:8080");
        let shown = leader(&one).await.unwrap();
        assert_eq!(shown.value, data);
        assert_eq!((shown.token, shown.sequence), (lease.fencing_token(), 1));
        assert_eq!(shown.version, u64::try_from(stat.mzxid).unwrap());
        // The proposal is no record.
        assert_eq!(record(&one).await, None);
        free(lease).await;
        assert_eq!(leader(&one).await, None);
        nothing_left(&server, SOON);
    }
}

/// The request is refused before it needs a server.
#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_that_asks_for_a_revocation_is_refused() {
    let server = ZookeeperServer::start().unwrap();
    let one = backend(&server, "").await;
    let odd = candidate("__REVOKE__ node-3");
    let refused = Arc::clone(&one).acquire(odd.clone()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    let refused = Arc::clone(&one).try_acquire(odd).await.map(drop);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(members(&server).len(), 0);

    let lease = acquired(&one, candidate("node-3")).await;
    let odd = Arc::clone(&lease).write_record(write(1, "__REVOKE__"));
    assert_eq!(odd.await.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(value(&one).await.as_deref(), Some("node-3"));
    let next = Arc::clone(&lease).write_record(write(2, "__REVOKE"));
    next.await.unwrap();
    free(lease).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_candidate_that_leads_is_shown() {
    let server = ZookeeperServer::start().unwrap();
    for (options, _) in KINDS {
        let (one, two) = two_backends(&server, options).await;
        let first = acquired(&one, candidate("first")).await;
        let before = leader(&two).await.unwrap();
        let waiting = queued(&server, &two, candidate("second"), 2).await;
        assert_eq!(leader(&two).await.unwrap(), before);
        free(first).await;
        let second = granted(waiting).await;
        let after = leader(&one).await.unwrap();
        assert_eq!(after.value, b"second");
        assert_eq!(after.token, second.fencing_token());
        assert!(after.token > before.token);
        assert_ne!(after.owner, before.owner);
        free(second).await;
    }
}

/// A mutex holds, and candidates wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_mutex_of_the_same_name_is_no_leader() {
    let server = ZookeeperServer::start().unwrap();
    for options in ["", "?election=selector", "?exclusive=readwrite"] {
        let (one, two) = two_backends(&server, options).await;
        let mutex = acquired(&one, request()).await;
        let waiting = queued(&server, &two, candidate("second"), 2).await;
        assert_eq!(leader(&two).await, None);
        written(&mutex, write(1, "a record")).await;
        assert_eq!(value(&two).await.as_deref(), Some("a record"));
        let seen = record(&two).await.unwrap();
        free(mutex).await;
        let lease = granted(waiting).await;
        assert_eq!(value(&one).await.as_deref(), Some("second"));
        written(&lease, write(1, "third")).await;
        assert_eq!(value(&one).await.as_deref(), Some("third"));
        assert_eq!(record(&one).await, Some(seen), "the term wrote the record");
        free(lease).await;
        assert_eq!(leader(&two).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_mutexes_and_readers_exclude_each_other() {
    let server = ZookeeperServer::start().unwrap();
    let requests = || {
        [
            (false, candidate("one")),
            (false, request()),
            (true, request().with_mode(Mode::Shared)),
        ]
    };
    let options = [
        "",
        "?election=selector",
        "?exclusive=readwrite",
        "?election=selector&exclusive=readwrite",
    ];
    let mut backends = Vec::new();
    for options in options {
        backends.push((options, backend(&server, options).await));
    }
    for (here, one) in &backends {
        for (there, two) in &backends {
            for (reads, holds) in requests() {
                let lease = acquired(one, holds.clone()).await;
                for (reads_too, asks) in requests() {
                    assert_eq!(
                        is_refused(two, asks.clone()).await,
                        !(reads && reads_too),
                        "{here:?}: {holds:?}; {there:?}: {asks:?}"
                    );
                }
                free(lease).await;
                nothing_left(&server, SOON);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proclaimed_value_is_seen_and_counts_once() {
    let server = ZookeeperServer::start().unwrap();
    for (options, _) in KINDS {
        let (one, two) = two_backends(&server, options).await;
        let lease = acquired(&one, candidate("first")).await;
        let mut last = leader(&two).await.unwrap();
        // The same value again is a write of its own.
        for (sequence, value) in [(1, "a"), (2, "a"), (3, ""), (4, "b")] {
            let version = Arc::clone(&lease).write_record(write(sequence, value));
            let version = version.await.unwrap();
            assert!(version > last.version);
            let shown = leader(&two).await.unwrap();
            assert_eq!((shown.version, &*shown.value), (version, value.as_bytes()));
            assert_eq!((shown.owner, shown.token), (last.owner, last.token));
            last = shown;
            // Repeated, and late.
            for repeated in 1..=sequence {
                let repeated = Arc::clone(&lease).write_record(write(repeated, "late"));
                assert_eq!(repeated.await.unwrap(), version);
            }
            assert_eq!(leader(&two).await.unwrap(), last);
        }
        written(&lease, RecordWrite::clear(5)).await;
        assert_eq!(value(&two).await.as_deref(), Some(""));
        free(lease).await;
    }
}

/// The answers to a write are lost, and the client repeats it.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_proclaimed_without_an_answer_counts_once() {
    let server = ZookeeperServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let near = backend(&server, "").await;
    let url = server.url_at(proxy.addr());
    let far = ZookeeperBackend::connect(&url).await.unwrap();
    let operator = operator(&server).await;
    let lease = acquired(&far, candidate("first")).await;
    let node = members(&server).pop_first().unwrap();
    let mut unanswered = 0;
    for sequence in 1..=40 {
        let write = write(sequence, format!("write {sequence}"));
        // Cuts anywhere in the answers to the requests of a write: the read and the write.
        proxy.cut_after_bytes(Direction::ServerToClient, sequence * 10);
        let written = Arc::clone(&lease).write_record(write.clone()).await;
        proxy.heal();
        let took_effect = value(&near).await.as_deref().map(str::as_bytes) == write.value();
        unanswered += u64::from(written.is_err() && took_effect);
        let version = settled(&lease, &write).await;
        assert_eq!(settled(&lease, &write).await, version, "repeated");
        let shown = leader(&near).await.unwrap();
        assert_eq!(
            (shown.version, &*shown.value),
            (version, write.value().unwrap())
        );
        let (_, stat) = operator.get_data(&node).await.unwrap();
        assert_eq!(u64::try_from(stat.version).unwrap(), sequence);
    }
    assert!(unanswered > 0, "no answer was lost");
}

/// The write waits on its way, and arrives after another leads.
#[tokio::test(flavor = "multi_thread")]
async fn a_former_leader_proclaims_nothing() {
    let server = ZookeeperServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let near = backend(&server, "").await;
    let url = server.url_at(proxy.addr());
    let far = ZookeeperBackend::connect(&url).await.unwrap();
    let lease = acquired(&far, candidate("first")).await;
    proxy.delay(Direction::ClientToServer, millis(700));
    let late = tokio::spawn(Arc::clone(&lease).write_record(write(1, "late")));
    let seen = holder(&near).await;
    let removed = near.revoke(&seen, Revocation::Immediate).await;
    assert_eq!(removed.unwrap(), RevokeOutcome::Freed);
    let next = acquired(&near, candidate("next")).await;
    proxy.heal();
    let refused = timeout(SOON, late).await.unwrap().unwrap().unwrap_err();
    assert!(is_a_fault(refused.kind()), "{refused:?}");
    assert_eq!(value(&near).await.as_deref(), Some("next"));
    let refused = lease.write_record(write(2, "late")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Lost);
    assert_eq!(value(&near).await.as_deref(), Some("next"));
    free(next).await;
}

/// The holder watches its node, which a proclaimed value changes as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_proclaimed_notices_a_revocation() {
    let server = ZookeeperServer::start().unwrap();
    for (options, _) in KINDS {
        let one = backend(&server, options).await;
        let lease = acquired(&one, candidate("first")).await;
        for sequence in 1..=3 {
            // Once the node is watched, and before.
            sleep(millis(30 * (sequence - 1))).await;
            written(&lease, write(sequence, "next")).await;
        }
        let seen = holder(&one).await;
        assert_eq!((&*seen.label, seen.token), ("next", lease.fencing_token()));
        let revoked = one.revoke(&seen, Revocation::Graceful).await.unwrap();
        assert_eq!(revoked, RevokeOutcome::FreeWithin(None));
        // A write between the revocation and its notice does not undo it.
        let last = Arc::clone(&lease).write_record(write(4, "last"));
        last.await.unwrap();
        assert_eq!(value(&one).await.as_deref(), Some("last"));
        let begun = Instant::now();
        loop {
            match Arc::clone(&lease).renew().await {
                Err(error) if error.kind() == ErrorKind::Revoked => break,
                renewed => assert!(begun.elapsed() < SOON, "not noticed: {renewed:?}"),
            }
            sleep(millis(20)).await;
        }
        let node = members(&server).pop_first().unwrap();
        let (data, _) = operator(&server).await.get_data(&node).await.unwrap();
        assert_eq!(data, b"__REVOKE__last");
        free(lease).await;
    }
}

/// The leader may replace its proposal between the read and the write of a revocation.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_that_races_proclaimed_values_is_noticed() {
    let server = ZookeeperServer::start().unwrap();
    let (one, two) = two_backends(&server, "").await;
    for _ in 0..10 {
        let lease = acquired(&one, candidate("value")).await;
        let seen = holder(&two).await;
        let proclaiming = tokio::spawn({
            let lease = Arc::clone(&lease);
            async move {
                for sequence in 1.. {
                    let written = Arc::clone(&lease).write_record(write(sequence, "value"));
                    written.await.unwrap();
                }
            }
        });
        let revoked = two.revoke(&seen, Revocation::Graceful).await.unwrap();
        assert_eq!(revoked, RevokeOutcome::FreeWithin(None));
        proclaiming.abort();
        let node = members(&server).pop_first().unwrap();
        let (data, _) = operator(&server).await.get_data(&node).await.unwrap();
        assert!(data.starts_with(b"__REVOKE__"), "the request is gone");
        free(lease).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inspection_shows_what_candidates_propose() {
    let server = ZookeeperServer::start().unwrap();
    for (options, _) in KINDS {
        let (one, two) = two_backends(&server, options).await;
        let lease = acquired(&one, candidate("first")).await;
        let waiting = queued(&server, &two, candidate("second"), 2).await;
        // The node of a waiter for a mutex moves once.
        let mutex = acquiring(&one, request());
        let begun = Instant::now();
        let seen = loop {
            let seen = one.inspect(&key()).await.unwrap();
            if seen.waiters.len() == 2 && seen.waiters[1].label == "web-3" {
                break seen;
            }
            assert!(begun.elapsed() < SOON, "{seen:?}");
        };
        let [holder] = &seen.holders[..] else {
            panic!("{seen:?}")
        };
        assert_eq!(
            (&*holder.label, holder.token),
            ("first", lease.fencing_token())
        );
        assert_eq!(seen.waiters[0].label, "second");
        free(lease).await;
        free(granted(waiting).await).await;
        free(granted(mutex).await).await;
    }
}

/// Waits for a change of the leader after an answer. Fails if there is no notification.
async fn next(backend: &Arc<ZookeeperBackend>, change: impl AsyncFnOnce()) -> Option<String> {
    let changed = read(backend, true).await.changed;
    change().await;
    let changed = changed.expect("there is no watch");
    timeout(SOON, changed).await.expect("not notified");
    value(backend).await
}

/// The poll interval is an hour.
#[tokio::test(flavor = "multi_thread")]
async fn an_observer_is_notified_of_leaders_values_and_vacancies() {
    let server = ZookeeperServer::start().unwrap();
    let far = backend(&server, "?fallback-poll-interval=3600s").await;
    let (one, two) = two_backends(&server, "").await;
    let mut leases = Vec::new();
    // The directory does not exist.
    let seen = next(&far, async || {
        leases.push(acquired(&one, candidate("a")).await);
    });
    assert_eq!(seen.await.as_deref(), Some("a"));
    let lease = leases.pop().unwrap();
    let seen = next(&far, async || {
        written(&lease, write(1, "b")).await;
    });
    assert_eq!(seen.await.as_deref(), Some("b"));
    let waiting = queued(&server, &two, candidate("c"), 2).await;
    let seen = next(&far, async || free(lease).await);
    assert_eq!(seen.await.as_deref(), Some("c"));
    let lease = granted(waiting).await;
    assert_eq!(next(&far, async || free(lease).await).await, None);
    // The directory exists, and a mutex is held.
    let seen = next(&far, async || leases.push(acquired(&one, request()).await));
    assert_eq!(seen.await, None);
    let waiting = queued(&server, &two, candidate("d"), 2).await;
    let mutex = leases.pop().unwrap();
    let seen = next(&far, async || free(mutex).await);
    assert_eq!(seen.await.as_deref(), Some("d"));
    free(granted(waiting).await).await;
}

/// Proposals of the largest size, which together are larger than a request may be. The server
/// closes the connection on such a request.
#[tokio::test(flavor = "multi_thread")]
async fn many_large_proposals_cost_no_connection() {
    let server = ZookeeperServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let url = server.url_at(proxy.addr());
    let one = ZookeeperBackend::connect(&url).await.unwrap();
    let request = |at: usize| {
        let key = LockKey::new(format!("k{at}")).unwrap();
        let request = Request::new(key).with_ttl(ttl(20));
        request.with_proposal(vec![b'x'; Record::MAX_LEN])
    };
    let mut connections = Vec::new();
    // The directories exist in the second round, so that nodes can be created together.
    for _ in 0..3 {
        let acquiring = (0..150).map(|at| acquired(&one, request(at)));
        let leases = futures_util::future::join_all(acquiring).await;
        futures_util::future::join_all(leases.into_iter().map(free)).await;
        connections.push(proxy.counters().connections);
    }
    assert_eq!(connections, [connections[0]; 3], "connections were lost");
}

/// Another program's node without a uuid leads as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_of_another_program_is_shown_and_waited_for() {
    let server = ZookeeperServer::start().unwrap();
    let (one, operator) = (backend(&server, "").await, operator(&server).await);
    free(acquired(&one, candidate("ours")).await).await;
    let open = leasehold_zookeeper::zookeeper_client::Acls::anyone_all();
    let sequential = CreateMode::EphemeralSequential.with_acls(open);
    let created = operator.create("/k/latch-", b"theirs", &sequential).await;
    let (stat, number) = created.unwrap();
    let shown = leader(&one).await.unwrap();
    assert_eq!(shown.value, b"theirs");
    assert_eq!(
        shown.token.unwrap().get(),
        u64::try_from(stat.czxid).unwrap()
    );
    assert!(is_refused(&one, candidate("ours")).await);
    assert!(is_refused(&one, request()).await);
    let node = format!("/k/latch-{number}");
    operator.delete(&node, None).await.unwrap();
    free(acquired(&one, candidate("ours")).await).await;
}
