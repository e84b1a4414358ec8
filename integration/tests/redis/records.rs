//! Records beside locks, as the server keeps them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, poll};
use leasehold_core::{
    Error, ErrorKind, HolderRef, LockClient, LossReason, Mode, Record, Released, Revocation,
    backend::{Lease, LockBackend, RecordRead, RecordReading, RecordWrite, Request},
};
use leasehold_integration::proxy::{Direction, Proxy};
use leasehold_redis::{RedisBackend, RedisConfig, redis};

use crate::support::{Server, granted, key, request, ttl, until, until_within};

/// The key of the record of the lock `k`.
const RECORD: &str = "{k}:lh2:record";
/// A limit that is longer than any step here on a busy machine, and shorter than [`long`].
const PATIENCE: Duration = Duration::from_secs(60);

/// Connects a backend that waits for answers of a busy machine.
async fn patient(server: &Server) -> Arc<RedisBackend> {
    let url = format!("{}?timeout=60s&connect-timeout=60s", server.url());
    RedisBackend::connect(&url).await.unwrap()
}

/// Does the same as [`patient`]. Only notifications end the watches of this backend.
async fn pushed(server: &Server) -> Arc<RedisBackend> {
    let url = format!(
        "{}?timeout=60s&connect-timeout=60s&fallback-poll-interval=3600s",
        server.url()
    );
    RedisBackend::connect(&url).await.unwrap()
}

/// A lock that does not expire during a test.
fn long(name: &str) -> Request {
    request(name).with_ttl(ttl(600_000)).with_label("web-3")
}

async fn write(
    lease: &Arc<dyn Lease>,
    sequence: u64,
    value: impl AsRef<[u8]>,
) -> Result<u64, Error> {
    let write = RecordWrite::new(sequence, value).unwrap();
    Arc::clone(lease).write_record(write).await
}

async fn read_with(backend: &Arc<RedisBackend>, read: RecordRead) -> Result<RecordReading, Error> {
    Arc::clone(backend).read_record(read).await
}

async fn read(backend: &Arc<RedisBackend>) -> Result<Option<Record>, Error> {
    let reading = read_with(backend, RecordRead::new(key("k"))).await;
    reading.map(|reading| reading.record)
}

/// Returns the value and the version of the record.
async fn stored(backend: &Arc<RedisBackend>) -> Option<(String, u64)> {
    let record = read(backend).await.unwrap()?;
    Some((String::from_utf8(record.value).unwrap(), record.version))
}

fn is(value: &str, version: u64) -> Option<(String, u64)> {
    Some((value.to_owned(), version))
}

/// Starts to watch the record, also the end of the hold if `while_held`.
async fn watched(backend: &Arc<RedisBackend>, while_held: bool) -> RecordReading {
    let mut read = RecordRead::new(key("k"));
    (read.watch, read.while_held) = (true, while_held);
    read_with(backend, read).await.unwrap()
}

async fn notified(reading: RecordReading) {
    let changed = reading.changed.expect("the server notifies");
    tokio::time::timeout(PATIENCE, changed)
        .await
        .expect("the watcher is notified");
}

async fn raw<T: redis::FromRedisValue>(server: &Server, words: &[&[u8]]) -> T {
    let mut cmd = redis::Cmd::new();
    for word in words {
        cmd.arg(*word);
    }
    cmd.query_async(&mut server.raw().await).await.unwrap()
}

async fn bytes(server: &Server) -> Vec<u8> {
    raw(server, &[b"GET", RECORD.as_bytes()]).await
}

async fn holder(backend: &Arc<RedisBackend>) -> HolderRef {
    let seen = backend.inspect(&key("k")).await.unwrap();
    seen.holders.into_iter().next().expect("a holder")
}

async fn revoke(backend: &Arc<RedisBackend>, revocation: Revocation) {
    let holder = holder(backend).await;
    backend.revoke(&holder, revocation).await.unwrap();
}

#[tokio::test]
async fn the_record_is_a_string_without_expiry_beside_the_lock() {
    let server = Server::start();
    let backend = patient(&server).await;
    let lease = granted(&backend, long("k")).await;
    let value = b"a\nb\0\xff % %d \r\n";
    assert_eq!(write(&lease, 1, value).await.unwrap(), 1);

    let record = read(&backend).await.unwrap().unwrap();
    let micros = record
        .written
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_micros();
    let header = |version: u64, sequence: u64, micros: u128, len: &str| {
        format!(
            "leasehold-record1 {version} {sequence} {} {} {micros} 5 {len}\nweb-3",
            record.owner,
            lease.fencing_token().unwrap()
        )
    };
    let expected = [header(1, 1, micros, "13").as_bytes(), value].concat();
    assert_eq!(bytes(&server).await, expected);
    assert_eq!(
        (
            record.value.as_slice(),
            record.version,
            record.sequence,
            record.token,
            record.label.as_str()
        ),
        (&value[..], 1, 1, lease.fencing_token(), "web-3")
    );
    assert_eq!(raw::<i64>(&server, &[b"PTTL", RECORD.as_bytes()]).await, -1);

    let cleared = Arc::clone(&lease).write_record(RecordWrite::clear(2));
    assert_eq!(cleared.await.unwrap(), 2);
    assert!(read(&backend).await.unwrap().is_none());
    let left = String::from_utf8(bytes(&server).await).unwrap();
    let micros = left.split(' ').nth(5).unwrap().parse().unwrap();
    assert_eq!(left, header(2, 2, micros, "-"));
    lease.release().await.unwrap();
    assert_eq!(server.leftovers().await, [RECORD]);

    let next = granted(&backend, long("k")).await;
    assert_eq!(write(&next, 1, "").await.unwrap(), 3);
    assert_eq!(read(&backend).await.unwrap().unwrap().value, b"");
}

#[tokio::test]
async fn values_of_full_length_and_long_labels_are_kept() {
    let server = Server::start();
    let backend = patient(&server).await;
    let label = "\u{e4}".repeat(200);
    let asked = long("k").with_label(label.clone());
    let lease = granted(&backend, asked).await;
    for (sequence, byte) in [(1, b'\n'), (2, 0), (3, 0xff)] {
        let value = vec![byte; Record::MAX_LEN];
        write(&lease, sequence, &value).await.unwrap();
        let record = read(&backend).await.unwrap().unwrap();
        assert!(record.value == value && record.version == sequence);
        assert_eq!(record.label, label[..Record::MAX_LABEL_LEN]);
    }
}

/// Neither a read nor a write changes what another program has stored there.
#[tokio::test]
async fn value_of_another_program_is_a_conflict_and_stays() {
    let server = Server::start();
    let backend = patient(&server).await;
    let lease = granted(&backend, long("k")).await;
    write(&lease, 1, "ours").await.unwrap();
    let ours = bytes(&server).await;
    let text = String::from_utf8(ours.clone()).unwrap();
    let owner = text.split(' ').nth(3).unwrap();
    let huge = vec![b'x'; 9 << 20];
    let conflicts = [
        Vec::new(),
        b"done".to_vec(),
        huge,
        [&ours[..], b"x"].concat(),
        ours[..ours.len() - 1].to_vec(),
        text.replacen(" 1 1 ", " 1  1 ", 1).into_bytes(),
        text.replacen(" 1 1 ", " -1 1 ", 1).into_bytes(),
        text.replacen(" 1 1 ", " 01 1 ", 1).into_bytes(),
        text.replacen(" 1 1 ", " 1 01 ", 1).into_bytes(),
        text.replacen(owner, &owner.to_uppercase(), 1).into_bytes(),
        text.replacen(" 5 4\n", " 05 4\n", 1).into_bytes(),
        text.replacen(" 5 4\n", " 5 4 \n", 1).into_bytes(),
        text.replacen(" 5 4\n", " 5 x\n", 1).into_bytes(),
    ];
    for theirs in &conflicts {
        let () = raw(&server, &[b"SET", RECORD.as_bytes(), theirs]).await;
        for error in [
            read(&backend).await.unwrap_err(),
            write(&lease, 2, "new").await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
            assert!(error.to_string().contains("`k`"), "{error}");
        }
        assert!(bytes(&server).await == *theirs);
    }
    let later = b"leasehold-record2 what a later version writes";
    let () = raw(&server, &[b"SET", RECORD.as_bytes(), later]).await;
    for error in [
        read(&backend).await.unwrap_err(),
        write(&lease, 2, "new").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("upgrade"), "{error}");
    }
    assert_eq!(bytes(&server).await, later);

    let () = raw(&server, &[b"DEL", RECORD.as_bytes()]).await;
    let () = raw(&server, &[b"RPUSH", RECORD.as_bytes(), b"a list"]).await;
    for error in [
        read(&backend).await.unwrap_err(),
        write(&lease, 2, "new").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    }
    let kind: String = raw(&server, &[b"TYPE", RECORD.as_bytes()]).await;
    assert_eq!(kind, "list");

    // The lock is not affected, and the record works again once the value is removed.
    lease.clone().renew().await.unwrap();
    let () = raw(&server, &[b"DEL", RECORD.as_bytes()]).await;
    write(&lease, 3, "new").await.unwrap();
    assert_eq!(stored(&backend).await, is("new", 1));
}

#[tokio::test]
async fn only_an_exclusive_holder_writes() {
    let server = Server::start();
    let backend = patient(&server).await;
    for asked in [
        request("k").with_mode(Mode::Shared),
        request("k").with_permit_of(2.try_into().unwrap()),
    ] {
        let lease = granted(&backend, asked).await;
        let error = write(&lease, 1, "x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("exclusively"), "{error}");
        lease.release().await.unwrap();
    }
    assert!(read(&backend).await.unwrap().is_none());
}

#[tokio::test]
async fn deposed_holders_write_nothing() {
    let server = Server::start();
    let (one, other) = (patient(&server).await, patient(&server).await);
    for (round, free) in [(1, true), (2, false)] {
        let deposed = granted(&one, long("k")).await;
        write(&deposed, 1, "before").await.unwrap();
        revoke(&other, Revocation::Immediate).await;
        let next = if free {
            None
        } else {
            Some(granted(&other, long("k")).await)
        };
        let error = write(&deposed, 2, "late").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
        assert_eq!(stored(&other).await, is("before", round));
        drop(next);
    }
    // A released lease has no effect, either.
    revoke(&other, Revocation::Immediate).await;
    let released = granted(&one, long("k")).await;
    assert_eq!(released.clone().release().await.unwrap(), Released::Freed);
    let error = write(&released, 1, "late").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert_eq!(stored(&other).await, is("before", 2));
}

#[tokio::test]
async fn gracefully_revoked_holder_writes_until_its_deadline() {
    let server = Server::start();
    let (one, other) = (patient(&server).await, patient(&server).await);
    let lease = granted(&one, long("k")).await;
    revoke(&other, Revocation::Graceful).await;
    assert_eq!(write(&lease, 1, "revoked").await.unwrap(), 1);
    let reading = watched(&other, true).await;
    assert_eq!(reading.record.unwrap().value, b"revoked");
}

/// The write of a holder that is cut off arrives after its lock has passed to another.
#[tokio::test(flavor = "multi_thread")]
async fn write_that_was_held_up_in_the_network_changes_nothing() {
    let server = Server::start();
    let proxy = Proxy::start(server.address()).unwrap();
    let url = format!("redis://{}/?timeout=60s", proxy.addr());
    let cut_off = RedisBackend::connect(&url).await.unwrap();
    let other = patient(&server).await;
    let deposed = granted(&cut_off, long("k")).await;
    write(&deposed, 1, "before").await.unwrap();

    proxy.hold(Direction::ClientToServer);
    // The first poll sends it.
    let mut late = Box::pin(write(&deposed, 2, "late"));
    assert!(poll!(&mut late).is_pending());
    revoke(&other, Revocation::Immediate).await;
    let next = granted(&other, long("k")).await;
    assert_eq!(write(&next, 1, "after").await.unwrap(), 2);
    let before = bytes(&server).await;
    proxy.heal();
    let error = late.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert_eq!(bytes(&server).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn write_whose_answer_was_lost_counts_once() {
    let server = Server::start();
    let proxy = Proxy::start(server.address()).unwrap();
    let url = format!("redis://{}/?timeout=5s", proxy.addr());
    let backend = RedisBackend::connect(&url).await.unwrap();
    let lease = granted(&backend, long("k")).await;
    // Loads the script.
    write(&lease, 1, "first").await.unwrap();
    // The backend repeats the write on a new connection.
    proxy.cut_after_chunks(Direction::ClientToServer, 1);
    assert_eq!(write(&lease, 2, "second").await.unwrap(), 2);
    assert_eq!(stored(&backend).await, is("second", 2));

    // The new connection is refused as well.
    proxy.hold(Direction::ServerToClient);
    let lost = write(&lease, 3, "third").await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Indeterminate, "{lost}");
    assert!(lost.is_retryable());
    proxy.disconnect();
    proxy.heal();
    let direct = patient(&server).await;
    assert_eq!(stored(&direct).await, is("third", 3));
    assert_eq!(write(&lease, 3, "third").await.unwrap(), 3);
    assert_eq!(stored(&direct).await, is("third", 3));
    // A late copy of an earlier write undoes nothing.
    assert_eq!(write(&lease, 2, "second").await.unwrap(), 3);
    assert_eq!(stored(&direct).await, is("third", 3));
}

/// *Lost* would mean that nothing was written.
#[tokio::test(flavor = "multi_thread")]
async fn write_before_the_loss_is_not_reported_as_without_effect() {
    let server = Server::start();
    let proxy = Proxy::start(server.address()).unwrap();
    let url = format!("redis://{}/?timeout=60s", proxy.addr());
    let cut_off = RedisBackend::connect(&url).await.unwrap();
    let direct = patient(&server).await;
    let lease = granted(&cut_off, long("k")).await;
    write(&lease, 1, "first").await.unwrap();

    proxy.hold(Direction::ServerToClient);
    let mut second = Box::pin(write(&lease, 2, "second"));
    assert!(poll!(&mut second).is_pending());
    until_within(PATIENCE, "it is written", || async {
        stored(&direct).await == is("second", 2)
    })
    .await;
    revoke(&direct, Revocation::Immediate).await;
    proxy.disconnect();
    proxy.heal();
    // The backend sends it again on a new connection, and the lock is gone.
    let error = second.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Indeterminate, "{error}");
    let error = write(&lease, 2, "second").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert_eq!(stored(&direct).await, is("second", 2));
}

#[tokio::test]
async fn record_survives_a_restart_that_keeps_the_data() {
    let mut server = Server::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let backend = patient(&server).await;
    let lease = granted(&backend, long("k")).await;
    write(&lease, 1, "kept").await.unwrap();
    server.restart();
    assert_eq!(stored(&backend).await, is("kept", 1));
    assert_eq!(write(&lease, 2, "still held").await.unwrap(), 2);
    lease.release().await.unwrap();
    server.restart();
    let next = granted(&backend, long("k")).await;
    assert_eq!(stored(&backend).await, is("still held", 2));
    assert_eq!(write(&next, 1, "next").await.unwrap(), 3);
}

#[tokio::test]
async fn server_that_lost_its_data_has_no_record_and_no_holder() {
    let mut server = Server::start();
    let backend = patient(&server).await;
    let lease = granted(&backend, long("k")).await;
    write(&lease, 1, "lost").await.unwrap();
    let watched = watched(&backend, false).await;
    server.restart();
    // It may be sent on the connection that broke, which leaves open whether it was written.
    let error = write(&lease, 2, "late").await.unwrap_err();
    let kinds = [ErrorKind::Indeterminate, ErrorKind::Lost];
    assert!(kinds.contains(&error.kind()), "{error}");
    let error = write(&lease, 2, "late").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    notified(watched).await;
    assert!(read(&backend).await.unwrap().is_none());
}

#[tokio::test]
async fn writer_that_lost_its_lock_learns_it_by_the_write() {
    let server = Server::start();
    let backend = patient(&server).await;
    let client = LockClient::new(backend.clone());
    let guard = client
        .mutex("k")
        .with_ttl(ttl(600_000))
        .lock()
        .await
        .unwrap();
    revoke(&backend, Revocation::Immediate).await;
    guard.write_record("late").await.unwrap_err();
    assert_eq!(guard.lost().now_or_never(), Some(LossReason::Replaced));
}

/// Only notifications of the server can complete these watches within the test.
#[tokio::test]
async fn watchers_are_notified_of_writes_by_the_server() {
    let server = Server::start();
    let (holder, watcher) = (patient(&server).await, pushed(&server).await);
    let lease = granted(&holder, long("k")).await;
    let none = watched(&watcher, false).await;
    assert!(none.record.is_none());
    write(&lease, 1, "one").await.unwrap();
    notified(none).await;
    let one = watched(&watcher, false).await;
    assert_eq!(one.record.as_ref().unwrap().value, b"one");
    Arc::clone(&lease)
        .write_record(RecordWrite::clear(2))
        .await
        .unwrap();
    notified(one).await;

    // Neither a renewal nor a release changes the record.
    let mut cleared = watched(&watcher, false).await;
    assert!(cleared.record.is_none());
    lease.clone().renew().await.unwrap();
    lease.release().await.unwrap();
    watcher.ping().await.unwrap();
    let changed = cleared.changed.as_mut().unwrap();
    assert!(changed.now_or_never().is_none());
}

/// The writes come between the read and the first poll of its notification.
#[tokio::test]
async fn watch_is_armed_before_the_read() {
    let server = Server::start();
    let (holder, watcher) = (patient(&server).await, pushed(&server).await);
    let lease = granted(&holder, long("k")).await;
    let proxy = Proxy::start(server.address()).unwrap();
    let client = redis::Client::open(format!("redis://{}/", proxy.addr())).unwrap();
    let config = RedisConfig::new()
        .with_timeout(PATIENCE)
        .with_fallback_poll_interval(Duration::from_secs(3600));
    let slow = RedisBackend::from_client(&client, config).await.unwrap();
    // Loads the script.
    watched(&slow, false).await;
    let () = raw(&server, &[b"CONFIG", b"RESETSTAT"]).await;
    proxy.hold(Direction::ServerToClient);
    let mut reading = Box::pin(watched(&slow, false));
    assert!(poll!(&mut reading).is_pending());
    until_within(PATIENCE, "the server has answered", || async {
        server
            .info("commandstats")
            .await
            .contains("cmdstat_evalsha:")
    })
    .await;
    write(&lease, 1, "new").await.unwrap();
    proxy.heal();
    let reading = reading.await;
    assert!(reading.record.is_none(), "it was read before the write");
    notified(reading).await;
    assert_eq!(stored(&watcher).await, is("new", 1));
}

#[tokio::test]
async fn watchers_are_notified_when_their_connection_is_lost() {
    let mut server = Server::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (holder, watcher) = (patient(&server).await, pushed(&server).await);
    let lease = granted(&holder, long("k")).await;
    write(&lease, 1, "one").await.unwrap();
    for (round, restart) in [(2, false), (3, true)] {
        let reading = watched(&watcher, false).await;
        if restart {
            server.restart();
        } else {
            let () = raw(
                &server,
                &[b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes"],
            )
            .await;
        }
        notified(reading).await;
        let reading = watched(&watcher, false).await;
        assert_eq!(reading.record.as_ref().unwrap().version, round - 1);
        write(&lease, round, "next").await.unwrap();
        notified(reading).await;
    }
}

#[tokio::test]
async fn record_shown_while_held_ends_with_the_hold() {
    let server = Server::start();
    let (holder, watcher) = (patient(&server).await, pushed(&server).await);
    let shown = async || watched(&watcher, true).await;

    let lease = granted(&holder, long("k")).await;
    let before = shown().await;
    assert!(before.record.is_none());
    write(&lease, 1, "leads").await.unwrap();
    notified(before).await;
    let leads = shown().await;
    assert_eq!(leads.record.as_ref().unwrap().value, b"leads");
    lease.release().await.unwrap();
    notified(leads).await;
    let released = shown().await;
    assert!(released.record.is_none());
    assert_eq!(stored(&watcher).await, is("leads", 1));

    // The next holder is not the writer.
    let lease = granted(&holder, long("k")).await;
    notified(released).await;
    assert!(shown().await.record.is_none());
    write(&lease, 1, "leads next").await.unwrap();
    let leads = shown().await;
    assert!(leads.record.is_some());
    revoke(&watcher, Revocation::Immediate).await;
    notified(leads).await;
    assert!(shown().await.record.is_none());

    // The hold of a dead holder ends by expiry.
    let lease = granted(&holder, request("k").with_ttl(ttl(2_000))).await;
    if write(&lease, 1, "dies").await.is_ok() {
        until_within(PATIENCE, "it has expired", || async {
            let reading = shown().await;
            let over = reading.record.is_none();
            if !over {
                notified(reading).await;
            }
            over
        })
        .await;
        assert_eq!(stored(&watcher).await, is("dies", 3));
    }
}

#[tokio::test]
async fn polled_connection_has_no_notification_of_records() {
    let server = Server::start();
    let url = format!("{}?notifications=poll", server.url());
    let polled = RedisBackend::connect(&url).await.unwrap();
    let lease = granted(&polled, long("k")).await;
    write(&lease, 1, "one").await.unwrap();
    for while_held in [false, true] {
        let reading = watched(&polled, while_held).await;
        assert_eq!(reading.record.as_ref().unwrap().value, b"one");
        assert!(reading.changed.is_none());
    }
}

#[tokio::test]
async fn clock_of_a_reading_is_that_of_the_server() {
    let server = Server::start();
    let backend = patient(&server).await;
    let time = async || -> SystemTime {
        let (secs, micros): (u64, u64) = raw(&server, &[b"TIME"]).await;
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs) + Duration::from_micros(micros)
    };
    let mut asked = RecordRead::new(key("k"));
    assert_eq!(read_with(&backend, asked.clone()).await.unwrap().now, None);
    asked.clock = true;
    let before = time().await;
    let now = read_with(&backend, asked).await.unwrap().now.unwrap();
    assert!(before <= now && now <= time().await);
}

/// A server that was demoted may have missed the writes at the new primary.
#[tokio::test]
async fn demoted_server_is_neither_read_nor_written() {
    let server = Server::start();
    let backend = patient(&server).await;
    let lease = granted(&backend, long("k")).await;
    write(&lease, 1, "old").await.unwrap();
    let () = raw(&server, &[b"REPLICAOF", b"127.0.0.1", b"1"]).await;
    for error in [
        read(&backend).await.unwrap_err(),
        write(&lease, 2, "new").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("replica"), "{error}");
    }
}

/// New locks are refused then, so the number of records that may grow is bounded.
#[tokio::test]
async fn holder_writes_its_record_although_the_server_is_full() {
    let server = Server::start();
    let backend = patient(&server).await;
    let lease = granted(&backend, long("k")).await;
    let () = raw(&server, &[b"CONFIG", b"SET", b"maxmemory", b"1"]).await;
    assert_eq!(write(&lease, 1, "new").await.unwrap(), 1);
    assert_eq!(stored(&backend).await, is("new", 1));
    let refused = Arc::clone(&backend).try_acquire(long("another")).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn user_without_the_right_to_records_is_denied() {
    let server = Server::start();
    let () = raw(
        &server,
        &[
            b"ACL",
            b"SETUSER",
            b"locks",
            b"on",
            b">pass",
            b"resetkeys",
            b"~k",
            b"~*:token",
            b"~*:order",
            b"~*:writers",
            b"~*:waiters",
            b"+@all",
        ],
    )
    .await;
    let url = server.url().replace("redis://", "redis://locks:pass@");
    let backend = RedisBackend::connect(&url).await.unwrap();
    let lease = granted(&backend, long("k")).await;
    for error in [
        read(&backend).await.unwrap_err(),
        write(&lease, 1, "new").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("README"), "{error}");
    }
    lease.renew().await.unwrap();
}

#[tokio::test]
async fn dropped_watches_leave_nothing_and_others_are_notified() {
    let server = Server::start();
    let (holder, watcher) = (patient(&server).await, pushed(&server).await);
    let lease = granted(&holder, long("k")).await;
    let kept = watched(&watcher, false).await;
    drop(watched(&watcher, false).await);
    write(&lease, 1, "one").await.unwrap();
    notified(kept).await;
    until("the lock is still held", || async {
        Arc::clone(&lease).renew().await.is_ok()
    })
    .await;
}
