//! Records: their place on the server, values of other programs, and writes during faults.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use leasehold_core::{
    ErrorKind, LockClient, LockKey, Record, Revocation,
    backend::{LockBackend, RecordRead, RecordWrite, Request},
};
use leasehold_etcd::{EtcdBackend, etcd_client::Client};
use leasehold_integration::{
    leases::{settled, write, written},
    proxy::{Direction, Proxy},
    record_history::storm,
    server::EtcdCluster,
    steps::{SOON, is_a_fault, millis},
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{backend, client, executed, ttl};

const PLACE: &str = "%record/k";

fn key() -> LockKey {
    LockKey::new("k").unwrap()
}

fn request() -> Request {
    Request::new(key()).with_ttl(ttl(60)).with_label("web-3")
}

/// Connects through a proxy that may lose answers.
async fn through(proxy: &Proxy) -> Arc<EtcdBackend> {
    let options = "timeout=1s&connect-timeout=1s";
    backend(&format!("etcd://{}/?{options}", proxy.addr())).await
}

async fn record(backend: &Arc<EtcdBackend>) -> Option<Record> {
    let read = RecordRead::new(key());
    Arc::clone(backend).read_record(read).await.unwrap().record
}

/// The bytes of the record on the server.
async fn stored(cluster: &EtcdCluster) -> Option<(Vec<u8>, i64)> {
    let server = Client::connect([cluster.at(0).addr().to_string()], None);
    let read = server.await.unwrap().kv_client().get(PLACE, None).await;
    let read = read.unwrap();
    let kv = read.kvs().first()?;
    Some((kv.value().to_vec(), kv.lease()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_one_key_without_a_lease() {
    let cluster = EtcdCluster::start().unwrap();
    let one = backend(&cluster.url()).await;
    let request = request();
    let lease = Arc::clone(&one).acquire(request.clone()).await.unwrap();
    let written = Arc::clone(&lease).write_record(write(1, "done")).await;
    assert_eq!(written.unwrap(), 1);
    let (bytes, owned_by) = stored(&cluster).await.unwrap();
    assert_eq!(owned_by, 0, "the record ends with a lease");
    let text = String::from_utf8(bytes).unwrap();
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
    let (bytes, _) = stored(&cluster).await.unwrap();
    assert!(bytes.starts_with(b"leasehold-record1 2 2 "), "{bytes:?}");
    assert_eq!(cluster.at(0).keys("").unwrap(), [PLACE]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_program_is_never_overwritten() {
    let cluster = EtcdCluster::start().unwrap();
    let one = backend(&cluster.url()).await;
    let lease = Arc::clone(&one).acquire(request()).await.unwrap();
    let put = |value: &str| cluster.at(0).ctl(&["put", PLACE, value]).unwrap();
    put("of another program");
    for sequence in 1..4 {
        let refused = Arc::clone(&lease)
            .write_record(write(sequence, "ours"))
            .await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
        let read = Arc::clone(&one).read_record(RecordRead::new(key())).await;
        let refused = read.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        assert!(refused.to_string().contains("`k`"), "{refused}");
        let (bytes, _) = stored(&cluster).await.unwrap();
        assert_eq!(bytes, b"of another program");
    }
    put("leasehold-record2 of a later version");
    let refused = Arc::clone(&lease).write_record(write(4, "ours")).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    // Once the operator has removed it, the same holder writes.
    cluster.at(0).ctl(&["del", PLACE]).unwrap();
    assert_eq!(lease.write_record(write(5, "ours")).await.unwrap(), 1);
}

/// The answers to a write are lost, and the client repeats it.
#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_write_whose_answer_was_lost_counts_once() {
    let cluster = EtcdCluster::start().unwrap();
    let proxy = Proxy::start(cluster.at(0).addr()).unwrap();
    let (near, far) = (backend(&cluster.url()).await, through(&proxy).await);
    let lease = Arc::clone(&far).acquire(request()).await.unwrap();
    let mut unanswered = 0;
    for sequence in 1..=40 {
        let write = write(sequence, format!("write {sequence}"));
        let before = executed(&cluster, "Txn");
        // Cuts anywhere in the answers to the requests of a write: the read and the transaction.
        proxy.cut_after_bytes(Direction::ServerToClient, sequence * 10);
        drop(Arc::clone(&lease).write_record(write.clone()).await);
        proxy.heal();
        unanswered += u64::from(executed(&cluster, "Txn") > before + 1);
        assert_eq!(settled(&lease, &write).await, sequence);
        assert_eq!(settled(&lease, &write).await, sequence, "repeated");
        let record = record(&near).await.unwrap();
        assert_eq!((record.version, record.sequence), (sequence, sequence));
    }
    assert!(unanswered > 0, "no answer was lost");
}

/// The write is held up between its read and its transaction, until the next holder has written.
#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_write_held_up_is_void_for_the_next_holder() {
    let cluster = EtcdCluster::start().unwrap();
    let proxy = Proxy::start(cluster.at(0).addr()).unwrap();
    let near = backend(&cluster.url()).await;
    let url = format!("etcd://{}/?timeout=60s", proxy.addr());
    let far = backend(&url).await;
    let long = request().with_ttl(ttl(600));
    let lease = Arc::clone(&far).acquire(long).await.unwrap();
    assert_eq!(written(&lease, write(1, "first")).await, 1);

    // The answer to its read is held up, so its transaction is sent late.
    proxy.hold(Direction::ServerToClient);
    let reads = executed(&cluster, "Range");
    let late = tokio::spawn(Arc::clone(&lease).write_record(write(2, "late")));
    until("the record is read", || executed(&cluster, "Range") > reads).await;
    let holders = near.inspect(&key()).await.unwrap().holders;
    near.revoke(&holders[0], Revocation::Immediate)
        .await
        .unwrap();
    let next = Arc::clone(&near).acquire(request()).await.unwrap();
    assert_eq!(record(&near).await.unwrap().value, b"first");
    assert_eq!(next.write_record(write(1, "next")).await.unwrap(), 2);
    proxy.heal();

    let refused = timeout(SOON, late).await.unwrap().unwrap().unwrap_err();
    assert!(is_a_fault(refused.kind()), "{refused:?}");
    let record = record(&near).await.unwrap();
    assert_eq!((record.version, &*record.value), (2, &b"next"[..]));
    assert_eq!(
        lease
            .write_record(write(3, "late"))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Lost
    );
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let begun = Instant::now();
    while !reached() {
        assert!(begun.elapsed() < SOON, "{what}");
        sleep(millis(10)).await;
    }
}

/// Waits for a change of the record after an answer. Fails if there is no notification.
async fn next(far: &Arc<EtcdBackend>, change: impl AsyncFnOnce()) -> Option<Record> {
    let mut read = RecordRead::new(key());
    read.watch = true;
    let begun = Instant::now();
    // The connection or the server may have to come back.
    let reading = loop {
        match Arc::clone(far).read_record(read.clone()).await {
            Ok(reading) if reading.changed.is_some() => break reading,
            Ok(_) => {}
            Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
        }
        assert!(begun.elapsed() < 3 * SOON, "there is no watch");
    };
    change().await;
    timeout(SOON, reading.changed.unwrap())
        .await
        .expect("not notified");
    loop {
        match Arc::clone(far).read_record(read.clone()).await {
            Ok(reading) => return reading.record,
            Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
        }
    }
}

/// The poll interval is an hour.
#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_watcher_is_notified_over_cuts_and_restarts() {
    let mut cluster = EtcdCluster::start().unwrap();
    let proxy = Proxy::start(cluster.at(0).addr()).unwrap();
    let options = "timeout=1s&connect-timeout=1s&fallback-poll-interval=3600s";
    let far = backend(&format!("etcd://{}/?{options}", proxy.addr())).await;
    let near = backend(&cluster.url()).await;
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
    // It is cleared while the server restarts.
    let seen = next(&far, async || {
        cluster.member(0).kill();
        cluster.member(0).restart().unwrap();
        settled(&lease, &RecordWrite::clear(3)).await;
    });
    assert_eq!(seen.await, None);
    let seen = next(&far, async || {
        settled(&lease, &write(4, "d")).await;
    })
    .await;
    assert_eq!(seen.unwrap().version, 4);
    // The server loses its data.
    let seen = next(&far, async || {
        cluster.member(0).kill();
        for entry in fs::read_dir(cluster.at(0).folder()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            }
        }
        cluster.member(0).restart().unwrap();
    });
    assert_eq!(seen.await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_survive_the_death_of_a_leader() {
    let mut cluster = EtcdCluster::start_members(3).unwrap();
    let all = client(&cluster.url()).await;
    let guard = all.mutex("k").with_ttl(ttl(20)).lock().await.unwrap();
    for n in 1..=3_u64 {
        let begun = Instant::now();
        let version = loop {
            match guard.write_record(n.to_string()).await {
                Ok(version) => break version,
                Err(error) => assert!(begun.elapsed() < SOON, "{error:?}"),
            }
        };
        let leader = cluster.leader().unwrap();
        cluster.member(leader).kill();
        let record = loop {
            match all.record("k").await {
                Ok(record) => break record.unwrap(),
                Err(error) => assert!(begun.elapsed() < 2 * SOON, "{error:?}"),
            }
        };
        assert_eq!(
            (record.version, record.value),
            (version, n.to_string().into_bytes())
        );
        cluster.member(leader).restart().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_and_permits_write_no_record() {
    let cluster = EtcdCluster::start().unwrap();
    let one = backend(&cluster.url()).await;
    for mode in [
        leasehold_core::Mode::Shared,
        leasehold_core::Mode::Permit {
            of: 2.try_into().unwrap(),
        },
    ] {
        let lease = Arc::clone(&one)
            .acquire(request().with_mode(mode))
            .await
            .unwrap();
        let refused = lease.write_record(write(1, "x")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert!(refused.to_string().contains("mutex"), "{refused}");
    }
    assert_eq!(stored(&cluster).await, None);
}

/// The environment variable with the length of a storm in seconds.
const SECONDS: &str = "LEASEHOLD_STORM_SECONDS";

/// Clients whose connections are cut, delayed and held up, members that stop, die and start again,
/// and revocations.
#[tokio::test(flavor = "multi_thread")]
async fn no_fault_lets_a_former_holder_write_on_etcd() {
    let seconds = std::env::var(SECONDS).map_or(15, |text| text.parse().unwrap());
    let mut cluster = EtcdCluster::start_members(3).unwrap();
    let (mut proxies, mut clients) = (Vec::new(), Vec::new());
    for at in 0..3 {
        let proxy = Proxy::start(cluster.at(at).addr()).unwrap();
        let options = "timeout=700ms&connect-timeout=700ms";
        clients.push(client(&format!("etcd://{}/?{options}", proxy.addr())).await);
        proxies.push(proxy);
    }
    let mut readers: Vec<LockClient> = Vec::new();
    for at in 0..3 {
        readers.push(client(&format!("{}?timeout=1s", cluster.at(at).url())).await);
    }
    let operator = backend(&format!("{}?timeout=1s", cluster.url())).await;
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
                cluster.member(member).pause().unwrap();
                sleep(millis(rand::random_range(100..3_000))).await;
                cluster.member(member).resume().unwrap();
            }
            6 => {
                cluster.member(member).kill();
                tokio::task::block_in_place(|| cluster.member(member).restart()).unwrap();
            }
            _ => {
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
    let history = timeout(6 * SOON, running)
        .await
        .expect("a call hangs")
        .unwrap();
    let (versions, writers) = history.check().unwrap();
    println!("{versions} versions of {writers} writers were seen");
    assert!(versions > 3 && writers > 1, "too few writes");
}
