//! Records beside lock files, as they are on disk.
#![cfg(target_os = "linux")]

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use leasehold_core::{
    Error, ErrorKind, LockKey, Record, Released,
    backend::{Attempt, Lease, LockBackend, RecordRead, RecordReading, RecordWrite, Request},
};
use leasehold_local::{FileBackend, FileConfig};

use crate::file_processes::{Holder, key, open, request, soon, two_users, until};

/// The record of the lock `k/1` in `dir`.
fn record_in(dir: &Path) -> PathBuf {
    dir.join("k%2f1.record")
}

async fn granted(backend: &Arc<FileBackend>, request: Request) -> Arc<dyn Lease> {
    match Arc::clone(backend).try_acquire(request).await.unwrap() {
        Attempt::Granted(lease) => lease,
        Attempt::Contended(contention) => panic!("refused: {contention:?}"),
    }
}

async fn held(backend: &Arc<FileBackend>) -> Arc<dyn Lease> {
    granted(backend, request("exclusive").with_label("web-3")).await
}

async fn write(
    lease: &Arc<dyn Lease>,
    sequence: u64,
    value: impl AsRef<[u8]>,
) -> Result<u64, Error> {
    let write = RecordWrite::new(sequence, value).unwrap();
    Arc::clone(lease).write_record(write).await
}

async fn read_of(
    backend: &Arc<FileBackend>,
    key: LockKey,
    while_held: bool,
) -> Result<RecordReading, Error> {
    let mut read = RecordRead::new(key);
    (read.watch, read.while_held) = (true, while_held);
    Arc::clone(backend).read_record(read).await
}

async fn watched(backend: &Arc<FileBackend>, while_held: bool) -> RecordReading {
    read_of(backend, key(), while_held).await.unwrap()
}

async fn read(backend: &Arc<FileBackend>) -> Result<Option<Record>, Error> {
    let reading = read_of(backend, key(), false).await;
    reading.map(|reading| reading.record)
}

/// Returns the value and the version of the record.
async fn stored(backend: &Arc<FileBackend>) -> Option<(String, u64)> {
    let record = read(backend).await.unwrap()?;
    Some((String::from_utf8(record.value).unwrap(), record.version))
}

fn is(value: &str, version: u64) -> Option<(String, u64)> {
    Some((value.to_owned(), version))
}

/// Only notifications can complete it, because the backends of these tests poll every hour.
async fn notified(reading: RecordReading) {
    soon(reading.changed.expect("records are watched")).await;
}

/// Starts a process that holds the lock, and has written its record.
fn holder_with_record(dir: &Path, mode: &str, value: &str) -> Holder {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env("LEASEHOLD_TEST_RECORD", value);
    Holder::spawn(command, dir, mode)
}

#[tokio::test]
async fn the_record_is_a_file_beside_the_lock_file() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let lease = held(&backend).await;
    let value = b"a\nb\0\xff";
    assert_eq!(write(&lease, 1, value).await.unwrap(), 1);

    let record = read(&backend).await.unwrap().unwrap();
    let micros = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_micros()
    };
    let header = |version: u64, sequence: u64, micros: u128, len: &str| {
        format!(
            "leasehold-record1 {version} {sequence} {} {} {micros} 5 {len}\nweb-3",
            record.owner,
            lease.fencing_token().unwrap()
        )
    };
    let expected = [header(1, 1, micros(record.written), "5").as_bytes(), value].concat();
    assert_eq!(fs::read(record_in(dir.path())).unwrap(), expected);
    assert_eq!((record.value.as_slice(), record.version), (&value[..], 1));
    let mode = fs::metadata(record_in(dir.path())).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600, "as the directory");

    let cleared = Arc::clone(&lease).write_record(RecordWrite::clear(2));
    assert_eq!(cleared.await.unwrap(), 2);
    assert!(read(&backend).await.unwrap().is_none());
    let left = fs::read_to_string(record_in(dir.path())).unwrap();
    assert!(left.starts_with("leasehold-record1 2 2 ") && left.ends_with(" 5 -\nweb-3"));
    assert_eq!(lease.release().await.unwrap(), Released::Freed);

    let next = held(&backend).await;
    assert_eq!(write(&next, 1, "").await.unwrap(), 3);
    let mut files: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    files.sort();
    assert_eq!(files, ["k%2f1.lock", "k%2f1.record", "k%2f1.token"]);
}

#[tokio::test]
async fn what_is_no_record_is_a_conflict_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let lease = held(&backend).await;
    write(&lease, 1, "ours").await.unwrap();
    let path = record_in(dir.path());
    let ours = fs::read(&path).unwrap();
    let conflict = async |what: &str| {
        for error in [
            read(&backend).await.unwrap_err(),
            write(&lease, 2, "new").await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Conflict, "{what}: {error}");
            let text = error.to_string();
            assert!(
                text.contains("k%2f1.record") && text.contains("remove it"),
                "{text}"
            );
        }
    };
    let contents = [
        Vec::new(),
        b"done".to_vec(),
        vec![0; 1 << 20],
        [&ours[..], b"x"].concat(),
        ours[..ours.len() - 1].to_vec(),
    ];
    for theirs in contents {
        fs::write(&path, &theirs).unwrap();
        conflict("a text").await;
        assert!(fs::read(&path).unwrap() == theirs);
    }
    fs::write(&path, "leasehold-record2 what a later version writes").unwrap();
    for error in [
        read(&backend).await.unwrap_err(),
        write(&lease, 2, "new").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    conflict("a directory").await;
    fs::remove_dir(&path).unwrap();
    let target = dir.path().join("target");
    fs::write(&target, &ours).unwrap();
    symlink("target", &path).unwrap();
    conflict("a link").await;
    assert_eq!(fs::read(&target).unwrap(), ours);
    fs::remove_file(&path).unwrap();
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    soon(conflict("a pipe")).await;

    // The lock is not affected, and the record works again once the file is removed.
    lease.clone().renew().await.unwrap();
    fs::remove_file(&path).unwrap();
    write(&lease, 3, "new").await.unwrap();
    assert_eq!(stored(&backend).await, is("new", 1));
}

#[tokio::test]
async fn file_that_a_killed_writer_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let lease = held(&backend).await;
    let left = dir.path().join("k%2f1.record.new");
    fs::write(&left, "leasehold-record1 7 half a rec").unwrap();
    assert!(read(&backend).await.unwrap().is_none());
    write(&lease, 1, "whole").await.unwrap();
    assert_eq!(stored(&backend).await, is("whole", 1));
    assert!(!left.exists());
}

#[tokio::test]
async fn repeated_and_late_writes_of_a_lease_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let lease = held(&backend).await;
    write(&lease, 1, "one").await.unwrap();
    write(&lease, 2, "two").await.unwrap();
    let before = fs::metadata(record_in(dir.path())).unwrap().ino();
    assert_eq!(write(&lease, 2, "two").await.unwrap(), 2);
    assert_eq!(write(&lease, 1, "one").await.unwrap(), 2);
    assert_eq!(fs::metadata(record_in(dir.path())).unwrap().ino(), before);
    assert_eq!(stored(&backend).await, is("two", 2));
    assert!(watched(&backend, true).await.record.is_some());
}

#[tokio::test]
async fn only_an_exclusive_holder_writes() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    for mode in ["shared", "permit"] {
        let lease = granted(&backend, request(mode)).await;
        let error = write(&lease, 1, "x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        lease.release().await.unwrap();
    }
    let lease = held(&backend).await;
    lease.clone().release().await.unwrap();
    let error = write(&lease, 1, "late").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert!(!record_in(dir.path()).exists());
}

/// A lock whose file or directory was removed may have another holder.
#[tokio::test]
async fn holder_of_a_removed_lock_file_writes_nothing() {
    for directory in [false, true] {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("locks");
        let backend = open(&dir);
        let lease = held(&backend).await;
        write(&lease, 1, "before").await.unwrap();
        if directory {
            fs::remove_dir_all(&dir).unwrap();
            fs::create_dir(&dir).unwrap();
        } else {
            fs::remove_file(backend.path_of(&key())).unwrap();
        }
        let error = write(&lease, 2, "late").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
        let record = read(&backend).await.unwrap();
        assert_eq!(
            record.map(|record| record.version),
            (!directory).then_some(1)
        );
        assert!(!dir.join("k%2f1.record.new").exists());
        // Even if the path leads to the locked file again.
        assert_eq!(lease.release().await.unwrap(), Released::AlreadyLost);
    }
}

/// Without the turns of writes and releases, a write would replace the record of a later holder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_takes_effect_after_the_release() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let mut version = 0;
    for _ in 0..40 {
        let lease = held(&backend).await;
        let writes = tokio::spawn({
            let lease = Arc::clone(&lease);
            async move {
                let mut sequence = 0;
                loop {
                    sequence += 1;
                    match write(&lease, sequence, "x").await {
                        Ok(_) => {}
                        Err(error) => return error.kind(),
                    }
                }
            }
        });
        let wanted = version + 2;
        until(async || stored(&backend).await.is_some_and(|(_, at)| at >= wanted)).await;
        lease.release().await.unwrap();
        version = stored(&backend).await.unwrap().1;
        assert_eq!(soon(writes).await.unwrap(), ErrorKind::Lost);
        assert_eq!(stored(&backend).await.unwrap().1, version);
    }
}

#[tokio::test]
async fn writes_of_another_process_notify_watchers() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let none = watched(&backend, false).await;
    assert!(none.record.is_none());
    let mut other = holder_with_record(dir.path(), "exclusive", "theirs");
    notified(none).await;
    other.expect("held:");
    let mut reading = watched(&backend, false).await;
    assert_eq!(reading.record.as_ref().unwrap().value, b"theirstheirs");
    // Neither a release, nor a waiter, nor another record changes it.
    other.release();
    other.expect("released:");
    let lease = held(&backend).await;
    let another = granted(&backend, Request::new(LockKey::new("k/2").unwrap())).await;
    write(&another, 1, "x").await.unwrap();
    let last = watched(&backend, false).await;
    write(&lease, 1, "ours").await.unwrap();
    notified(last).await;
    // It was armed before the write, so it would have been notified of an earlier event first.
    assert!(reading.changed.as_mut().unwrap().now_or_never().is_some());
}

#[tokio::test]
async fn changes_of_other_files_notify_no_watcher() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let lease = held(&backend).await;
    write(&lease, 1, "ours").await.unwrap();
    let mut reading = watched(&backend, false).await;
    let another = granted(&backend, Request::new(LockKey::new("k/2").unwrap())).await;
    let other = read_of(&backend, LockKey::new("k/2").unwrap(), false)
        .await
        .unwrap();
    lease.clone().renew().await.unwrap();
    lease.release().await.unwrap();
    write(&another, 1, "x").await.unwrap();
    // All events up to this one are known now.
    notified(other).await;
    assert!(reading.changed.as_mut().unwrap().now_or_never().is_none());
}

#[tokio::test]
async fn record_while_held_ends_with_its_writers_hold() {
    for killed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path());
        let before = watched(&backend, true).await;
        let mut other = holder_with_record(dir.path(), "exclusive", "leads");
        notified(before).await;
        other.expect("held:");
        let leads = watched(&backend, true).await;
        assert_eq!(leads.record.as_ref().unwrap().value, b"leadsleads");
        if killed {
            other.child.kill().unwrap();
        } else {
            other.release();
        }
        // The kernel reports the death of a process a moment before its locks end.
        notified(leads).await;
        let ended = watched(&backend, true).await;
        assert!(ended.record.is_none(), "killed: {killed}");
        assert_eq!(stored(&backend).await, is("leadsleads", 1));

        // The next holder is not the writer, until it writes. The lock ends after the hold of its
        // record.
        let lease = soon(Arc::clone(&backend).acquire(request("exclusive")));
        let lease = lease.await.unwrap();
        assert!(watched(&backend, true).await.record.is_none());
        write(&lease, 1, "next").await.unwrap();
        notified(ended).await;
        for sequence in [2, 3] {
            let shown = watched(&backend, true).await;
            write(&lease, sequence, "next").await.unwrap();
            notified(shown).await;
        }
        let shown = watched(&backend, true).await;
        assert_eq!(shown.record.as_ref().unwrap().version, 4);
        lease.release().await.unwrap();
        notified(shown).await;
        assert!(watched(&backend, true).await.record.is_none());
    }
}

#[tokio::test]
async fn stopped_writer_still_holds() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let mut other = holder_with_record(dir.path(), "exclusive", "leads");
    other.expect("held:");
    let pid = other.child.id().to_string();
    let signal = |name: &str| {
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    };
    signal("-STOP");
    assert!(watched(&backend, true).await.record.is_some());
    signal("-CONT");
}

/// The lock is held as long as a child process has the descriptor, and so is the record shown.
#[tokio::test]
async fn child_that_inherits_the_lock_inherits_the_hold_of_the_record() {
    let dir = tempfile::tempdir().unwrap();
    let config = FileConfig::new()
        .with_fallback_poll_interval(Duration::from_secs(3600))
        .with_inherited_by_children(true);
    let backend = Arc::new(FileBackend::open_with(dir.path(), config).unwrap());
    let lease = held(&backend).await;
    write(&lease, 1, "leads").await.unwrap();
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    let shown = watched(&backend, true).await;
    assert!(shown.record.is_some());
    // A release ends the hold of the child, too.
    lease.release().await.unwrap();
    notified(shown).await;
    assert!(watched(&backend, true).await.record.is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The directories of a long name are missing until its lock is used.
#[tokio::test]
async fn records_of_long_and_awkward_names_are_watched() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let long = "x".repeat(1024);
    let names = [
        "a",
        "a/record",
        "a.record",
        "a.record.new",
        ".",
        "..",
        "%record",
        &long,
    ];
    for name in names {
        let key = LockKey::new(name).unwrap();
        let none = read_of(&backend, key.clone(), false).await.unwrap();
        assert!(none.record.is_none(), "{name}");
        let lease = granted(&backend, Request::new(key.clone())).await;
        assert_eq!(write(&lease, 1, name).await.unwrap(), 1, "{name}");
        notified(none).await;
    }
    for name in names {
        let key = LockKey::new(name).unwrap();
        let record = read_of(&backend, key, false).await.unwrap().record;
        assert_eq!(record.unwrap().value, name.as_bytes());
    }
}

/// Whenever a writer is killed, the record is whole, and no write that was confirmed is lost.
#[tokio::test]
async fn killed_writers_leave_a_whole_record() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let mut confirmed = 0;
    for round in 1..=10 {
        let mut other = holder_with_record(dir.path(), "exclusive", "for ever ");
        for _ in 0..round {
            confirmed = other.expect("written:").parse().unwrap();
        }
        other.child.kill().unwrap();
        other.child.wait().unwrap();
        let record = read(&backend).await.unwrap().unwrap();
        assert!(
            record.version >= confirmed,
            "{} {confirmed}",
            record.version
        );
        let expected = "for ever ".repeat(record.sequence as usize % 1000 + 1);
        assert!(record.value == expected.as_bytes());
        let lease = held(&backend).await;
        assert_eq!(write(&lease, 1, "ours").await.unwrap(), record.version + 1);
        confirmed = record.version + 1;
        lease.release().await.unwrap();
    }
}

#[tokio::test]
async fn full_length_is_kept_and_the_clock_is_that_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let lease = granted(&backend, Request::new(key()).with_label("l".repeat(300))).await;
    let value = vec![b'\n'; Record::MAX_LEN];
    write(&lease, 1, &value).await.unwrap();
    let mut asked = RecordRead::new(key());
    asked.clock = true;
    let before = SystemTime::now();
    let reading = Arc::clone(&backend).read_record(asked).await.unwrap();
    assert!(before <= reading.now.unwrap() && reading.now.unwrap() <= SystemTime::now());
    let record = reading.record.unwrap();
    assert!(record.value == value && record.label.len() == Record::MAX_LABEL_LEN);
    assert!(reading.changed.is_none());
}

/// In a sticky directory, only the owner of a file can replace it.
#[tokio::test]
async fn users_of_a_shared_directory_share_its_records() {
    let [first, second] = two_users();
    for (directory, sticky) in [(0o777, false), (0o1777, true)] {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(directory)).unwrap();
        let start = |user, value| {
            let mut command = Holder::command_as(user, "077");
            command
                .env("LEASEHOLD_TEST_SHARED", "")
                .env("LEASEHOLD_TEST_RECORD", value);
            Holder::spawn(command, dir.path(), "exclusive")
        };
        let mut holder = start(first, "one ");
        holder.expect("held:");
        holder.release();
        holder.expect("released:");
        let mode = fs::metadata(record_in(dir.path())).unwrap().mode();
        assert_eq!(mode & 0o006, 0o006, "as the directory");

        let mut holder = start(second, "two ");
        let refused = sticky && first != second;
        if refused {
            let error = holder.expect("refused:");
            assert!(
                error.contains("Denied") && error.contains("k%2f1.record"),
                "{error}"
            );
        } else {
            assert_eq!(holder.expect("written:"), "2");
        }
        let config = FileConfig::new().with_shared(true);
        let backend = Arc::new(FileBackend::open_with(dir.path(), config).unwrap());
        let expected = if refused {
            is("one one ", 1)
        } else {
            is("two two ", 2)
        };
        assert_eq!(stored(&backend).await, expected);
        assert!(!dir.path().join("k%2f1.record.new").exists());
    }
}

/// Writers of several processes are killed and stopped, and the lock file is removed again and
/// again. Nobody misses a confirmed write, no version repeats, and no record is shown as held after
/// the release of its writer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_of_records_is_that_of_their_holders() {
    const ROUNDS: usize = 60;
    let dir = tempfile::tempdir().unwrap();
    let lock = open(dir.path()).path_of(&key());
    let over = Arc::new(AtomicBool::new(false));
    let confirmed = Arc::new(Mutex::new(HashMap::new()));
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let backend = Arc::new(FileBackend::open(dir.path()).unwrap());
        let (over, confirmed) = (Arc::clone(&over), Arc::clone(&confirmed));
        tasks.push(tokio::spawn(async move {
            while !over.load(SeqCst) {
                let asked = request("exclusive");
                let owner = asked.owner();
                let lease = Arc::clone(&backend).acquire(asked).await.unwrap();
                for sequence in 1..=4 {
                    match write(&lease, sequence, owner.to_string()).await {
                        Ok(version) => {
                            let other = confirmed.lock().unwrap().insert(version, owner);
                            assert_eq!(other, None, "version {version} repeats");
                        }
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Lost, "{error}"),
                    }
                }
                lease.release().await.unwrap();
                let shown = watched(&backend, true).await.record;
                assert!(shown.is_none_or(|record| record.owner != owner));
            }
        }));
    }
    let reader = Arc::new(FileBackend::open(dir.path()).unwrap());
    for while_held in [false, true] {
        let (reader, over, confirmed) = (
            Arc::clone(&reader),
            Arc::clone(&over),
            Arc::clone(&confirmed),
        );
        tasks.push(tokio::spawn(async move {
            let mut last = 0;
            while !over.load(SeqCst) {
                let before = confirmed.lock().unwrap().keys().max().copied().unwrap_or(0);
                if let Some(record) = watched(&reader, while_held).await.record {
                    assert!(record.version >= last.max(before), "an old record was read");
                    last = record.version;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }));
    }
    let signal = |other: &Holder, name: &str| {
        let pid = other.child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    };
    for round in 0..ROUNDS {
        let mut other = holder_with_record(dir.path(), "exclusive", "for ever ");
        other.expect("written:");
        signal(&other, "-STOP");
        drop(fs::remove_file(&lock));
        tokio::time::sleep(Duration::from_millis(round as u64 % 7)).await;
        signal(&other, "-CONT");
        if round % 2 == 0 {
            other.expect("refused:");
        }
    }
    over.store(true, SeqCst);
    for task in tasks {
        soon(task).await.unwrap();
    }
    let confirmed = confirmed.lock().unwrap();
    assert!(confirmed.len() > ROUNDS / 4, "{}", confirmed.len());
}
