//! Records: their place on the server, values of other programs, and writes during faults.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use leasehold_core::{
    ErrorKind, LockClient, LockKey, Mode, Record, Revocation,
    backend::{Lease, LockBackend, RecordRead, RecordWrite, Request},
};
use leasehold_integration::{
    leases::{settled, write, written},
    proxy::{Direction, Proxy},
    record_history::storm,
    server::{ZookeeperEnsemble, ZookeeperServer},
    steps::{is_a_fault, millis},
};
use leasehold_zookeeper::{
    ZookeeperBackend,
    zookeeper_client::{Acls, Client, CreateMode},
};
use tokio::time::{sleep, timeout};

use crate::support::{SOON, client, sessions, ttl};

const PLACE: &str = "/%records/k";

fn key() -> LockKey {
    LockKey::new("k").unwrap()
}

fn request() -> Request {
    Request::new(key()).with_ttl(ttl(10)).with_label("web-3")
}

/// Connects once the server serves.
async fn backend(url: &str) -> Arc<ZookeeperBackend> {
    let begun = Instant::now();
    loop {
        match ZookeeperBackend::connect(url).await {
            Ok(backend) => return backend,
            Err(error) => assert!(
                is_a_fault(error.kind()) && begun.elapsed() < SOON,
                "{error:?}"
            ),
        }
        sleep(millis(50)).await;
    }
}

async fn operator(server: &ZookeeperServer) -> Client {
    Client::connect(&server.addr().to_string()).await.unwrap()
}

async fn record(backend: &Arc<ZookeeperBackend>) -> Option<Record> {
    let read = RecordRead::new(key());
    Arc::clone(backend).read_record(read).await.unwrap().record
}

/// Acquires the lock, repeating after each fault.
async fn acquired(backend: &Arc<ZookeeperBackend>) -> Arc<dyn Lease> {
    let begun = Instant::now();
    loop {
        match Arc::clone(backend).acquire(request()).await {
            Ok(lease) => return lease,
            Err(error) => assert!(
                is_a_fault(error.kind()) && begun.elapsed() < 2 * SOON,
                "{error:?}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_one_persistent_node() {
    let server = ZookeeperServer::start().unwrap();
    let (one, operator) = (backend(&server.url()).await, operator(&server).await);
    let request = request();
    let lease = Arc::clone(&one).acquire(request.clone()).await.unwrap();
    let written = Arc::clone(&lease).write_record(write(1, "done")).await;
    assert_eq!(written.unwrap(), 1);
    let (data, stat) = operator.get_data(PLACE).await.unwrap();
    assert_eq!(stat.ephemeral_owner, 0, "it ends with a session");
    let text = String::from_utf8(data).unwrap();
    let (header, body) = text.split_once('\n').unwrap();
    let fields: Vec<_> = header.split(' ').collect();
    let (owner, token) = (request.owner().to_string(), lease.fencing_token().unwrap());
    assert_eq!(fields[..4], ["leasehold-record1", "1", "1", &owner]);
    assert_eq!(
        (fields[4], fields[6], fields[7]),
        (&*token.to_string(), "5", "4")
    );
    assert_eq!(body, "web-3done");

    // The end of the session leaves it, and a cleared record keeps its version.
    lease.write_record(RecordWrite::clear(2)).await.unwrap();
    one.close().await.unwrap();
    let (data, _) = operator.get_data(PLACE).await.unwrap();
    assert!(data.starts_with(b"leasehold-record1 2 2 "), "{data:?}");
}

/// The times are the server's: the one of the write is its node's, and a read shows the present.
#[tokio::test(flavor = "multi_thread")]
async fn times_are_those_of_the_server() {
    let server = ZookeeperServer::start().unwrap();
    let (one, operator) = (backend(&server.url()).await, operator(&server).await);
    let lease = Arc::clone(&one).acquire(request()).await.unwrap();
    lease.write_record(write(1, "done")).await.unwrap();
    let (_, stat) = operator.get_data(PLACE).await.unwrap();
    let modified = Duration::from_millis(stat.mtime.try_into().unwrap());
    let mut read = RecordRead::new(key());
    read.clock = true;
    let mut before = SystemTime::UNIX_EPOCH;
    for _ in 0..3 {
        let reading = Arc::clone(&one).read_record(read.clone()).await.unwrap();
        assert_eq!(
            reading.record.unwrap().written,
            SystemTime::UNIX_EPOCH + modified
        );
        let now = reading.now.unwrap();
        assert!(now >= before && now >= SystemTime::UNIX_EPOCH + modified);
        before = now;
    }
    let clocks = sessions(&server);
    let clocks = clocks.iter().filter(|path| path.ends_with("-clock"));
    assert_eq!(clocks.count(), 1);
}

/// A client of the user's continues after the backend: nothing of it may remain.
#[tokio::test(flavor = "multi_thread")]
async fn a_given_client_keeps_no_node_of_the_clock() {
    let server = ZookeeperServer::start().unwrap();
    let given = operator(&server).await;
    let one = ZookeeperBackend::from_client(given.clone(), Default::default());
    let one = one.await.unwrap();
    let mut read = RecordRead::new(key());
    read.clock = true;
    let reading = Arc::clone(&one).read_record(read).await.unwrap();
    assert!(reading.now.is_some() && reading.record.is_none());
    assert_eq!(sessions(&server).len(), 1);
    one.close().await.unwrap();
    assert_eq!(sessions(&server).len(), 0);
    drop(given);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_program_is_never_overwritten() {
    let server = ZookeeperServer::start().unwrap();
    let (one, operator) = (backend(&server.url()).await, operator(&server).await);
    let lease = Arc::clone(&one).acquire(request()).await.unwrap();
    written(&lease, write(1, "ours")).await;
    let refuses = async |sequence: u64, kept: &[u8], kind: ErrorKind| {
        let refused = Arc::clone(&lease)
            .write_record(write(sequence, "ours"))
            .await;
        assert_eq!(refused.unwrap_err().kind(), kind);
        let read = Arc::clone(&one).read_record(RecordRead::new(key())).await;
        let refused = read.unwrap_err();
        assert_eq!(refused.kind(), kind);
        assert!(refused.to_string().contains("`k`"), "{refused}");
        assert_eq!(operator.get_data(PLACE).await.unwrap().0, kept);
    };
    operator.set_data(PLACE, b"theirs", None).await.unwrap();
    refuses(2, b"theirs", ErrorKind::Conflict).await;
    // The version of this node is the one after our first write.
    operator.delete(PLACE, None).await.unwrap();
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    operator.create(PLACE, b"", &open).await.unwrap();
    refuses(3, b"", ErrorKind::Conflict).await;
    let later = b"leasehold-record2 of a later version";
    operator.set_data(PLACE, later, None).await.unwrap();
    refuses(4, later, ErrorKind::Unsupported).await;
    // Once the operator has removed it, the same holder writes.
    operator.delete(PLACE, None).await.unwrap();
    assert_eq!(lease.write_record(write(5, "ours")).await.unwrap(), 1);
}

/// Other users may read the lock's record if the access lists say so, and never write it.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_one_user_is_denied_to_another() {
    let server = ZookeeperServer::start().unwrap();
    let url = |user: &str| format!("zookeeper://{user}{}/shop?acl=creator", server.addr());
    let owner = backend(&url("alice:secret@")).await;
    let lease = Arc::clone(&owner).acquire(request()).await.unwrap();
    lease.write_record(write(1, "hers")).await.unwrap();
    let other = backend(&url("bob:secret@")).await;
    let read = Arc::clone(&other).read_record(RecordRead::new(key())).await;
    let denied = read.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied);
    assert!(denied.to_string().contains("permission"), "{denied}");
    assert_eq!(record(&owner).await.unwrap().value, b"hers");
}

/// The answers to a write are lost, and the client repeats it.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_to_a_node_whose_answer_was_lost_counts_once() {
    let server = ZookeeperServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let near = backend(&server.url()).await;
    let far = backend(&server.url_at(proxy.addr())).await;
    let lease = Arc::clone(&far).acquire(request()).await.unwrap();
    let mut unanswered = 0;
    for sequence in 1..=40 {
        let write = write(sequence, format!("write {sequence}"));
        // Cuts anywhere in the answers to the requests of a write: the read and the transaction.
        proxy.cut_after_bytes(Direction::ServerToClient, sequence * 10);
        let written = Arc::clone(&lease).write_record(write.clone()).await;
        proxy.heal();
        let stored = record(&near).await;
        let took_effect = stored.is_some_and(|record| record.sequence == sequence);
        unanswered += u64::from(written.is_err() && took_effect);
        assert_eq!(settled(&lease, &write).await, sequence);
        assert_eq!(settled(&lease, &write).await, sequence, "repeated");
        let record = record(&near).await.unwrap();
        assert_eq!((record.version, record.sequence), (sequence, sequence));
    }
    assert!(unanswered > 0, "no answer was lost");
}

/// The write waits on its way, and arrives after the next holder has written.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_held_up_is_void_for_the_next_holder_of_a_node() {
    let server = ZookeeperServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let near = backend(&server.url()).await;
    let far = backend(&server.url_at(proxy.addr())).await;
    let lease = Arc::clone(&far).acquire(request()).await.unwrap();
    let first = Arc::clone(&lease).write_record(write(1, "first")).await;
    assert_eq!(first.unwrap(), 1);
    // The requests of the write are in flight for longer than the next holder needs.
    for repeated in 0..5 {
        proxy.delay(Direction::ClientToServer, millis(700));
        let late = tokio::spawn(Arc::clone(&lease).write_record(write(2 + repeated, "late")));
        sleep(millis(200 * repeated)).await;
        let holders = near.inspect(&key()).await.unwrap().holders;
        if repeated == 0 {
            near.revoke(&holders[0], Revocation::Immediate)
                .await
                .unwrap();
        }
        let next = acquired(&near).await;
        let before = record(&near).await.unwrap();
        let version = Arc::clone(&next).write_record(write(1, "next")).await;
        assert_eq!(version.unwrap(), before.version + 1);
        proxy.heal();
        let refused = timeout(SOON, late).await.unwrap().unwrap().unwrap_err();
        assert!(is_a_fault(refused.kind()), "{refused:?}");
        let after = record(&near).await.unwrap();
        assert_eq!(
            (after.version, &*after.value),
            (before.version + 1, &b"next"[..])
        );
        next.release().await.unwrap();
    }
    let refused = lease.write_record(write(9, "late")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Lost);
}

/// Waits for a change of the record after an answer. Fails if there is no notification.
async fn next(far: &Arc<ZookeeperBackend>, change: impl AsyncFnOnce()) -> Option<Record> {
    let mut read = RecordRead::new(key());
    read.watch = true;
    let begun = Instant::now();
    let reading = loop {
        match Arc::clone(far).read_record(read.clone()).await {
            Ok(reading) => break reading,
            Err(error) => assert!(
                is_a_fault(error.kind()) && begun.elapsed() < 3 * SOON,
                "{error:?}"
            ),
        }
        sleep(millis(20)).await;
    };
    change().await;
    let changed = reading.changed.expect("there is no watch");
    timeout(SOON, changed).await.expect("not notified");
    loop {
        match Arc::clone(far).read_record(read.clone()).await {
            Ok(reading) => return reading.record,
            Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
        }
        sleep(millis(20)).await;
    }
}

/// The poll interval is an hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_zookeeper_watcher_is_notified_over_cuts_and_restarts() {
    let mut server = ZookeeperServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let url = format!(
        "{}?fallback-poll-interval=3600s",
        server.url_at(proxy.addr())
    );
    let (far, near) = (backend(&url).await, backend(&server.url()).await);
    let lease = Arc::clone(&near).acquire(request()).await.unwrap();

    let seen = next(&far, async || {
        settled(&lease, &write(1, "a")).await;
    })
    .await;
    assert_eq!(seen.unwrap().value, b"a");
    // It is written while the watcher has no connection.
    let seen = next(&far, async || {
        proxy.cut();
        settled(&lease, &write(2, "b")).await;
        proxy.heal();
    });
    assert_eq!(seen.await.unwrap().value, b"b");
    lease.release().await.unwrap();
    // It is cleared after the server has restarted.
    let seen = next(&far, async || {
        server.kill();
        server.restart().unwrap();
        let lease = acquired(&near).await;
        settled(&lease, &RecordWrite::clear(1)).await;
        lease.release().await.unwrap();
    });
    assert_eq!(seen.await, None);
    let lease = acquired(&near).await;
    let seen = next(&far, async || {
        settled(&lease, &write(1, "d")).await;
    })
    .await;
    assert_eq!(seen.unwrap().version, 4);
}

/// The leader is stopped, deposed, and continues. It has the reader's request in its socket, and
/// answers it before it notices that it is deposed.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_at_a_deposed_leader_sees_the_last_write() {
    let mut ensemble = ZookeeperEnsemble::start().unwrap();
    for round in 0..3_u64 {
        ensemble.wait_until_serving().unwrap();
        let leader = tokio::task::block_in_place(|| ensemble.leader()).unwrap();
        let others: Vec<_> = (0..3).filter(|at| *at != leader).collect();
        let addresses = others.iter().map(|at| ensemble.members()[*at].addr());
        let hosts: Vec<_> = addresses.map(|addr| addr.to_string()).collect();
        let near = backend(&format!("zookeeper://{}", hosts.join(","))).await;
        let far = backend(&format!("{}?timeout=60s", ensemble.member(leader).url())).await;
        let lease = acquired(&near).await;
        let before = settled(&lease, &write(1, "before")).await;
        assert_eq!(record(&far).await.unwrap().version, before);
        drop(lease.release().await);

        ensemble.member(leader).pause().unwrap();
        let reading = tokio::spawn(Arc::clone(&far).read_record(RecordRead::new(key())));
        let lease = acquired(&near).await;
        let written = settled(&lease, &write(1, format!("after {round}"))).await;
        assert!(written > before);
        ensemble.member(leader).resume().unwrap();
        match timeout(2 * SOON, reading).await.unwrap().unwrap() {
            Ok(reading) => assert_eq!(reading.record.unwrap().version, written),
            Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
        }
        drop(lease.release().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_and_permits_write_no_record() {
    let server = ZookeeperServer::start().unwrap();
    let (one, operator) = (backend(&server.url()).await, operator(&server).await);
    for mode in [
        Mode::Shared,
        Mode::Permit {
            of: 2.try_into().unwrap(),
        },
    ] {
        let held = Arc::clone(&one).acquire(request().with_mode(mode)).await;
        let refused = held.unwrap().write_record(write(1, "x")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert!(refused.to_string().contains("mutex"), "{refused}");
    }
    assert!(operator.check_stat(PLACE).await.unwrap().is_none());
}

/// The environment variable with the length of a storm in seconds.
const SECONDS: &str = "LEASEHOLD_STORM_SECONDS";

/// Clients whose connections are cut, delayed and held up, servers that stop, die and start again,
/// and revocations.
#[tokio::test(flavor = "multi_thread")]
async fn no_fault_lets_a_former_holder_write_on_zookeeper() {
    let seconds = std::env::var(SECONDS).map_or(15, |text| text.parse().unwrap());
    let mut ensemble = ZookeeperEnsemble::start().unwrap();
    let (mut proxies, mut clients) = (Vec::new(), Vec::new());
    let (mut readers, mut operators): (Vec<LockClient>, Vec<_>) = (Vec::new(), Vec::new());
    for at in 0..3 {
        let member = ensemble.member(at);
        let proxy = Proxy::start(member.addr()).unwrap();
        let options = "timeout=700ms&connect-timeout=700ms";
        clients.push(client(&format!("{}?{options}", member.url_at(proxy.addr()))).await);
        proxies.push(proxy);
        readers.push(client(&format!("{}?timeout=1s", member.url())).await);
        operators.push(backend(&format!("{}?timeout=1s", member.url())).await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let running = tokio::spawn(storm("k", ttl(2), clients, readers, Arc::clone(&stop)));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) && !running.is_finished() {
        let (client, member) = (rand::random_range(0..3), rand::random_range(0..3));
        let proxy = &proxies[client];
        match rand::random_range(0..8) {
            0 => proxy.disconnect(),
            1 => proxy.blackhole(Direction::ServerToClient),
            2 | 3 => proxy.hold(Direction::ClientToServer),
            4 => proxy.delay(Direction::ServerToClient, millis(200)),
            5 => {
                ensemble.member(member).pause().unwrap();
                sleep(millis(rand::random_range(100..3_500))).await;
                ensemble.member(member).resume().unwrap();
            }
            6 => {
                ensemble.member(member).kill();
                tokio::task::block_in_place(|| ensemble.member(member).restart()).unwrap();
            }
            _ => {
                let operator = &operators[client];
                if let Ok(seen) = operator.inspect(&key()).await
                    && let Some(holder) = seen.holders.first()
                {
                    drop(operator.revoke(holder, Revocation::Immediate).await);
                }
            }
        }
        sleep(millis(rand::random_range(20..1_500))).await;
        proxy.heal();
    }
    proxies.iter().for_each(Proxy::heal);
    stop.store(true, Ordering::Relaxed);
    let history = timeout(3 * SOON, running).await.expect("a call hangs");
    let (versions, writers) = history.unwrap().check().unwrap();
    println!("{versions} versions of {writers} writers were seen");
    assert!(versions > 3 && writers > 1, "too few writes");
}
