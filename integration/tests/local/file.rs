//! Tests of the file backend within one process. `file_processes.rs` tests it between processes.
#![cfg(target_os = "linux")]

use std::{
    num::NonZeroU32,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use leasehold_core::{
    ClockDrift, ErrorKind, LockClient, LockKey, Mode, Released, TestClock, Ttl,
    backend::{Attempt, Lease, LockBackend, Request},
};
use leasehold_local::{FileBackend, FileConfig};

type Backend = Arc<FileBackend>;

/// Returns a configuration with which only notifications can make these tests pass.
fn open(dir: &Path) -> Backend {
    let config = FileConfig::new().with_fallback_poll_interval(Duration::from_secs(3600));
    Arc::new(FileBackend::open_with(dir, config).unwrap())
}

fn request(key: impl AsRef<[u8]>) -> Request {
    Request::new(LockKey::new(key).unwrap())
}

fn permit(key: &str, of: u32) -> Request {
    request(key).with_permit_of(NonZeroU32::new(of).unwrap())
}

async fn attempt(backend: &Backend, request: Request) -> Option<Arc<dyn Lease>> {
    match Arc::clone(backend).try_acquire(request).await.unwrap() {
        Attempt::Granted(lease) => Some(lease),
        Attempt::Contended(_) => None,
    }
}

fn token(lease: &Arc<dyn Lease>) -> u64 {
    lease.fencing_token().unwrap().get()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("woken long before")
}

#[tokio::test]
async fn exclusive_excludes_all_and_readers_share() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, other) = (open(dir.path()), open(dir.path()));
    let writer = attempt(&backend, request("k")).await.unwrap();
    assert!(attempt(&other, request("k")).await.is_none());
    assert!(
        attempt(&backend, request("k").with_mode(Mode::Shared))
            .await
            .is_none()
    );
    assert!(attempt(&other, request("K")).await.is_some());
    assert_eq!(
        Arc::clone(&writer).release().await.unwrap(),
        Released::Freed
    );
    let first = attempt(&backend, request("k").with_mode(Mode::Shared))
        .await
        .unwrap();
    let second = attempt(&other, request("k").with_mode(Mode::Shared))
        .await
        .unwrap();
    assert_eq!(writer.release().await.unwrap(), Released::AlreadyLost);
    assert!(attempt(&other, request("k")).await.is_none());
    first.release().await.unwrap();
    assert!(attempt(&other, request("k")).await.is_none());
    second.release().await.unwrap();
    assert!(attempt(&other, request("k")).await.is_some());
}

#[tokio::test]
async fn permits_are_counted_and_two_counts_are_a_mismatch() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let _mutex = attempt(&backend, request("k")).await.unwrap();
    let first = attempt(&backend, permit("k", 2)).await.unwrap();
    let second = attempt(&backend, permit("k", 2)).await.unwrap();
    assert_eq!(first.fencing_token(), None);
    assert!(attempt(&backend, permit("k", 2)).await.is_none());
    let error = Arc::clone(&backend)
        .try_acquire(permit("k", 3))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(
        error.message().contains("of 2 permits, but 3 were"),
        "{error}"
    );
    first.release().await.unwrap();
    assert!(attempt(&backend, permit("k", 2)).await.is_some());
    second.release().await.unwrap();
    for _ in 0..3 {
        std::mem::forget(attempt(&backend, permit("k", 3)).await.unwrap());
    }
    assert!(attempt(&backend, permit("k", 3)).await.is_none());
    let error = Arc::clone(&backend)
        .try_acquire(permit("k", 100_000))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn tokens_grow_over_backends_and_readers_stay_between_writers() {
    let dir = tempfile::tempdir().unwrap();
    let mut last_writer = 0;
    let mut last_reader = 0;
    for _ in 0..20 {
        let backend = open(dir.path());
        let writer = attempt(&backend, request("k")).await.unwrap();
        assert!(token(&writer) > last_writer.max(last_reader));
        last_writer = token(&writer);
        writer.release().await.unwrap();
        for _ in 0..2 {
            let reader = attempt(&backend, request("k").with_mode(Mode::Shared))
                .await
                .unwrap();
            assert!(token(&reader) > last_writer);
            last_reader = token(&reader);
            reader.release().await.unwrap();
        }
    }
    // The record is far above the clock, so only the file keeps the tokens growing.
    let backend = open(dir.path());
    let far = 1 << 62;
    std::fs::write(
        dir.path().join("k.token"),
        "leasehold1 04611686018427387904 737da3873a2e37f8\n1 x\n",
    )
    .unwrap();
    let high = attempt(&backend, request("k")).await.unwrap();
    assert!(token(&high) > far);
    high.release().await.unwrap();
    let next = attempt(&open(dir.path()), request("k")).await.unwrap();
    assert!(token(&next) > far + 1);
    next.release().await.unwrap();
    let reader = request("k").with_mode(Mode::Shared);
    assert!(token(&attempt(&backend, reader).await.unwrap()) > far + 3);
    let last = "leasehold1 18446744073709551615 b253d5071ab19c43\n1 x\n";
    std::fs::write(dir.path().join("other.token"), last).unwrap();
    let error = Arc::clone(&backend)
        .try_acquire(request("other"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_torn_token_file_never_lowers_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let path = dir.path().join("k.token");
    let mut last = 0;
    for garbage in [
        &b""[..],
        b"\0\0\0\0",
        b"leasehold1 0000",
        b"leasehold1 00000000000000000001 0000000000000000\n",
    ] {
        std::fs::write(&path, garbage).unwrap();
        let lease = attempt(&backend, request("k")).await.unwrap();
        assert!(token(&lease) > last);
        last = token(&lease);
        lease.release().await.unwrap();
    }
}

#[tokio::test]
async fn lock_file_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let path = dir.path().join("yarn.lock");
    for text in [
        "# yarn lockfile v1\n",
        "leasehold1 00000000000000000001 0000000000000000\n",
        "",
    ] {
        std::fs::write(&path, text).unwrap();
        for mode in [Mode::Exclusive, Mode::Shared] {
            let lease = attempt(&backend, request("yarn").with_mode(mode))
                .await
                .unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            lease.release().await.unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}

/// Contents that another program may have written to a file of this name.
const FOREIGN: [&[u8]; 5] = [b"secret", b"7\n", b"\0\0\0\0x", &[0xff; 4096], &[0; 4096]];

#[tokio::test]
async fn file_of_another_program_is_refused_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    for (file, requests) in [
        (
            "k.token",
            vec![request("k"), request("k").with_mode(Mode::Shared)],
        ),
        ("k.permits", vec![permit("k", 1), permit("k", 2)]),
    ] {
        let path = dir.path().join(file);
        for text in FOREIGN {
            std::fs::write(&path, text).unwrap();
            for request in &requests {
                let error = Arc::clone(&backend)
                    .try_acquire(request.clone())
                    .await
                    .unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                assert!(
                    error.to_string().contains(path.to_str().unwrap()),
                    "{error}"
                );
                assert_eq!(std::fs::read(&path).unwrap(), text);
            }
        }
        std::fs::remove_file(&path).unwrap();
        // A refusal leaves nothing locked.
        for request in requests {
            attempt(&backend, request)
                .await
                .expect("free")
                .release()
                .await
                .unwrap();
        }
        std::fs::remove_file(&path).unwrap();
    }
}

#[tokio::test]
async fn only_regular_files_are_opened_whatever_their_suffix() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let target = dir.path().join("target");
    std::fs::write(&target, "precious").unwrap();
    type Plant<'a> = (&'a str, &'a dyn Fn(&Path));
    let plant: [Plant<'_>; 5] = [
        ("link", &|path| {
            std::os::unix::fs::symlink(&target, path).unwrap();
        }),
        ("dangling link", &|path| {
            std::os::unix::fs::symlink("nowhere", path).unwrap();
        }),
        ("directory", &|path| std::fs::create_dir(path).unwrap()),
        ("pipe", &|path| {
            assert!(
                std::process::Command::new("mkfifo")
                    .arg(path)
                    .status()
                    .unwrap()
                    .success()
            );
        }),
        ("socket", &|path| {
            drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        }),
    ];
    for (suffix, request) in [
        ("lock", request("k")),
        ("token", request("k")),
        ("writers", request("k").with_mode(Mode::Shared)),
        ("permits", permit("k", 1)),
        ("permit-0", permit("k", 1)),
    ] {
        let path = dir.path().join(format!("k.{suffix}"));
        for (what, plant) in plant {
            drop(std::fs::remove_file(&path));
            plant(&path);
            let error = soon(Arc::clone(&backend).try_acquire(request.clone()))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what} {error}");
            assert!(
                error.to_string().contains(path.to_str().unwrap()),
                "{what} {error}"
            );
            let seen = soon(backend.inspect(request.key())).await.unwrap();
            assert!(seen.holders.is_empty() && seen.waiters.is_empty(), "{what}");
            if path.is_dir() && !path.is_symlink() {
                std::fs::remove_dir(&path).unwrap();
            }
        }
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    assert!(!dir.path().join("nowhere").exists());
}

#[tokio::test]
async fn other_name_of_a_hard_link_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let (token, other) = (dir.path().join("k.token"), dir.path().join("other"));
    let first = attempt(&backend, request("k")).await.unwrap();
    first.clone().release().await.unwrap();
    // An empty file, and a record of Leasehold, as in a copy by hard links.
    for text in [Vec::new(), std::fs::read(&token).unwrap()] {
        std::fs::write(&other, &text).unwrap();
        std::fs::remove_file(&token).unwrap();
        std::fs::hard_link(&other, &token).unwrap();
        let next = attempt(&backend, request("k")).await.unwrap();
        assert!(self::token(&next) > self::token(&first));
        next.release().await.unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), text);
        assert!(!std::fs::read(&token).unwrap().is_empty());
    }
    std::fs::write(&other, "").unwrap();
    std::fs::hard_link(&other, dir.path().join("k.permits")).unwrap();
    let error = Arc::clone(&backend)
        .try_acquire(permit("k", 1))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(std::fs::read(&other).unwrap().is_empty());
}

#[tokio::test]
async fn a_planted_directory_link_is_not_followed() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let backend = open(dir.path());
    let long = || request("x".repeat(500));
    let path = backend.path_of(long().key());
    std::os::unix::fs::symlink(elsewhere.path(), path.parent().unwrap().parent().unwrap()).unwrap();
    for request in [
        long(),
        long().with_mode(Mode::Shared),
        long().with_permit_of(NonZeroU32::MIN),
    ] {
        let error = Arc::clone(&backend).try_acquire(request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn directory_writable_by_others_needs_the_shared_option() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let parent = tempfile::tempdir().unwrap();
    let (dir, link) = (parent.path().join("locks"), parent.path().join("link"));
    std::fs::create_dir(&dir).unwrap();
    symlink(&dir, &link).unwrap();
    for mode in [0o777, 0o1777, 0o757] {
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode)).unwrap();
        for path in [&dir, &link] {
            let error = FileBackend::open(path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            assert!(error.to_string().contains("with_shared"), "{error}");
            let shared = FileBackend::open_with(path, FileConfig::new().with_shared(true)).unwrap();
            attempt(&Arc::new(shared), request("k"))
                .await
                .unwrap()
                .release()
                .await
                .unwrap();
        }
    }
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    FileBackend::open(&link).unwrap();
    FileBackend::open(parent.path().join("new/er")).unwrap();
    let mode = |path: &str| {
        std::fs::metadata(parent.path().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!((mode("new"), mode("new/er")), (0o700, 0o700));
}

/// A user who can read a lock file can lock it, so read access to the directory must not be enough.
#[tokio::test]
async fn user_who_cannot_write_the_directory_cannot_hold_its_locks() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let backend = open(dir.path());
    let long = request("x".repeat(500));
    for request in [
        request("k"),
        request("k").with_mode(Mode::Shared),
        permit("k", 1),
        long.clone(),
    ] {
        attempt(&backend, request)
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    assert_ne!(
        std::fs::metadata(backend.path_of(long.key()))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0
    );
    for entry in std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} {mode:o}", entry.path().display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directory_removed_repeatedly_fails_no_waiter() {
    use std::sync::atomic::AtomicU64;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("locks");
    let backend = open(&dir);
    let ended = Arc::new(AtomicBool::new(false));
    let granted = Arc::new(AtomicU64::new(0));
    let remover = {
        let (dir, ended, granted) = (dir.clone(), Arc::clone(&ended), Arc::clone(&granted));
        std::thread::spawn(move || {
            // Removes the directory once for each grant, so that an attempt succeeds at last,
            // however slow the machine is.
            let mut seen = 0;
            while !ended.load(Ordering::Relaxed) {
                match granted.load(Ordering::Relaxed) {
                    now if now > seen => {
                        seen = now;
                        drop(std::fs::remove_dir_all(&dir));
                    }
                    _ => std::thread::yield_now(),
                }
            }
        })
    };
    let inside = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (backend, inside, granted) = (
                Arc::clone(&backend),
                Arc::clone(&inside),
                Arc::clone(&granted),
            );
            tokio::spawn(async move {
                for _ in 0..1_500 {
                    let lease = Arc::clone(&backend).acquire(request("k")).await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    granted.fetch_add(1, Ordering::Relaxed);
                    lease.release().await.unwrap();
                }
            })
        })
        .collect();
    let mut ends = Vec::new();
    for task in tasks {
        ends.push(task.await);
    }
    ended.store(true, Ordering::Relaxed);
    remover.join().unwrap();
    ends.into_iter().for_each(|end| end.unwrap());
}

#[tokio::test]
async fn every_name_has_its_own_lock_inside_the_directory() {
    let parent = tempfile::tempdir().unwrap();
    let backend = open(&parent.path().join("locks"));
    let long = |byte: u8| vec![byte; LockKey::MAX_LEN];
    let names: Vec<Vec<u8>> = [
        ".",
        "..",
        "/",
        "../x",
        "\0",
        "a\nb",
        "🔒",
        "{}",
        "a}b",
        "%2e",
        "a",
        "A",
        "con",
        "a.lock",
        "a.permits",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .chain([long(b'x'), long(b'/'), long(0xff), long(b'.')])
    .collect();
    let mut held = Vec::new();
    for name in &names {
        held.push(
            attempt(&backend, request(name))
                .await
                .unwrap_or_else(|| panic!("held: {}", String::from_utf8_lossy(name))),
        );
        held.push(
            attempt(&backend, request(name).with_permit_of(NonZeroU32::MIN))
                .await
                .unwrap(),
        );
        assert!(attempt(&backend, request(name)).await.is_none());
    }
    let outside: Vec<_> = std::fs::read_dir(parent.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(outside, ["locks"]);
    for lease in held {
        assert_eq!(lease.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_waiters_are_all_served_one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let stock = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (backend, stock) = (Arc::clone(&backend), Arc::clone(&stock));
            tokio::spawn(async move {
                let lease = backend.acquire(request("k")).await.unwrap();
                let seen = stock.load(std::sync::atomic::Ordering::Relaxed);
                tokio::task::yield_now().await;
                stock.store(seen + 1, std::sync::atomic::Ordering::Relaxed);
                assert_eq!(lease.release().await.unwrap(), Released::Freed);
            })
        })
        .collect();
    for task in tasks {
        soon(task).await.unwrap();
    }
    assert_eq!(stock.load(std::sync::atomic::Ordering::Relaxed), 64);
}

#[tokio::test]
async fn a_cancelled_waiter_leaves_nothing_and_lets_readers_in() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let _reader = attempt(&backend, request("k").with_mode(Mode::Shared))
        .await
        .unwrap();
    let writer = request("k");
    let waiting = tokio::spawn(Arc::clone(&backend).acquire(writer.clone()));
    while backend
        .inspect(writer.key())
        .await
        .unwrap()
        .waiters
        .is_empty()
    {
        tokio::task::yield_now().await;
    }
    assert!(
        attempt(&backend, request("k").with_mode(Mode::Shared))
            .await
            .is_none()
    );
    let behind = tokio::spawn(Arc::clone(&backend).acquire(request("k").with_mode(Mode::Shared)));
    while backend.inspect(writer.key()).await.unwrap().waiters.len() < 2 {
        tokio::task::yield_now().await;
    }
    writer.cancel();
    assert_eq!(
        soon(waiting).await.unwrap().unwrap_err().kind(),
        ErrorKind::Cancelled
    );
    soon(behind).await.unwrap().unwrap();
    assert!(
        backend
            .inspect(writer.key())
            .await
            .unwrap()
            .waiters
            .is_empty()
    );
}

#[tokio::test]
async fn waiter_that_retries_is_notified_too() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let lease = attempt(&backend, request("k")).await.unwrap();
    // The order of grants is not specified. Each waiter releases its lease, because the next ones
    // wait for it.
    let by_attempts = || {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move {
            let attempt = move |request| Arc::clone(&backend).try_acquire(request);
            let lease = leasehold_core::backend::acquire_with_retry(request("k"), attempt)
                .await
                .unwrap();
            assert_eq!(lease.release().await.unwrap(), Released::Freed);
        })
    };
    let waiters = [by_attempts(), by_attempts(), by_attempts()];
    while backend
        .inspect(&LockKey::new("k").unwrap())
        .await
        .unwrap()
        .waiters
        .len()
        < 3
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    lease.release().await.unwrap();
    for waiter in waiters {
        soon(waiter).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn renewals_move_the_deadline_until_it_has_passed() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let clock = Arc::new(TestClock::new());
    let timed = request("k")
        .with_ttl(Ttl::from_secs(10).unwrap())
        .with_clock(Arc::clone(&clock) as _, ClockDrift::NONE);
    let lease = attempt(&backend, timed.clone()).await.unwrap();
    tokio::time::advance(Duration::from_secs(9)).await;
    Arc::clone(&lease).renew().await.unwrap();
    assert_eq!(
        lease.valid_until().remaining(timed.now()),
        Duration::from_secs(10)
    );
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(
        Arc::clone(&lease).renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    // The kernel has no deadline: the lock is held until it is released.
    assert!(attempt(&backend, request("k")).await.is_none());
    assert_eq!(Arc::clone(&lease).release().await.unwrap(), Released::Freed);
    assert_eq!(lease.renew().await.unwrap_err().kind(), ErrorKind::Lost);
}

/// The client releases a lost lease at once, when its holder may not have checked the guard yet.
#[tokio::test(start_paused = true)]
async fn a_lock_whose_file_was_removed_is_free_at_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let clock = Arc::new(TestClock::new());
    let timed = request("k")
        .with_ttl(Ttl::from_secs(10).unwrap())
        .with_clock(clock, ClockDrift::NONE);
    let lease = attempt(&backend, timed).await.unwrap();
    Arc::clone(&lease).renew().await.unwrap();
    std::fs::remove_file(backend.path_of(&LockKey::new("k").unwrap())).unwrap();
    assert!(attempt(&backend, request("k")).await.is_none());
    assert_eq!(
        Arc::clone(&lease).renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(
        Arc::clone(&lease).release().await.unwrap(),
        Released::AlreadyLost
    );
    tokio::time::advance(Duration::from_secs(9)).await;
    assert!(attempt(&backend, request("k")).await.is_none());
    let next = soon(Arc::clone(&backend).acquire(request("k")))
        .await
        .unwrap();
    assert!(token(&next) > token(&lease));
}

#[tokio::test]
async fn a_removed_file_of_a_released_lock_is_free_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let lease = attempt(&backend, request("k")).await.unwrap();
    std::fs::remove_file(backend.path_of(&LockKey::new("k").unwrap())).unwrap();
    assert_eq!(lease.release().await.unwrap(), Released::AlreadyLost);
    assert!(attempt(&backend, request("k")).await.is_some());
}

/// A child process that is started during the flush of a grant inherits nothing of it.
#[tokio::test]
async fn dropped_acquisition_leaves_nothing_to_children() {
    let dir = tempfile::tempdir().unwrap();
    let config = FileConfig::new()
        .with_inherited_by_children(true)
        .with_sync(true);
    let backend = Arc::new(FileBackend::open_with(dir.path(), config).unwrap());
    loop {
        let mut acquired = Arc::clone(&backend).acquire(request("k"));
        let polled =
            std::future::poll_fn(|context| std::task::Poll::Ready(acquired.as_mut().poll(context)))
                .await;
        if let std::task::Poll::Ready(lease) = polled {
            // The flush has ended already: try again.
            lease.unwrap().release().await.unwrap();
            continue;
        }
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        drop(acquired);
        let next = attempt(&backend, request("k")).await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(next.is_some(), "the child keeps the lock");
        return;
    }
}

/// The forks would disturb the other tests of this process.
#[test]
fn dropped_acquisition_is_free_while_other_threads_fork() {
    let alone = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["drops_acquisitions_beside_forks", "--exact", "--ignored"])
        .output()
        .unwrap();
    assert!(alone.status.success(), "{alone:?}");
}

/// A process that another thread has forked has the same descriptors until it executes its program.
#[tokio::test]
#[ignore = "the previous test starts it as a process of its own"]
async fn drops_acquisitions_beside_forks() {
    let dir = tempfile::tempdir().unwrap();
    let config = FileConfig::new().with_sync(true);
    let backend = Arc::new(FileBackend::open_with(dir.path(), config).unwrap());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let mut child = std::process::Command::new("true").spawn().unwrap();
                    child.wait().unwrap();
                }
            });
        }
        let handle = tokio::runtime::Handle::current();
        let round = || {
            let mut acquired = Arc::clone(&backend).acquire(request("k"));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let polled = {
                let _entered = handle.enter();
                acquired.as_mut().poll(&mut context)
            };
            drop((polled, acquired));
            let file = std::fs::File::open(backend.path_of(&LockKey::new("k").unwrap())).unwrap();
            let free = file.try_lock().is_ok();
            file.unlock().unwrap();
            free
        };
        let free = (0..300).filter(|_| round()).count();
        over.store(true, Ordering::Relaxed);
        assert_eq!(free, 300, "a forked process kept the lock");
    });
}

/// If child processes inherit the lock, a release opens and closes the file to notify the waiters.
#[tokio::test]
async fn pipe_in_place_of_a_held_lock_does_not_block_the_release() {
    let dir = tempfile::tempdir().unwrap();
    let config = FileConfig::new().with_inherited_by_children(true);
    let backend = Arc::new(FileBackend::open_with(dir.path(), config).unwrap());
    let lease = attempt(&backend, request("k")).await.unwrap();
    let path = backend.path_of(&LockKey::new("k").unwrap());
    std::fs::remove_file(&path).unwrap();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(soon(lease.release()).await.unwrap(), Released::AlreadyLost);
}

/// The release waits until the deadline, in a task of the runtime.
#[test]
fn a_guard_whose_lock_file_was_removed_may_outlive_its_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let backend = open(dir.path());
    let client = LockClient::new(Arc::clone(&backend) as Arc<dyn LockBackend>);
    let guard = first.block_on(client.mutex("k").lock()).unwrap();
    std::fs::remove_file(backend.path_of(&LockKey::new("k").unwrap())).unwrap();
    assert_eq!(
        first.block_on(guard.renew()).unwrap_err().kind(),
        ErrorKind::Lost
    );
    drop(first);
    drop(guard);
    assert!(
        runtime()
            .block_on(attempt(&backend, request("k")))
            .is_some()
    );
}

#[tokio::test]
async fn a_dropped_guard_leaves_no_descriptor_behind() {
    let dir = tempfile::tempdir().unwrap();
    let client = LockClient::new(open(dir.path()));
    let descriptors = || {
        let open = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(Result::ok);
        let paths = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        paths.filter(|path| path.starts_with(dir.path())).count()
    };
    for key in 0..300 {
        let guards = (
            client
                .mutex(format!("key/{}", key % 7))
                .lock()
                .await
                .unwrap(),
            client.rwlock("read").read().await.unwrap(),
            client.semaphore("permits", 2).acquire().await.unwrap(),
        );
        assert_ne!(descriptors(), 0);
        drop(guards);
        assert_eq!(descriptors(), 0);
    }
}

#[tokio::test]
async fn sync_option_flushes_the_token_file() {
    let dir = tempfile::tempdir().unwrap();
    let backend =
        Arc::new(FileBackend::open_with(dir.path(), FileConfig::new().with_sync(true)).unwrap());
    let lease = attempt(&backend, request("k")).await.unwrap();
    assert!(attempt(&backend, request("k")).await.is_none());
    lease.release().await.unwrap();
    assert!(attempt(&backend, request("k")).await.is_some());
}

#[test]
fn unusable_directories_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [
        file.clone(),
        file.join("below"),
        Path::new("/proc/leasehold").to_path_buf(),
    ] {
        let error = FileBackend::open(&path).unwrap_err();
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        assert_ne!(error.kind(), ErrorKind::UnexpectedResponse);
    }
    let dangling = dir.path().join("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    for path in [file, dangling] {
        let error = FileBackend::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(
            error.to_string().contains("nor a symbolic link to one"),
            "{error}"
        );
    }
}

#[test]
#[ignore = "the next test starts it as a process of its own"]
fn prints_the_default_directory() {
    println!(
        "default: {:?}",
        FileBackend::default_dir().map_err(|error| error.to_string())
    );
}

#[test]
fn the_default_directory_does_not_depend_on_the_environment() {
    let printed = |environment: &[(&str, &str)]| {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "file::prints_the_default_directory",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env_clear()
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        String::from(
            output
                .lines()
                .find(|line| line.contains("default: "))
                .expect("it prints it"),
        )
    };
    let cron = printed(&[]);
    let shell = [
        ("HOME", "/tmp"),
        ("XDG_STATE_HOME", "/tmp/state"),
        ("XDG_RUNTIME_DIR", "/run/user/4711"),
        ("TMPDIR", "/var/tmp"),
        ("USER", "nobody"),
    ];
    assert_eq!(printed(&shell), cron);
    // Files there are removed by their age, and a service may have a private copy of the directory.
    assert!(!cron.contains("tmp"), "{cron}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn missing_directory_is_not_reported_as_too_many_open_files() {
    let error = FileBackend::open("/proc/no-directory-here").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(
        error.to_string().contains("/proc/no-directory-here")
            && error.to_string().contains("choose another"),
        "{error}"
    );
    assert!(!error.to_string().contains("ulimit"), "{error}");
}

#[tokio::test]
async fn ping_reports_whether_the_directory_is_usable() {
    let dir = tempfile::tempdir().unwrap();
    let backend = FileBackend::open(dir.path().join("locks")).unwrap();
    backend.ping().await.unwrap();
    assert_eq!(std::fs::read_dir(backend.dir()).unwrap().count(), 0);
    std::fs::remove_dir(backend.dir()).unwrap();
    let error = backend.ping().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::Unavailable, Some("ping")),
        "{error}"
    );
    assert!(!error.to_string().contains("ulimit"), "{error}");
}
