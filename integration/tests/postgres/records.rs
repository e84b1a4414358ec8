//! Records beside locks, as the server keeps them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::{join_all, try_join_all};
use leasehold_core::{
    Error, ErrorKind, LockKey, Mode, Record, Records, Revocation, Ttl,
    backend::{Lease, LockBackend, RecordRead, RecordReading, RecordWrite, Request},
};
use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::PostgresServer,
    steps::{connected, until},
};
use leasehold_postgres::PostgresBackend;
use tokio::task::block_in_place;

use crate::support::{HOUR, MINUTE, holder};

/// Long enough for a busy machine.
const LIMITS: &str = "timeout=60s&connect-timeout=60s";

pub(crate) fn key(name: &str) -> LockKey {
    LockKey::new(name).unwrap()
}

/// Returns the request of a lock that does not expire during a test.
pub(crate) fn long(name: &str) -> Request {
    Request::new(key(name))
        .with_ttl(Ttl::from_millis(HOUR).unwrap())
        .with_label("web-3")
}

pub(crate) async fn backend(url: &str) -> Arc<PostgresBackend> {
    let separator = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{separator}{LIMITS}");
    PostgresBackend::connect(&url).await.unwrap()
}

pub(crate) async fn held(backend: &Arc<PostgresBackend>) -> Arc<dyn Lease> {
    Arc::clone(backend).acquire(long("k")).await.unwrap()
}

/// Locks with a short time-out, which a busy machine may exceed.
async fn held_at_last(backend: &Arc<PostgresBackend>) -> Arc<dyn Lease> {
    loop {
        if let Ok(lease) = Arc::clone(backend).acquire(long("k")).await {
            return lease;
        }
    }
}

pub(crate) async fn write(
    lease: &Arc<dyn Lease>,
    sequence: u64,
    value: impl AsRef<[u8]>,
) -> Result<u64, Error> {
    let write = RecordWrite::new(sequence, value).unwrap();
    Arc::clone(lease).write_record(write).await
}

async fn read(backend: &Arc<PostgresBackend>) -> Result<Option<Record>, Error> {
    let reading = Arc::clone(backend).read_record(RecordRead::new(key("k")));
    reading.await.map(|reading| reading.record)
}

/// Returns the value and the version of the record.
pub(crate) async fn stored(backend: &Arc<PostgresBackend>) -> Option<(String, u64)> {
    let record = read(backend).await.unwrap()?;
    Some((String::from_utf8(record.value).unwrap(), record.version))
}

pub(crate) fn is(value: &str, version: u64) -> Option<(String, u64)> {
    Some((value.to_owned(), version))
}

/// Starts to watch the record, also the end of the hold if `while_held`.
pub(crate) async fn watched(backend: &Arc<PostgresBackend>, while_held: bool) -> RecordReading {
    let mut read = RecordRead::new(key("k"));
    (read.watch, read.while_held) = (true, while_held);
    Arc::clone(backend).read_record(read).await.unwrap()
}

async fn notified(reading: RecordReading) {
    let changed = reading.changed.expect("the server notifies");
    tokio::time::timeout(MINUTE, changed)
        .await
        .expect("the watcher is notified");
}

pub(crate) fn psql(server: &PostgresServer, sql: &str) -> String {
    block_in_place(|| server.psql(sql)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Returns the row of the record, without its time.
fn row(server: &PostgresServer) -> String {
    psql(
        server,
        "SELECT encode(name, 'escape'), lock_key, version, sequence, replace(owner::text, '-', ''), \
         token, label, encode(value, 'hex') FROM leasehold_records",
    )
}

async fn revoke(backend: &Arc<PostgresBackend>, revocation: Revocation) {
    let seen = backend.inspect(&key("k")).await.unwrap();
    let holder = seen.holders.first().expect("a holder");
    backend.revoke(holder, revocation).await.unwrap();
}

/// Running programs of other versions share the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_is_a_row_named_after_its_lock() {
    let server = PostgresServer::builder().durable().start().unwrap();
    let backend = backend(&format!("{}?prefix=p:", server.url())).await;
    assert_eq!(backend.capabilities().records, Records::Durable);
    assert_eq!(read(&backend).await.unwrap(), None, "there is no table yet");
    let lease = held(&backend).await;
    let before = SystemTime::now();
    assert_eq!(write(&lease, 1, b"a\0\xff").await.unwrap(), 1);
    let mut wanted = RecordRead::new(key("k"));
    wanted.clock = true;
    let reading = Arc::clone(&backend).read_record(wanted).await.unwrap();
    let record = reading.record.unwrap();
    // Of one machine, so the clocks are the same.
    let second = Duration::from_secs(1);
    assert!(before <= record.written + second && record.written <= reading.now.unwrap());
    let lock_key = psql(&server, "SELECT hashtextextended('p:k', 0)");
    let token = lease.fencing_token().unwrap();
    let expected = |version: u64, sequence: u64, value: &str| {
        format!(
            "p:k|{lock_key}|{version}|{sequence}|{}|{token}|web-3|{value}",
            record.owner
        )
    };
    assert_eq!(row(&server), expected(1, 1, "6100ff"));
    let cleared = Arc::clone(&lease).write_record(RecordWrite::clear(2));
    assert_eq!(cleared.await.unwrap(), 2);
    assert_eq!(row(&server), expected(2, 2, ""));
    assert_eq!(read(&backend).await.unwrap(), None);
    lease.release().await.unwrap();
    let next = held(&backend).await;
    assert_eq!(write(&next, 1, "").await.unwrap(), 3);
    assert_eq!(read(&backend).await.unwrap().unwrap().value, b"");
    let kinds = "SELECT string_agg(attname || ' ' || atttypid::regtype || ' ' || attnotnull, ', ' \
                 ORDER BY attnum) FROM pg_attribute WHERE attnum > 0 \
                 AND attrelid = 'leasehold_records'::regclass";
    assert_eq!(
        psql(&server, kinds),
        "name bytea true, lock_key text true, version bigint true, sequence bigint true, \
         owner uuid true, token bigint false, label text true, value bytea false, \
         written timestamp with time zone true"
    );
}

/// Neither a read nor a write changes what another program has stored there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_another_program_are_a_conflict_and_stay() {
    let server = PostgresServer::start().unwrap();
    let backend = backend(&server.url()).await;
    let lease = held(&backend).await;
    write(&lease, 1, "ours").await.unwrap();
    let conflicts = async |sequence: u64| {
        let before = psql(&server, "SELECT md5(r::text) FROM leasehold_records AS r");
        for error in [
            read(&backend).await.unwrap_err(),
            write(&lease, sequence, "new").await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
        }
        let after = psql(&server, "SELECT md5(r::text) FROM leasehold_records AS r");
        assert_eq!(after, before);
    };
    psql(
        &server,
        "CREATE TABLE ours AS SELECT * FROM leasehold_records; \
         ALTER TABLE leasehold_records ALTER owner DROP NOT NULL",
    );
    for set in [
        "version = 0",
        "version = -1",
        "version = 9223372036854775807",
        "sequence = 0",
        "owner = NULL",
        "token = 0",
        "label = repeat('x', 257)",
        "value = decode(repeat('00', 16385), 'hex')",
        "written = 'infinity'",
        "written = '-infinity'",
        "written = '1969-12-31 23:59:59+00'",
    ] {
        psql(
            &server,
            &format!(
                "DELETE FROM leasehold_records; INSERT INTO leasehold_records SELECT * FROM ours; \
                 UPDATE leasehold_records SET {set}"
            ),
        );
        conflicts(2).await;
    }
    // Another table of this name.
    psql(
        &server,
        "DROP TABLE leasehold_records; CREATE TABLE leasehold_records (id int); \
         INSERT INTO leasehold_records VALUES (1)",
    );
    conflicts(3).await;
    // The lock is not affected, and the record works again once that table is removed.
    psql(&server, "DROP TABLE leasehold_records");
    let dropped = write(&lease, 4, "new").await;
    if let Err(error) = &dropped {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    write(&lease, 4, "new").await.unwrap();
    assert_eq!(stored(&backend).await, is("new", 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_rights_are_named_with_the_sql_that_grants_them() {
    let server = PostgresServer::start().unwrap();
    psql(
        &server,
        "CREATE ROLE shop LOGIN; REVOKE ALL ON SCHEMA public FROM PUBLIC",
    );
    let url = format!(
        "{}?fencing=off&records=locks.records",
        server.url_as("shop")
    );
    let backend = backend(&url).await;
    assert_eq!(read(&backend).await.unwrap(), None);
    let lease = held(&backend).await;
    let denied = async |sequence: u64| {
        let error = write(&lease, sequence, "x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        let text = error.to_string();
        let (_, sql) = text
            .split_once("or the database: ")
            .unwrap_or_else(|| panic!("{text}"));
        sql.to_owned()
    };
    let sql = denied(1).await;
    psql(&server, &sql);
    assert_eq!(write(&lease, 1, "x").await.unwrap(), 1);
    // Rights that are lost later are named, too.
    psql(&server, "REVOKE ALL ON TABLE locks.records FROM shop");
    for error in [
        read(&backend).await.unwrap_err(),
        write(&lease, 2, "y").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        assert!(
            error.to_string().contains("GRANT SELECT, INSERT, UPDATE"),
            "{error}"
        );
    }
    let sql = denied(2).await;
    assert_eq!(
        sql,
        "GRANT SELECT, INSERT, UPDATE ON TABLE \"locks\".\"records\" TO \"shop\""
    );
    psql(&server, &sql);
    assert_eq!(write(&lease, 2, "y").await.unwrap(), 2);
    assert_eq!(
        lease.release().await.unwrap(),
        leasehold_core::Released::Freed
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn table_that_would_lose_its_rows_is_refused_with_the_remedy() {
    let server = PostgresServer::start().unwrap();
    let one = backend(&server.url()).await;
    let lease = held(&one).await;
    write(&lease, 1, "x").await.unwrap();
    lease.release().await.unwrap();
    psql(&server, "ALTER TABLE leasehold_records SET UNLOGGED");
    let other = backend(&server.url()).await;
    let lease = held(&other).await;
    let error = write(&lease, 1, "y").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    let text = error.to_string();
    let (_, sql) = text.split_once("run as its owner: ").unwrap();
    psql(&server, sql);
    assert_eq!(write(&lease, 1, "y").await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_create_the_table_at_once_all_write() {
    let server = PostgresServer::start().unwrap();
    let writes = (0..6).map(async |n| {
        let backend = backend(&server.url()).await;
        let lease = backend.acquire(long(&format!("k{n}"))).await.unwrap();
        write(&lease, 1, "x").await.unwrap()
    });
    let versions = join_all(writes).await;
    assert_eq!(versions, [1; 6]);
}

/// The table is checked on a connection of its own, and the server has few of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_writes_of_many_locks_share_the_check_of_the_table() {
    let builder = PostgresServer::builder().setting("max_connections", "12");
    let server = builder.start().unwrap();
    let backend = backend(&server.url()).await;
    let acquired = (0..40).map(|n| Arc::clone(&backend).acquire(long(&format!("k{n}"))));
    let leases = try_join_all(acquired).await.unwrap();
    let versions = join_all(leases.iter().map(|lease| write(lease, 1, "x"))).await;
    for version in versions {
        assert_eq!(version.unwrap(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deposed_holders_write_nothing() {
    let server = PostgresServer::start().unwrap();
    let (one, other) = (backend(&server.url()).await, backend(&server.url()).await);
    for version in 1..=2 {
        let deposed = held(&one).await;
        write(&deposed, 1, "before").await.unwrap();
        revoke(&other, Revocation::Immediate).await;
        let next = held(&other).await;
        let error = write(&deposed, 2, "late").await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Lost | ErrorKind::Indeterminate),
            "{error:?}"
        );
        assert_eq!(stored(&other).await, is("before", version));
        next.release().await.unwrap();
    }
    // A lock that only the server has lost.
    let lease = held(&one).await;
    let session = block_in_place(|| holder(&server, "k"));
    psql(&server, &format!("SELECT pg_terminate_backend({session})"));
    let error = write(&lease, 1, "late").await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Lost | ErrorKind::Indeterminate),
        "{error:?}"
    );
    assert_eq!(stored(&other).await, is("before", 2));
}

/// The server process of the holder is stopped between the request and its execution, and resumes
/// after the lock has passed to another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_that_was_held_up_in_the_server_changes_nothing() {
    let mut server = PostgresServer::start().unwrap();
    let (one, other) = (backend(&server.url()).await, backend(&server.url()).await);
    let deposed = held(&one).await;
    write(&deposed, 1, "before").await.unwrap();
    let session = block_in_place(|| holder(&server, "k"));
    server.pause_backend(session).unwrap();
    let writing = {
        let deposed = Arc::clone(&deposed);
        tokio::spawn(async move { write(&deposed, 2, "late").await })
    };
    tokio::task::yield_now().await;
    psql(&server, &format!("SELECT pg_terminate_backend({session})"));
    server.resume_backend(session).unwrap();
    let next = held(&other).await;
    let version = write(&next, 1, "after").await.unwrap();
    let error = writing.await.unwrap();
    assert!(error.is_err() || error.is_ok_and(|late| late < version));
    assert_eq!(stored(&other).await, is("after", version));
}

/// The answer of the server is held up, so the writer does not know whether it has written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_whose_answer_was_lost_counts_once() {
    let server = PostgresServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let url = format!(
        "{}?timeout=1s&connect-timeout=60s",
        server.url_at(proxy.addr())
    );
    let held_up = connected(|| PostgresBackend::connect(&url)).await.unwrap();
    let other = backend(&server.url()).await;
    let lease = held_at_last(&held_up).await;
    while write(&lease, 1, "first").await.is_err() {}
    proxy.hold(Direction::ServerToClient);
    let lost = write(&lease, 2, "second").await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Indeterminate, "{lost:?}");
    assert!(lost.is_retryable());
    // The server has executed it, or will.
    while stored(&other).await != is("second", 2) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    proxy.heal();
    let again = loop {
        if let Ok(version) = write(&lease, 2, "second").await {
            break version;
        }
    };
    assert_eq!(again, 2);
    // A late copy of an earlier write undoes nothing.
    assert_eq!(write(&lease, 1, "first").await.unwrap(), 2);
    assert_eq!(stored(&other).await, is("second", 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_exclusive_holder_writes() {
    let server = PostgresServer::start().unwrap();
    let backend = backend(&server.url()).await;
    for asked in [
        long("k").with_mode(Mode::Shared),
        long("k").with_permit_of(2.try_into().unwrap()),
    ] {
        let lease = Arc::clone(&backend).acquire(asked).await.unwrap();
        let error = write(&lease, 1, "x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert!(error.to_string().contains("exclusively"), "{error}");
        lease.release().await.unwrap();
    }
    assert_eq!(read(&backend).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_are_notified_by_the_server() {
    let server = PostgresServer::start().unwrap();
    let (one, other) = (backend(&server.url()).await, backend(&server.url()).await);
    let lease = held(&one).await;
    for sequence in 1..=3 {
        let reading = watched(&other, false).await;
        write(&lease, sequence, "x").await.unwrap();
        notified(reading).await;
    }
    // The connection that listens ends, and a write in the meantime is not missed.
    let reading = watched(&other, false).await;
    psql(
        &server,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'leasehold listens'",
    );
    notified(reading).await;
    write(&lease, 4, "last").await.unwrap();
    let record = watched(&other, false).await.record.unwrap();
    assert_eq!(record.version, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record_wanted_while_held_ends_with_its_session() {
    let server = PostgresServer::start().unwrap();
    let (one, other) = (backend(&server.url()).await, backend(&server.url()).await);
    let lease = held(&one).await;
    write(&lease, 1, "leads").await.unwrap();
    let reading = watched(&other, true).await;
    assert_eq!(reading.record.as_ref().unwrap().value, b"leads");
    let session = block_in_place(|| holder(&server, "k"));
    psql(&server, &format!("SELECT pg_terminate_backend({session})"));
    notified(reading).await;
    let limit = tokio::time::Instant::now() + MINUTE;
    while watched(&other, true).await.record.is_some() {
        assert!(
            tokio::time::Instant::now() < limit,
            "the hold has not ended"
        );
    }
    assert_eq!(stored(&other).await, is("leads", 1));
    // Another session that holds the lock is not its writer.
    let next = held(&other).await;
    assert_eq!(watched(&one, true).await.record, None);
    write(&next, 1, "next").await.unwrap();
    assert_eq!(watched(&one, true).await.record.unwrap().value, b"next");
    next.release().await.unwrap();
    assert_eq!(watched(&one, true).await.record, None);
    // No marker is left behind.
    let markers = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    block_in_place(|| {
        until("no lock is left", MINUTE, || {
            server.psql(markers).unwrap() == "0"
        });
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirmed_records_survive_a_kill_of_the_server() {
    let mut server = PostgresServer::builder().durable().start().unwrap();
    let one = backend(&server.url()).await;
    let lease = held(&one).await;
    for sequence in 1..=5 {
        write(&lease, sequence, format!("{sequence}"))
            .await
            .unwrap();
    }
    block_in_place(|| {
        server.kill();
        server.restart().unwrap();
    });
    let other = backend(&server.url()).await;
    assert_eq!(stored(&other).await, is("5", 5));
    // The connection that reads is opened again.
    assert_eq!(stored(&one).await, is("5", 5));
    let error = write(&lease, 6, "late").await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Lost | ErrorKind::Indeterminate),
        "{error:?}"
    );
    let next = held(&other).await;
    assert_eq!(write(&next, 1, "next").await.unwrap(), 6);
}

/// A write that waits in the server keeps the other locks of its session for a while only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_table_delays_a_write_and_loses_no_lock() {
    let server = PostgresServer::start().unwrap();
    let url = format!("{}?timeout=1s&connect-timeout=60s", server.url());
    let backend = connected(|| PostgresBackend::connect(&url)).await.unwrap();
    let lease = held_at_last(&backend).await;
    while write(&lease, 1, "x").await.is_err() {}
    let mut locker = block_in_place(|| server.psql_session()).unwrap();
    block_in_place(|| locker.ask("BEGIN; LOCK TABLE leasehold_records", MINUTE)).unwrap();
    let error = write(&lease, 2, "y").await.unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Unavailable | ErrorKind::Indeterminate
        ),
        "{error:?}"
    );
    block_in_place(|| locker.ask("ROLLBACK", MINUTE)).unwrap();
    while write(&lease, 2, "y").await.is_err() {}
    lease.clone().renew().await.unwrap();
    assert_eq!(psql(&server, "SELECT version FROM leasehold_records"), "2");
}
