//! Records: the values beside locks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use leasehold_core::{
    ErrorKind, LockClient, LockKey, Mode, Record, Revocation,
    backend::{Attempt, Lease, RecordRead, RecordReading, RecordWrite, Request},
};

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{
        Backend, SOON, at_the_latest, client, granted, granted_within, key, let_expire, lifetime,
        must, poll_times, release, request,
    },
};

/// The numbers of polls after which an operation is interrupted.
const POINTS: std::ops::Range<usize> = 0..6;

fn record_write(sequence: u64, value: &str) -> RecordWrite {
    must(
        RecordWrite::new(sequence, value),
        "a short value is a record",
    )
}

/// Writes a record, and returns its version.
async fn write(lease: &Arc<dyn Lease>, sequence: u64, value: &str) -> u64 {
    let writing = Arc::clone(lease).write_record(record_write(sequence, value));
    must(writing.await, "a holder writes the record")
}

/// Checks that a write is refused because the lease no longer holds the lock.
async fn write_is_lost(lease: &Arc<dyn Lease>, sequence: u64, claim: &str) {
    let writing = Arc::clone(lease).write_record(record_write(sequence, "late"));
    match writing.await {
        Ok(version) => panic!("{claim}: version {version} was written"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Lost, "{claim}: {error:?}"),
    }
}

async fn read_as(backend: &Backend, read: RecordRead) -> RecordReading {
    let reading = Arc::clone(backend).read_record(read).await;
    must(reading, "a read is answered")
}

/// Reads the record by a new handle, as another process would.
async fn read(fixture: &dyn BackendFixture, key: &LockKey) -> Option<Record> {
    let backend = fixture.open().await;
    read_as(&backend, RecordRead::new(key.clone())).await.record
}

/// Returns the value of the record as text.
async fn value(fixture: &dyn BackendFixture, key: &LockKey) -> Option<String> {
    let record = read(fixture, key).await?;
    Some(String::from_utf8_lossy(&record.value).into_owned())
}

fn is(value: &str) -> Option<String> {
    Some(value.to_owned())
}

async fn held(fixture: &dyn BackendFixture, backend: &Backend, key: &LockKey) -> Arc<dyn Lease> {
    granted(
        backend,
        request(fixture, backend, key),
        "a free lock is granted",
    )
    .await
}

/// Checks that the record that a holder writes is read without the lock, by any client, while the
/// lock is held and after its release. It shows who wrote it.
pub async fn record_is_read_by_anyone_and_outlives_the_release(fixture: &dyn BackendFixture) {
    let backend = fixture.open().await;
    let key = key(fixture, "record");
    assert_eq!(
        read(fixture, &key).await,
        None,
        "an unused name has no record"
    );
    let asked: Request = request(fixture, &backend, &key);
    let lease = granted(&backend, asked.clone(), "a free lock is granted").await;
    assert_eq!(read(fixture, &key).await, None, "a lock alone is no record");
    let version = write(&lease, 1, "value").await;
    let Some(while_held) = read(fixture, &key).await else {
        panic!("a record that was written is read while the lock is held")
    };
    assert_eq!(while_held.value, b"value", "the value is read");
    assert_eq!(
        while_held.version, version,
        "the version is that of the write"
    );
    assert_eq!(while_held.owner, asked.owner(), "the record has its owner");
    assert_eq!(while_held.sequence, 1, "the record has its sequence");
    assert_eq!(
        while_held.token,
        lease.fencing_token(),
        "the record has the token of its writer"
    );
    assert_eq!(while_held.label, "testkit", "the record has the label");
    release(&lease).await;
    assert_eq!(
        read(fixture, &key).await,
        Some(while_held),
        "a release leaves the record"
    );
}

/// Checks that the expiry of the writer's lock leaves the record.
pub async fn record_outlives_the_expiry_of_its_writer(fixture: &dyn BackendFixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "record_expiry");
    let lease = held(fixture, &one, &key).await;
    write(&lease, 1, "value").await;
    let_expire(fixture).await;
    let claim = "an expired lock is granted";
    let next = granted_within(fixture, &other, &key, SOON, claim).await;
    assert_eq!(
        value(fixture, &key).await,
        is("value"),
        "the expiry of a lock leaves its record"
    );
    release(&next).await;
}

/// Checks that a lease writes no record after its release: neither while the lock is free, nor
/// while another client holds it.
pub async fn only_the_holder_writes_the_record(fixture: &dyn BackendFixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "only_the_holder");
    let former = held(fixture, &one, &key).await;
    release(&former).await;
    write_is_lost(
        &former,
        1,
        "a write after the release, while the lock is free",
    )
    .await;
    assert_eq!(value(fixture, &key).await, None, "it changes nothing");
    let holder = held(fixture, &other, &key).await;
    write_is_lost(&former, 2, "a write while another client holds the lock").await;
    assert_eq!(value(fixture, &key).await, None, "it changes nothing");
    write(&holder, 1, "holder").await;
    write_is_lost(&former, 3, "a write after that of the holder").await;
    assert_eq!(
        value(fixture, &key).await,
        is("holder"),
        "the record is that of the holder"
    );
    release(&holder).await;
}

/// Checks that a write which is held up anywhere on its way, until another client holds the lock,
/// does not replace what that client has written.
pub async fn delayed_write_is_refused_once_another_holds(fixture: &dyn BackendFixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let mut delayed = Vec::new();
    for point in POINTS {
        let key = key(fixture, "delayed");
        let lease = held(fixture, &one, &key).await;
        let mut writing = Arc::clone(&lease).write_record(record_write(1, "delayed"));
        if poll_times(&mut writing, point).await.is_none() {
            delayed.push((point, key, writing));
        }
    }
    let_expire(fixture).await;
    for (point, key, writing) in delayed {
        let claim = "an expired lock is granted";
        let successor = granted_within(fixture, &other, &key, SOON, claim).await;
        let version = write(&successor, 1, "successor").await;
        if let Ok(earlier) = writing.await {
            assert!(
                earlier < version,
                "a write that was held up after {point} polls took effect after the expiry"
            );
        }
        assert_eq!(
            value(fixture, &key).await,
            is("successor"),
            "a write that was held up after {point} polls replaced that of the next holder"
        );
        release(&successor).await;
    }
}

/// Checks that a write that races with the release of its own lock is over when the next holder is
/// granted the lock.
pub async fn write_racing_release_is_over_for_the_next_holder(fixture: &dyn BackendFixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    for round in 0..8 {
        let key = key(fixture, "record_race");
        let lease = held(fixture, &one, &key).await;
        let writing = tokio::spawn(Arc::clone(&lease).write_record(record_write(1, "racing")));
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        release(&lease).await;
        let claim = "a released lock is granted";
        let next = granted_within(fixture, &other, &key, lifetime(fixture), claim).await;
        let seen = value(fixture, &key).await;
        match writing.await {
            Ok(written) => {
                let lost = written.err().map(|error| error.kind());
                assert!(
                    matches!(lost, None | Some(ErrorKind::Lost)),
                    "a write beside a release is written or lost: {lost:?}"
                );
            }
            Err(panic) => panic!("the write panicked: {panic}"),
        }
        assert_eq!(
            value(fixture, &key).await,
            seen,
            "nothing is written after the next holder was granted the lock"
        );
        release(&next).await;
    }
}

/// Checks that a write that arrives after a later write of the same lease changes nothing.
pub async fn late_write_of_the_same_grant_changes_nothing(fixture: &dyn BackendFixture) {
    let backend = fixture.open().await;
    let key = key(fixture, "late_write");
    let lease = held(fixture, &backend, &key).await;
    let version = write(&lease, 2, "second").await;
    assert_eq!(
        write(&lease, 1, "first").await,
        version,
        "a late write returns the version of the later one"
    );
    assert_eq!(
        value(fixture, &key).await,
        is("second"),
        "a late write undoes nothing"
    );
    release(&lease).await;
}

/// Checks that a repeated write, as after a lost answer, counts once.
pub async fn repeated_write_counts_once(fixture: &dyn BackendFixture) {
    let backend = fixture.open().await;
    let key = key(fixture, "repeated_write");
    let lease = held(fixture, &backend, &key).await;
    for (sequence, value) in [(1, "a"), (2, "b")] {
        let version = write(&lease, sequence, value).await;
        for _ in 0..2 {
            assert_eq!(
                write(&lease, sequence, value).await,
                version,
                "a repeated write has the version of the first"
            );
        }
    }
    release(&lease).await;
}

/// Checks that a read that starts after a write has returned sees this write, on every handle.
pub async fn later_read_sees_the_later_write(fixture: &dyn BackendFixture) {
    let (writer, reader) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "later_read");
    let lease = held(fixture, &writer, &key).await;
    for sequence in 1..=10 {
        let version = write(&lease, sequence, "value").await;
        for backend in [&reader, &writer] {
            let record = read_as(backend, RecordRead::new(key.clone())).await.record;
            assert_eq!(
                record.map(|record| record.version),
                Some(version),
                "a later read sees the write"
            );
        }
    }
    release(&lease).await;
}

/// Checks that the version grows with every write: of several holders, and over clearing. A record
/// that was cleared is not read.
pub async fn versions_grow_over_holders_and_clearing(fixture: &dyn BackendFixture) {
    let handles = [fixture.open().await, fixture.open().await];
    let key = key(fixture, "versions");
    let mut last = 0;
    for turn in 0..4 {
        let lease = held(fixture, &handles[turn % 2], &key).await;
        for (sequence, clears) in [(1, false), (2, true), (3, false), (4, true)] {
            let version = if clears {
                let clearing = Arc::clone(&lease).write_record(RecordWrite::clear(sequence));
                must(clearing.await, "a holder clears the record")
            } else {
                write(&lease, sequence, "value").await
            };
            assert!(version > last, "version {version} follows {last}");
            last = version;
            assert_eq!(
                read(fixture, &key).await.is_none(),
                clears,
                "a record is read unless it was cleared"
            );
        }
        release(&lease).await;
    }
}

/// Checks that each name has a record of its own, whatever bytes it consists of, and that no record
/// is a lock of another name.
pub async fn records_of_awkward_names_are_distinct(fixture: &dyn BackendFixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let stem = fixture.name("awkward_records");
    let mut names = super::input::awkward_names(&stem);
    for end in [
        "/record",
        ":record",
        ".record",
        ".record.new",
        "%record",
        "%records",
        "record",
        "record:",
    ] {
        names.push(format!("{stem}{end}").into_bytes());
        names.push(format!("{end}{stem}").into_bytes());
        names.push(format!("{end}/{stem}").into_bytes());
    }
    let (mut written, mut contended) = (Vec::new(), Vec::new());
    for (number, name) in names.iter().enumerate() {
        let key = must(LockKey::new(name), "a lock name may have any bytes");
        match Arc::clone(&one)
            .try_acquire(request(fixture, &one, &key))
            .await
        {
            Ok(Attempt::Granted(lease)) => {
                assert_eq!(
                    read_as(&other, RecordRead::new(key.clone())).await.record,
                    None,
                    "`{key}` has no record yet"
                );
                write(&lease, 1, &number.to_string()).await;
                written.push((key, number.to_string(), lease));
            }
            // `awkward_names_are_distinct` fails for names that share a lock. A record that is in
            // the way is detected below.
            Ok(Attempt::Contended(_)) => contended.push(key),
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "`{key}`: {error:?}"),
        }
    }
    for (key, number, _) in &written {
        let record = read_as(&one, RecordRead::new(key.clone())).await.record;
        assert_eq!(
            record.map(|record| record.value),
            Some(number.clone().into_bytes()),
            "`{key}` has the record that was written under it"
        );
    }
    for (_, _, lease) in &written {
        release(lease).await;
    }
    for key in written.iter().map(|(key, ..)| key).chain(&contended) {
        let claim = "a lock that nobody holds is granted, whatever records there are";
        let asked = request(fixture, &other, key);
        release(&granted(&other, asked, claim).await).await;
    }
}

/// Checks that a value of any bytes, up to the largest, is stored whole, that an empty value is a
/// record, and that a larger value is refused as invalid input.
pub async fn largest_record_is_kept_whole(fixture: &dyn BackendFixture) {
    let (client, key) = (client(fixture).await, key(fixture, "largest"));
    let guard = must(client.mutex(&key).lock().await, "a free lock is granted");
    let largest: Vec<u8> = (0..Record::MAX_LEN)
        .map(|at| (at % 256).to_le_bytes()[0])
        .collect();
    for value in [Vec::new(), largest] {
        must(
            guard.write_record(&value).await,
            "the holder writes the record",
        );
        let Some(record) = read(fixture, &key).await else {
            panic!("a record of {} bytes is not read", value.len())
        };
        assert_eq!(record.value.len(), value.len(), "the whole value is kept");
        assert!(record.value == value, "the bytes are unchanged");
    }
    match guard.write_record(vec![b'x'; Record::MAX_LEN + 1]).await {
        Ok(_) => panic!("an oversized value was written"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}"),
    }
    let record = read(fixture, &key).await;
    assert_eq!(
        record.map(|record| record.value.len()),
        Some(Record::MAX_LEN),
        "a refused write changes nothing"
    );
    must(guard.release().await, "a release is answered");
}

/// Checks that a lease that others share writes no record.
pub async fn readers_and_permits_write_no_record(fixture: &dyn BackendFixture) {
    let (client, backend) = (client(fixture).await, fixture.open().await);
    let capabilities = backend.capabilities();
    let mut modes = Vec::new();
    if capabilities.shared {
        modes.push(Mode::Shared);
    }
    if capabilities.permits {
        let of = crate::cases::modes::number(2);
        modes.push(Mode::Permit { of });
    }
    for mode in modes {
        let key = key(fixture, "shared_record");
        let asked = request(fixture, &backend, &key).with_mode(mode);
        let lease = granted(&backend, asked, "a free lock is granted").await;
        let writing = Arc::clone(&lease).write_record(record_write(1, "shared"));
        match writing.await {
            Ok(_) => panic!("a {mode} lease wrote a record"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}"),
        }
        assert_eq!(value(fixture, &key).await, None, "nothing was written");
        release(&lease).await;
        let view = match mode {
            Mode::Shared => {
                let guard = client.rwlock(&key).read().await;
                must(guard, "a free lock is granted").info()
            }
            _ => {
                let permit = client.semaphore(&key, 2).acquire().await;
                must(permit, "a free permit is granted").info()
            }
        };
        assert!(
            view.write_record("shared").await.is_err(),
            "a view of a {mode} lock writes no record"
        );
    }
}

/// Checks that a gracefully revoked holder writes its record until its lock ends, and that a holder
/// whose lock was revoked at once writes nothing.
pub async fn revoked_holder_writes_until_its_lock_ends(fixture: &dyn BackendFixture) {
    let (backend, other) = (fixture.open().await, fixture.open().await);
    let (admin, key) = (client(fixture).await, key(fixture, "revoked_record"));
    let lease = held(fixture, &backend, &key).await;
    // A revocation may wait until the holder confirms it by a renewal, which then fails.
    let mut revoking = std::pin::pin!(revoke(&admin, &key, Revocation::Graceful));
    while tokio::time::timeout(SOON, &mut revoking).await.is_err() {
        drop(Arc::clone(&lease).renew().await);
    }
    write(&lease, 1, "until the end").await;
    revoke(&admin, &key, Revocation::Immediate).await;
    let next = held(fixture, &other, &key).await;
    // The revocation may have ended the connection of the holder, so that no answer comes.
    let writing = Arc::clone(&lease).write_record(record_write(2, "late"));
    let late = writing.await.map_err(|error| error.kind());
    assert!(
        matches!(late, Err(ErrorKind::Lost | ErrorKind::Indeterminate)),
        "a write after an immediate revocation: {late:?}"
    );
    assert_eq!(
        value(fixture, &key).await,
        is("until the end"),
        "the record is what its writer wrote while it held the lock"
    );
    release(&next).await;
}

async fn revoke(admin: &LockClient, key: &LockKey, revocation: Revocation) {
    let seen = must(admin.inspect(key).await, "an inspection is answered");
    let Some(holder) = seen.holders.first() else {
        panic!("the holder is not listed")
    };
    let revoked = admin.revoke(holder, revocation).await;
    must(revoked, "a revocation is answered");
}

/// Checks that a watch that was armed by a read is notified of a write, however early the write
/// comes after the read was sent.
pub async fn watcher_is_notified_of_each_write(fixture: &dyn BackendFixture) {
    let (writer, watcher) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "record_watch");
    let lease = held(fixture, &writer, &key).await;
    let mut watch = RecordRead::new(key.clone());
    watch.watch = true;
    for (sequence, point) in (1..).zip(POINTS) {
        let mut reading = Arc::clone(&watcher).read_record(watch.clone());
        let first = poll_times(&mut reading, point).await;
        let version = write(&lease, sequence, "value").await;
        let reading = must(
            match first {
                Some(reading) => reading,
                None => reading.await,
            },
            "a read is answered",
        );
        if reading
            .record
            .is_some_and(|record| record.version >= version)
        {
            continue;
        }
        let claim = format!("a write after {point} polls of the read");
        notified(fixture, reading.changed, &claim).await;
    }
    // A write while the watch is pending.
    let mut reading = read_as(&watcher, watch).await;
    let changed = reading.changed.take();
    let pending = async {
        tokio::time::sleep(SOON).await;
        write(&lease, 100, "value").await;
    };
    tokio::join!(notified(fixture, changed, "a write"), pending);
    release(&lease).await;
}

/// Waits until a watch is notified.
async fn notified(
    fixture: &dyn BackendFixture,
    changed: Option<leasehold_core::backend::BoxFuture<'static, ()>>,
    claim: &str,
) {
    let Some(changed) = changed else {
        panic!("waiters are notified of releases, and watchers of records are not")
    };
    let limit = at_the_latest(fixture, lifetime(fixture) + Duration::from_secs(1));
    let notified = tokio::time::timeout(limit, changed).await;
    assert!(notified.is_ok(), "the watcher was not notified of {claim}");
}

/// Checks that a record that is wanted only while its writer holds the lock is not shown after the
/// release, nor to be that of the next holder.
pub async fn record_wanted_while_held_ends_with_the_hold(fixture: &dyn BackendFixture) {
    let (one, other) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "while_held");
    let mut wanted = RecordRead::new(key.clone());
    wanted.while_held = true;
    let shown = async || {
        let record = read_as(&other, wanted.clone()).await.record?;
        Some(String::from_utf8_lossy(&record.value).into_owned())
    };
    let first = held(fixture, &one, &key).await;
    assert_eq!(shown().await, None, "a holder without a record shows none");
    write(&first, 1, "first").await;
    assert_eq!(shown().await, is("first"), "the holder's record is shown");
    release(&first).await;
    assert_eq!(shown().await, None, "it is not shown after the release");
    let second = held(fixture, &one, &key).await;
    assert_eq!(
        shown().await,
        None,
        "nor while the next holder has written none"
    );
    write(&second, 1, "second").await;
    assert_eq!(
        shown().await,
        is("second"),
        "that of the next holder is shown"
    );
    release(&second).await;
}

/// Checks that the watch of a record that is wanted only while its writer holds the lock is
/// notified of the end of the hold.
pub async fn watcher_is_notified_of_the_end_of_the_hold(fixture: &dyn BackendFixture) {
    let (one, watcher) = (fixture.open().await, fixture.open().await);
    let key = key(fixture, "hold_watch");
    let mut wanted = RecordRead::new(key.clone());
    (wanted.while_held, wanted.watch) = (true, true);
    let lease = held(fixture, &one, &key).await;
    write(&lease, 1, "value").await;
    let releasing = AtomicBool::new(false);
    let ending = async {
        tokio::time::sleep(SOON).await;
        releasing.store(true, SeqCst);
        release(&lease).await;
    };
    let watching = async {
        // A watch may be notified without a change.
        while !releasing.load(SeqCst) {
            let reading = read_as(&watcher, wanted.clone()).await;
            if reading.record.is_none() {
                break;
            }
            notified(fixture, reading.changed, "the end of the hold").await;
        }
    };
    tokio::join!(watching, ending);
}

/// Checks that a backend without records refuses them with a typed error, and that this costs no
/// lock.
pub async fn missing_records_are_refused_typed(fixture: &dyn BackendFixture) {
    let (client, backend) = (client(fixture).await, fixture.open().await);
    let key = key(fixture, "no_records");
    let guard = must(client.mutex(&key).lock().await, "a free lock is granted");
    let errors = [
        client.record(&key).await.err(),
        client.watch(&key).next().await.err(),
        guard.write_record("value").await.err(),
        guard.clear_record().await.err(),
        Arc::clone(&backend)
            .read_record(RecordRead::new(key.clone()))
            .await
            .err(),
    ];
    for error in errors {
        let Some(error) = error else {
            panic!("a backend without records answered")
        };
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    }
    assert!(guard.is_held(), "the refusal loses no lock");
    must(guard.release().await, "a release is answered");
}
