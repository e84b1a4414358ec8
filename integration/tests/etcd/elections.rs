//! Candidates of elections: `etcdctl elect` in both directions, proposals, and leaders that fail.

use std::sync::Arc;

use leasehold_core::{
    ErrorKind, Leader, Leaders, LockKey, Mode, Record, Released, Revocation, RevokeOutcome,
    backend::{Lease, LockBackend, RecordRead, RecordReading, RecordWrite, Request},
};
use leasehold_etcd::{
    EtcdBackend,
    etcd_client::{Client, GetOptions, KeyValue, SortOrder, SortTarget},
};
use leasehold_integration::{
    leases::{acquired, acquiring, free, granted, is_refused, settled, write, written},
    proxy::{Direction, Proxy},
    server::EtcdCluster,
    steps::{SOON, is_a_fault, millis},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    relay::{Fate, Relay},
    support::{Ctl, backend, client, executed, locks, ttl, until_locks},
};

fn key() -> LockKey {
    LockKey::new("k").unwrap()
}

/// A request without a proposal.
fn request() -> Request {
    Request::new(key()).with_ttl(ttl(60)).with_label("web-3")
}

fn candidate(proposal: impl AsRef<[u8]>) -> Request {
    request().with_proposal(proposal.as_ref())
}

/// Waits in the queue, which has `keys` keys then.
async fn waiter(
    cluster: &EtcdCluster,
    backend: &Arc<EtcdBackend>,
    request: Request,
    keys: usize,
) -> JoinHandle<Arc<dyn Lease>> {
    let waiter = acquiring(backend, request);
    until_locks(cluster, "a waiter", |found| found.len() == keys).await;
    sleep(millis(100)).await;
    assert!(!waiter.is_finished(), "two lead");
    waiter
}

async fn look(backend: &Arc<EtcdBackend>) -> Option<Record> {
    let mut read = RecordRead::new(key());
    read.while_held = true;
    Arc::clone(backend).read_record(read).await.unwrap().record
}

/// Returns the proposal of the leader.
async fn leader(backend: &Arc<EtcdBackend>) -> Option<Vec<u8>> {
    look(backend).await.map(|record| record.value)
}

/// Returns the first key of the queue, as another program reads it.
async fn first(cluster: &EtcdCluster) -> KeyValue {
    let server = Client::connect([cluster.at(0).addr().to_string()], None).await;
    let options = GetOptions::new()
        .with_prefix()
        .with_sort(SortTarget::Create, SortOrder::Ascend);
    let mut server = server.unwrap().kv_client();
    let mut found = server.get("k/", Some(options)).await.unwrap();
    found.take_kvs().swap_remove(0)
}

/// `etcdctl elect NAME PROPOSAL`, which prints its key and its proposal once it leads.
fn ctl_elect(cluster: &EtcdCluster, proposal: &str) -> Ctl {
    Ctl::start(cluster.at(0).ctl_command(&["elect", "k", proposal]))
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_elect_and_our_candidates_wait_for_each_other() {
    let cluster = EtcdCluster::start().unwrap();
    let one = backend(&cluster.url()).await;
    let lease = acquired(&one, candidate("ours")).await;
    assert_eq!(leader(&one).await.unwrap(), b"ours");

    // etcdctl waits while we lead.
    let ctl = ctl_elect(&cluster, "theirs");
    until_locks(&cluster, "two candidates", |keys| keys.len() == 2).await;
    sleep(millis(300)).await;
    assert!(!ctl.has_printed(), "two lead");
    assert_eq!(leader(&one).await.unwrap(), b"ours");
    free(lease).await;
    let place = ctl.line().await;
    assert!(place.starts_with("k/"), "{place}");
    assert_eq!(ctl.line().await, "theirs");

    // We see its proposal, and wait for it.
    let seen = look(&one).await.unwrap();
    let stored = first(&cluster).await;
    assert_eq!(stored.key(), place.as_bytes());
    assert_eq!((&*seen.value, &*seen.label), (&b"theirs"[..], ""));
    assert_eq!(seen.version, stored.mod_revision().unsigned_abs());
    let token = stored.create_revision().unsigned_abs();
    assert_eq!(seen.token.unwrap().get(), token);
    assert_eq!(look(&one).await, Some(seen.clone()));
    assert!(is_refused(&one, candidate("next")).await);
    let next = waiter(&cluster, &one, candidate("next"), 2).await;
    assert_eq!(leader(&one).await.unwrap(), b"theirs");
    ctl.interrupt();
    let next = granted(next).await;
    assert!(next.fencing_token().unwrap().get() > token);
    let seen_next = look(&one).await.unwrap();
    assert_eq!(seen_next.value, b"next");
    assert_eq!(seen_next.token, next.fencing_token());
    assert!(seen_next.version > seen.version);
    assert_ne!(seen_next.owner, seen.owner);
    free(next).await;
    assert_eq!(leader(&one).await, None);
    assert_eq!(locks(&cluster), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_of_etcdctl_sees_each_proposal() {
    let cluster = EtcdCluster::start().unwrap();
    let one = backend(&cluster.url()).await;
    let observer = Ctl::start(cluster.at(0).ctl_command(&["elect", "-l", "k"]));
    // An observer prints the key before each proposal, and may print a proposal twice.
    let sees = async |proposal: &str| {
        let mut printed = Vec::new();
        while printed.last().is_none_or(|last| last != proposal) {
            printed.push(observer.line().await);
        }
        assert!(printed[0].starts_with("k/"), "{printed:?}");
    };
    let lease = acquired(&one, candidate("first")).await;
    sees("first").await;
    for (sequence, proposal) in [(1, "second"), (2, "third")] {
        let written = Arc::clone(&lease).write_record(write(sequence, proposal));
        let version = written.await.unwrap();
        assert_eq!(look(&one).await.unwrap().version, version);
        sees(proposal).await;
    }
    let next = waiter(&cluster, &one, candidate("fourth"), 2).await;
    free(lease).await;
    sees("fourth").await;
    free(granted(next).await).await;
    let ctl = ctl_elect(&cluster, "theirs");
    sees("theirs").await;
    ctl.interrupt();
}

/// Waits until an observer sees a leader with this value.
async fn until_leads(leaders: &mut Leaders, value: &str) -> Leader {
    let seen = async {
        loop {
            match leaders.next().await.unwrap() {
                Some(leader) if leader.value == value.as_bytes() => return leader,
                _ => {}
            }
        }
    };
    timeout(SOON, seen).await.expect("not seen")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_of_a_client_is_one_of_etcdctl() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let mut leaders = other.election("k").observe();
    let term = one.election("k").campaign("ours").await.unwrap();
    until_leads(&mut leaders, "ours").await;
    term.proclaim("ready").await.unwrap();
    until_leads(&mut leaders, "ready").await;
    let ctl = ctl_elect(&cluster, "theirs");
    until_locks(&cluster, "two candidates", |keys| keys.len() == 2).await;
    assert!(!ctl.has_printed(), "two lead");
    assert_eq!(term.resign().await.unwrap(), Released::Freed);
    ctl.line().await;
    let theirs = until_leads(&mut leaders, "theirs").await;
    assert_eq!(theirs.label, "");
    let refused = one.election("k").try_campaign("next").await.unwrap();
    assert!(refused.is_none(), "two lead");
    ctl.interrupt();
    let term = timeout(SOON, other.election("k").campaign("last")).await;
    let term = term.expect("not elected").unwrap();
    let last = until_leads(&mut leaders, "last").await;
    assert_eq!(last.token, term.fencing_token());
    assert!(last.token > theirs.token);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_is_one_key_with_its_proposal() {
    let cluster = EtcdCluster::start().unwrap();
    let one = backend(&cluster.url()).await;
    let request = candidate("ours");
    let lease = acquired(&one, request.clone()).await;
    let stored = first(&cluster).await;
    let place = format!("k/{:x}-{}", stored.lease(), request.owner());
    assert_eq!(locks(&cluster), [place]);
    assert_eq!(stored.value(), b"ours");
    let seen = look(&one).await.unwrap();
    assert_eq!((seen.owner, seen.sequence), (request.owner(), 1));
    assert_eq!(seen.token, lease.fencing_token());

    let version = Arc::clone(&lease).write_record(write(1, "more")).await;
    let version = version.unwrap();
    let modified = first(&cluster).await;
    assert_eq!(modified.lease(), stored.lease());
    assert_eq!(modified.create_revision(), stored.create_revision());
    assert_eq!(modified.mod_revision().unsigned_abs(), version);
    assert!(version > seen.version);
    // A repeated write and an earlier one change nothing.
    for repeated in [write(1, "more"), write(1, "other")] {
        let written = Arc::clone(&lease).write_record(repeated).await;
        assert_eq!(written.unwrap(), version);
    }
    assert_eq!(leader(&one).await.unwrap(), b"more");
    // The same value under another sequence is another write.
    let again = Arc::clone(&lease).write_record(write(2, "more")).await;
    assert!(again.unwrap() > version);
    let refused = Arc::clone(&lease).write_record(RecordWrite::clear(3)).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(leader(&one).await.unwrap(), b"more");

    // There is no record, and a read of the record shows no proposal.
    let record = Arc::clone(&one).read_record(RecordRead::new(key())).await;
    assert_eq!(record.unwrap().record, None);
    assert_eq!(locks(&cluster).len(), 1);
    free(lease).await;
    assert_eq!(locks(&cluster), [""; 0]);
}

/// The proposals look like the values of other keys, or are at a limit.
#[tokio::test(flavor = "multi_thread")]
async fn any_proposal_is_shown_unchanged() {
    let cluster = EtcdCluster::start().unwrap();
    let one = backend(&cluster.url()).await;
    let proposals: [&[u8]; 7] = [
        b"",
        b"\0\xff\n",
        b"000000000000000000000000000000ab:web-3",
        b"leasehold-record1 1 1 000000000000000000000000000000ab 1 1 0 1\nx",
        b"%revoked/1/k/1-2",
        b"k/1-2",
        &[0xfe; Record::MAX_LEN],
    ];
    for proposal in proposals {
        let lease = acquired(&one, candidate(proposal)).await;
        assert_eq!(leader(&one).await.unwrap(), proposal);
        let next = waiter(&cluster, &one, candidate(b"next"), 2).await;
        let written = Arc::clone(&lease).write_record(write(1, b"x")).await;
        assert_eq!(leader(&one).await.unwrap(), b"x");
        let rewritten = Arc::clone(&lease).write_record(write(2, proposal)).await;
        assert!(rewritten.unwrap() > written.unwrap());
        assert_eq!(leader(&one).await.unwrap(), proposal);
        lease.clone().renew().await.unwrap();
        free(lease).await;
        free(granted(next).await).await;
    }
    for refused in [
        candidate(vec![0; Record::MAX_LEN + 1]),
        candidate(b"x").with_mode(Mode::Shared),
    ] {
        let tried = Arc::clone(&one).try_acquire(refused.clone()).await;
        assert_eq!(tried.unwrap_err().kind(), ErrorKind::InvalidInput);
        let refused = Arc::clone(&one).acquire(refused).await.unwrap_err();
        assert!(refused.to_string().contains("`k`"), "{refused}");
    }
    // Another program's proposal may be longer than ours.
    let ctl = ctl_elect(&cluster, &"x".repeat(Record::MAX_LEN + 1));
    ctl.line().await;
    let mut read = RecordRead::new(key());
    read.while_held = true;
    let refused = Arc::clone(&one).read_record(read).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("k/"), "{refused}");
}

/// The proposals of all candidates do not fit into one request.
#[tokio::test(flavor = "multi_thread")]
async fn many_candidates_with_the_longest_proposals_lead() {
    let cluster = EtcdCluster::start().unwrap();
    let one = backend(&cluster.url()).await;
    let mut leading = Vec::new();
    for number in 0..150_u8 {
        let (backend, name) = (
            Arc::clone(&one),
            LockKey::new(format!("k{number}")).unwrap(),
        );
        let request = Request::new(name.clone())
            .with_ttl(ttl(60))
            .with_proposal(vec![number; Record::MAX_LEN]);
        leading.push(tokio::spawn(async move {
            let lease = acquired(&backend, request).await;
            let mut read = RecordRead::new(name);
            read.while_held = true;
            let seen = Arc::clone(&backend).read_record(read).await.unwrap();
            (lease, number, seen.record.unwrap().value)
        }));
    }
    for leader in leading {
        let (lease, number, seen) = timeout(SOON, leader).await.unwrap().unwrap();
        assert!(seen == vec![number; Record::MAX_LEN], "{number}");
        free(lease).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_exclusive_holder_is_shown_as_the_leader() {
    let cluster = EtcdCluster::start().unwrap();
    let one = backend(&cluster.url()).await;
    // A mutex keeps candidates out. Its record is shown, and no proposal of a candidate that waits.
    let mutex = acquired(&one, request()).await;
    assert_eq!(leader(&one).await, None);
    written(&mutex, write(1, "record")).await;
    let next = waiter(&cluster, &one, candidate("next"), 3).await;
    let seen = look(&one).await.unwrap();
    assert_eq!((&*seen.value, seen.version), (&b"record"[..], 1));
    assert_eq!(seen.token, mutex.fencing_token());
    free(mutex).await;
    let leading = granted(next).await;
    assert_eq!(leader(&one).await.unwrap(), b"next");
    // The record of the name is as the mutex left it.
    let record = Arc::clone(&one).read_record(RecordRead::new(key())).await;
    assert_eq!(record.unwrap().record.unwrap().value, b"record");

    // A candidate keeps readers out, and readers keep candidates out.
    let shared = request().with_mode(Mode::Shared);
    let reader = waiter(&cluster, &one, shared, 3).await;
    free(leading).await;
    let reader = granted(reader).await;
    assert_eq!(leader(&one).await, None);
    let next = waiter(&cluster, &one, candidate("last"), 3).await;
    assert_eq!(leader(&one).await, None, "nobody leads beside a reader");
    free(reader).await;
    free(granted(next).await).await;
}

/// Go's `Mutex` has the same keys as its `Election`.
#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_lock_looks_like_a_leader() {
    let cluster = EtcdCluster::start().unwrap();
    let one = backend(&cluster.url()).await;
    let ctl = Ctl::start(cluster.at(0).ctl_command(&["lock", "k"]));
    ctl.line().await;
    assert_eq!(leader(&one).await.unwrap(), b"");
    // A key of another form keeps candidates out, and is not shown.
    let next = waiter(&cluster, &one, candidate("next"), 2).await;
    cluster.at(0).ctl(&["put", "k/other", "value"]).unwrap();
    ctl.interrupt();
    free(granted(next).await).await;
    assert_eq!(locks(&cluster), ["k/other"]);
    assert_eq!(leader(&one).await, None);
    assert!(is_refused(&one, candidate("next")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_leader_follows_the_expiry_of_the_last() {
    let cluster = EtcdCluster::start().unwrap();
    let proxy = Proxy::start(cluster.at(0).addr()).unwrap();
    let (near, far) = (
        backend(&cluster.url()).await,
        backend(&format!("etcd://{}/?timeout=1s", proxy.addr())).await,
    );
    let request = candidate("first").with_ttl(ttl(3));
    let last = acquired(&far, request.clone()).await;
    let next = waiter(&cluster, &near, candidate("second"), 2).await;
    proxy.cut();
    // The first leader is shown until its deadline.
    let begun = Instant::now();
    while !next.is_finished() {
        let shown = leader(&near).await;
        if !last.valid_until().is_past(request.now()) {
            assert_eq!(shown.unwrap(), b"first");
        }
        assert!(begun.elapsed() < SOON, "nobody leads");
        sleep(millis(20)).await;
    }
    assert!(last.valid_until().is_past(request.now()), "two lead");
    assert_eq!(leader(&near).await.unwrap(), b"second");
    let second = granted(next).await;
    assert!(second.fencing_token() > last.fencing_token());

    proxy.heal();
    let begun = Instant::now();
    let refused = loop {
        let late = Arc::clone(&last).write_record(write(1, "late")).await;
        match late.unwrap_err() {
            error if error.kind() == ErrorKind::Lost => break error,
            error => assert!(
                is_a_fault(error.kind()) && begun.elapsed() < SOON,
                "{error:?}"
            ),
        }
    };
    assert!(
        refused.to_string().contains("acquire it again"),
        "{refused}"
    );
    assert_eq!(leader(&near).await.unwrap(), b"second");
    assert_eq!(locks(&cluster).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_are_listed_and_revoked() {
    let cluster = EtcdCluster::start().unwrap();
    let (one, other) = (backend(&cluster.url()).await, backend(&cluster.url()).await);
    let lease = acquired(&one, candidate("ours")).await;
    let next = waiter(&cluster, &other, candidate("next").with_label("web-4"), 2).await;
    let seen = one.inspect(&key()).await.unwrap();
    let holder = &seen.holders[0];
    assert_eq!((seen.holders.len(), seen.waiters.len()), (1, 1));
    assert_eq!(
        (&*holder.label, &*seen.waiters[0].label),
        ("web-3", "web-4")
    );
    assert_eq!(holder.mode, Some(Mode::Exclusive));
    assert_eq!(seen.waiters[0].mode, Some(Mode::Exclusive));
    assert_eq!(holder.token, lease.fencing_token());

    // A graceful revocation leaves the leader its time, in which it may change its proposal.
    let graceful = other.revoke(holder, Revocation::Graceful).await.unwrap();
    assert!(matches!(graceful, RevokeOutcome::FreeWithin(Some(_))));
    let refused = Arc::clone(&lease).renew().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Revoked);
    written(&lease, write(1, "leaving")).await;
    assert_eq!(leader(&other).await.unwrap(), b"leaving");
    assert!(!next.is_finished());

    // An immediate one ends the term.
    let freed = other.revoke(holder, Revocation::Immediate).await.unwrap();
    assert_eq!(freed, RevokeOutcome::Freed);
    let next = granted(next).await;
    let refused = Arc::clone(&lease).write_record(write(2, "late")).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(leader(&one).await.unwrap(), b"next");
    free(next).await;

    // Another program's leader does not read the mark of a graceful revocation.
    let ctl = ctl_elect(&cluster, "theirs");
    ctl.line().await;
    let holder = &one.inspect(&key()).await.unwrap().holders[0];
    assert_eq!((&*holder.label, holder.mode), ("", None));
    let refused = one.revoke(holder, Revocation::Graceful).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let freed = one.revoke(holder, Revocation::Immediate).await.unwrap();
    assert_eq!(freed, RevokeOutcome::Freed);
    assert_eq!(leader(&one).await, None);
}

/// Reads the leader with a watch. The connection may have to come back.
async fn watched(far: &Arc<EtcdBackend>) -> RecordReading {
    let mut read = RecordRead::new(key());
    (read.while_held, read.watch) = (true, true);
    let begun = Instant::now();
    loop {
        match Arc::clone(far).read_record(read.clone()).await {
            Ok(reading) if reading.changed.is_some() => return reading,
            Ok(_) => {}
            Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
        }
        assert!(begun.elapsed() < 3 * SOON, "there is no watch");
    }
}

/// Makes a change, and waits until a watcher was notified of it.
async fn sees<T>(
    far: &Arc<EtcdBackend>,
    expected: Option<&str>,
    change: impl Future<Output = T>,
) -> T {
    let begun = Instant::now();
    let mut reading = watched(far).await;
    let changed = change.await;
    loop {
        let notified = timeout(SOON, reading.changed.unwrap()).await;
        notified.expect("not notified");
        reading = watched(far).await;
        let seen = reading.record.as_ref().map(|record| &*record.value);
        if seen == expected.map(str::as_bytes) {
            return changed;
        }
        assert!(begun.elapsed() < SOON, "{seen:?}, not {expected:?}");
    }
}

/// The poll interval is an hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_is_notified_of_leaders_and_proposals() {
    let cluster = EtcdCluster::start().unwrap();
    let proxy = Proxy::start(cluster.at(0).addr()).unwrap();
    let options = "timeout=1s&connect-timeout=1s&fallback-poll-interval=3600s";
    let far = backend(&format!("etcd://{}/?{options}", proxy.addr())).await;
    let near = backend(&cluster.url()).await;
    let lease = sees(&far, Some("a"), acquired(&near, candidate("a"))).await;
    let proposed = Arc::clone(&lease).write_record(write(1, "b"));
    sees(&far, Some("b"), proposed).await.unwrap();
    let next = waiter(&cluster, &near, candidate("c"), 2).await;
    sees(&far, Some("c"), free(lease)).await;
    let lease = granted(next).await;
    // It changes while the watcher has no connection.
    sees(&far, Some("d"), async {
        proxy.cut();
        let written = Arc::clone(&lease).write_record(write(1, "d")).await;
        proxy.heal();
        written.unwrap();
    })
    .await;
    sees(&far, None, free(lease)).await;

    let ctl = sees(&far, Some("theirs"), async {
        let ctl = ctl_elect(&cluster, "theirs");
        ctl.line().await;
        ctl
    });
    let ctl = ctl.await;
    let next = waiter(&cluster, &near, request(), 2).await;
    sees(&far, None, async { ctl.interrupt() }).await;
    // The record of a mutex, and its end.
    let mutex = granted(next).await;
    let recorded = Arc::clone(&mutex).write_record(write(1, "record"));
    sees(&far, Some("record"), recorded).await.unwrap();
    let next = waiter(&cluster, &near, candidate("e"), 3).await;
    sees(&far, Some("e"), free(mutex)).await;
    free(granted(next).await).await;
}

/// The answers to a write are lost, and the client repeats it.
#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_whose_answer_was_lost_counts_once() {
    let cluster = EtcdCluster::start().unwrap();
    let proxy = Proxy::start(cluster.at(0).addr()).unwrap();
    let options = "timeout=1s&connect-timeout=1s";
    let far = backend(&format!("etcd://{}/?{options}", proxy.addr())).await;
    let near = backend(&cluster.url()).await;
    let lease = acquired(&far, candidate("0")).await;
    let mut unanswered = 0;
    for sequence in 1..=30 {
        let write = write(sequence, sequence.to_string());
        let before = executed(&cluster, "Txn");
        // Cuts anywhere in the answer.
        proxy.cut_after_bytes(Direction::ServerToClient, sequence * 5);
        drop(Arc::clone(&lease).write_record(write.clone()).await);
        proxy.heal();
        unanswered += u64::from(executed(&cluster, "Txn") > before + 1);
        let version = settled(&lease, &write).await;
        assert_eq!(settled(&lease, &write).await, version, "repeated");
        let seen = look(&near).await.unwrap();
        assert_eq!(
            (seen.value, seen.version),
            (write.value().unwrap().to_vec(), version)
        );
        // The acquisition put the key once.
        assert_eq!(seen.sequence, sequence + 1, "it counts twice");
    }
    assert!(unanswered > 0, "no answer was lost");
}

/// The write is held up on its way until the next leader has changed its proposal.
#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_held_up_is_void_for_the_next_leader() {
    let cluster = EtcdCluster::start().unwrap();
    let proxy = Proxy::start(cluster.at(0).addr()).unwrap();
    let near = backend(&cluster.url()).await;
    let far = backend(&format!("etcd://{}/?timeout=60s", proxy.addr())).await;
    let lease = acquired(&far, candidate("first").with_ttl(ttl(600))).await;
    proxy.hold(Direction::ClientToServer);
    let late = tokio::spawn(Arc::clone(&lease).write_record(write(1, "late")));
    let holders = near.inspect(&key()).await.unwrap().holders;
    near.revoke(&holders[0], Revocation::Immediate)
        .await
        .unwrap();
    let next = acquired(&near, candidate("second")).await;
    assert_eq!(leader(&near).await.unwrap(), b"second");
    assert!(
        Arc::clone(&next)
            .write_record(write(1, "third"))
            .await
            .is_ok()
    );
    assert!(!late.is_finished());
    proxy.heal();
    let refused = timeout(SOON, late).await.unwrap().unwrap().unwrap_err();
    assert!(
        refused.kind() == ErrorKind::Lost || is_a_fault(refused.kind()),
        "{refused:?}"
    );
    let refused = Arc::clone(&lease).write_record(write(2, "late")).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(leader(&near).await.unwrap(), b"third");
    assert_eq!(locks(&cluster).len(), 1);
}

/// The first copy of a request is held up, and arrives after a later write. The request moves the
/// key of a waiter that comes to lead, or it writes a proposal.
#[tokio::test(flavor = "multi_thread")]
async fn no_late_copy_undoes_a_later_proposal() {
    let cluster = EtcdCluster::start().unwrap();
    let near = backend(&cluster.url()).await;
    for moves in [true, false] {
        let (relay, addr) = Relay::start(cluster.at(0).addr(), Fate::Late).await;
        let members = format!("{addr},{}", cluster.at(0).addr());
        let far = backend(&format!("etcd://{members}/?timeout=1s")).await;
        let held = acquired(&near, request()).await;
        let next = waiter(&cluster, &far, candidate("first"), 2).await;
        if moves {
            relay.hold();
        }
        free(held).await;
        let lease = granted(next).await;
        relay.hold();
        settled(&lease, &write(1, "second")).await;
        settled(&lease, &write(2, "third")).await;
        let before = executed(&cluster, "Txn");
        relay.deliver();
        let begun = Instant::now();
        while executed(&cluster, "Txn") == before {
            assert!(begun.elapsed() < SOON, "moves: {moves}: nothing was late");
            sleep(millis(5)).await;
        }
        assert_eq!(leader(&near).await.unwrap(), b"third", "moves: {moves}");
        free(lease).await;
    }
}
