//! Tests of the file backend between processes. The other process is `flock(1)`, or this test
//! binary.
#![cfg(target_os = "linux")]

use std::{
    io::{BufRead, BufReader, Write},
    num::NonZeroU32,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use leasehold_core::{
    Error, FencingToken, LockKey, Mode, Released,
    backend::{Attempt, Lease, LockBackend, RecordWrite, Request},
};
use leasehold_local::{FileBackend, FileConfig};

/// Returns a configuration with which only notifications can make these tests pass.
fn hour() -> FileConfig {
    FileConfig::new().with_fallback_poll_interval(Duration::from_secs(3600))
}

pub(crate) fn open(dir: &Path) -> Arc<FileBackend> {
    Arc::new(FileBackend::open_with(dir, hour()).unwrap())
}

pub(crate) fn key() -> LockKey {
    let name = std::env::var("LEASEHOLD_TEST_KEY");
    LockKey::new(name.as_deref().unwrap_or("k/1")).unwrap()
}

pub(crate) fn request(mode: &str) -> Request {
    let request = Request::new(key());
    match mode {
        "exclusive" => request,
        "shared" => request.with_mode(Mode::Shared),
        "permit" => request.with_permit_of(NonZeroU32::MIN),
        other => panic!("no mode {other}"),
    }
}

async fn is_free(backend: &Arc<FileBackend>, mode: &str) -> bool {
    matches!(
        Arc::clone(backend)
            .try_acquire(request(mode))
            .await
            .unwrap(),
        Attempt::Granted(_)
    )
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("woken long before")
}

/// Starts a waiter, and returns once the kernel knows it.
async fn queued(
    backend: &Arc<FileBackend>,
    request: Request,
) -> tokio::task::JoinHandle<Result<Arc<dyn Lease>, Error>> {
    let before = backend.inspect(&key()).await.unwrap().waiters.len();
    let waiter = tokio::spawn(Arc::clone(backend).acquire(request));
    until(async || backend.inspect(&key()).await.unwrap().waiters.len() > before).await;
    waiter
}

pub(crate) async fn until(condition: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never came");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Another process, which holds the lock until it is asked to release it or is killed.
pub(crate) struct Holder {
    pub(crate) child: Child,
    stdin: Option<ChildStdin>,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Holder {
    pub(crate) fn start(dir: &Path, mode: &str) -> Self {
        Self::spawn(Command::new(std::env::current_exe().unwrap()), dir, mode)
    }

    /// Starts the process as another user, if this process may do so. The directory is shared with
    /// that user.
    fn start_as(dir: &Path, mode: &str, key: &str, user: (u32, u32), umask: &str) -> Self {
        let mut command = Self::command_as(user, umask);
        command
            .env("LEASEHOLD_TEST_SHARED", "")
            .env("LEASEHOLD_TEST_KEY", key);
        Self::spawn(command, dir, mode)
    }

    pub(crate) fn command_as((user, group): (u32, u32), umask: &str) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("sh");
        command
            .args(["-c", "umask \"$1\"; shift; exec \"$@\"", "sh", umask])
            .arg(std::env::current_exe().unwrap());
        command.uid(user).gid(group);
        command
    }

    pub(crate) fn spawn(mut command: Command, dir: &Path, mode: &str) -> Self {
        let mut child = command
            .args([
                "file_processes::the_other_process",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env("LEASEHOLD_TEST_DIR", dir)
            .env("LEASEHOLD_TEST_MODE", mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let stdin = child.stdin.take();
        Self {
            child,
            stdin,
            lines,
        }
    }

    /// Returns the rest of the line that begins with `word`.
    pub(crate) fn expect(&mut self, word: &str) -> String {
        self.lines
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| {
                line.split_once(word)
                    .map(|(_, rest)| String::from(rest.trim()))
            })
            .unwrap()
    }

    pub(crate) fn held(dir: &Path, mode: &str) -> (Self, u64) {
        let mut holder = Self::start(dir, mode);
        let token = holder.expect("held:").parse().unwrap();
        (holder, token)
    }

    pub(crate) fn release(&mut self) {
        self.stdin = None;
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[tokio::test]
#[ignore = "the other tests start it as a process of its own"]
#[expect(clippy::zombie_processes, reason = "its child is to outlive it")]
async fn the_other_process() {
    let dir = std::env::var("LEASEHOLD_TEST_DIR").expect("started by another test");
    let mode = std::env::var("LEASEHOLD_TEST_MODE").unwrap();
    let shared = std::env::var_os("LEASEHOLD_TEST_SHARED").is_some();
    let config = hour()
        .with_inherited_by_children(mode == "inherited")
        .with_shared(shared);
    let backend = Arc::new(FileBackend::open_with(dir, config).unwrap());
    let mode = if mode == "inherited" {
        "exclusive"
    } else {
        mode.as_str()
    };
    println!("asks:");
    let lease = backend
        .acquire(request(mode).with_label("the other"))
        .await
        .unwrap();
    if std::env::var("LEASEHOLD_TEST_MODE").unwrap() == "inherited" {
        let child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        println!("child: {}", child.id());
    }
    if let Ok(value) = std::env::var("LEASEHOLD_TEST_RECORD") {
        write_as_told(&lease, &value).await;
    }
    println!(
        "held: {}",
        lease.fencing_token().map_or(0, FencingToken::get)
    );
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
    println!("released:");
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_line(&mut line).unwrap();
    std::process::exit(0);
}

/// Writes the record once, or again and again until this process is killed.
async fn write_as_told(lease: &Arc<dyn Lease>, value: &str) {
    let mut sequence = 0;
    loop {
        sequence += 1;
        let write = RecordWrite::new(sequence, value.repeat(sequence as usize % 1000 + 1)).unwrap();
        match Arc::clone(lease).write_record(write).await {
            Ok(version) => println!("written: {version}"),
            Err(error) => return println!("refused: {error:?}"),
        }
        if value != "for ever " {
            return;
        }
    }
}

#[tokio::test]
async fn release_in_another_process_notifies_the_waiter() {
    for mode in ["exclusive", "permit"] {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path());
        let (mut other, token) = Holder::held(dir.path(), mode);
        assert!(!is_free(&backend, mode).await);
        let waiter = queued(&backend, request(mode)).await;
        other.release();
        let lease = soon(waiter).await.unwrap().unwrap();
        assert!(lease.fencing_token().is_none_or(|ours| ours.get() > token));
    }
}

#[tokio::test]
async fn a_killed_holder_frees_at_once() {
    for mode in ["exclusive", "shared", "permit"] {
        let dir = tempfile::tempdir().unwrap();
        let backend = open(dir.path());
        let (mut other, token) = Holder::held(dir.path(), mode);
        let ours = if mode == "shared" { "exclusive" } else { mode };
        let waiter = queued(&backend, request(ours)).await;
        other.child.kill().unwrap();
        let lease = soon(waiter).await.unwrap().unwrap();
        assert!(lease.fencing_token().is_none_or(|ours| ours.get() > token));
    }
}

#[tokio::test]
async fn a_stopped_holder_keeps_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let (other, _) = Holder::held(dir.path(), "exclusive");
    let pid = other.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-STOP", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(!is_free(&backend, "exclusive").await);
    assert!(
        Command::new("kill")
            .args(["-CONT", &pid])
            .status()
            .unwrap()
            .success()
    );
}

#[tokio::test]
async fn a_child_that_inherits_keeps_the_lock_of_a_killed_parent() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let mut other = Holder::start(dir.path(), "inherited");
    let grandchild = other.expect("child:");
    other.expect("held:");
    other.child.kill().unwrap();
    other.child.wait().unwrap();
    assert!(!is_free(&backend, "exclusive").await);
    let waiter = queued(&backend, request("exclusive")).await;
    assert!(
        Command::new("kill")
            .args(["-KILL", &grandchild])
            .status()
            .unwrap()
            .success()
    );
    soon(waiter).await.unwrap().unwrap();
}

#[tokio::test]
async fn release_frees_inherited_locks_and_notifies_the_waiter() {
    let dir = tempfile::tempdir().unwrap();
    let config = hour().with_inherited_by_children(true);
    let backend = Arc::new(FileBackend::open_with(dir.path(), config).unwrap());
    let lease = Arc::clone(&backend)
        .acquire(request("exclusive"))
        .await
        .unwrap();
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let waiter = queued(&backend, request("exclusive")).await;
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
    soon(waiter).await.unwrap().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn directory_removed_and_recreated_admits_no_second_holder() {
    for mode in ["exclusive", "shared", "permit"] {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("locks");
        let (mut other, token) = Holder::held(&dir, mode);
        std::fs::remove_dir_all(&dir).unwrap();
        let backend = open(&dir);
        let ours = if mode == "shared" { "exclusive" } else { mode };
        assert!(!is_free(&backend, ours).await, "{mode}");
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(!is_free(&backend, ours).await, "{mode}");
        let waiter = queued(&backend, request(ours)).await;
        other.child.kill().unwrap();
        let lease = soon(waiter).await.unwrap().unwrap();
        assert!(lease.fencing_token().is_none_or(|ours| ours.get() > token));
    }
}

#[tokio::test]
async fn a_removed_lock_file_admits_no_second_holder() {
    for (mode, suffixes) in [
        ("exclusive", &["lock"][..]),
        ("shared", &["lock"]),
        ("permit", &["permit-0", "permits"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (mut other, _) = Holder::held(dir.path(), mode);
        let backend = open(dir.path());
        let ours = if mode == "shared" { "exclusive" } else { mode };
        for suffix in suffixes {
            std::fs::remove_file(dir.path().join(format!("k%2f1.{suffix}"))).unwrap();
            assert!(!is_free(&backend, ours).await, "{mode} {suffix}");
            // `inspect` names the holder. Without the number of permits, it knows of no permits.
            if *suffix == "permits" {
                continue;
            }
            let seen = backend.inspect(&key()).await.unwrap();
            let pid = format!("{}:", other.child.id());
            assert!(
                seen.holders
                    .iter()
                    .any(|holder| holder.id.starts_with(pid.as_bytes())),
                "{mode} {suffix}: {seen:?}"
            );
        }
        other.child.kill().unwrap();
        soon(Arc::clone(&backend).acquire(request(ours)))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_daemon_that_a_holder_left_behind_refuses_no_lock() {
    for mode in ["exclusive", "shared", "permit"] {
        let dir = tempfile::tempdir().unwrap();
        let config = hour().with_inherited_by_children(true);
        let backend = Arc::new(FileBackend::open_with(dir.path(), config).unwrap());
        let lease = Arc::clone(&backend).acquire(request(mode)).await.unwrap();
        let mut daemon = Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(lease.release().await.unwrap(), Released::Freed);
        // The children of other tests do not inherit the descriptors of this process.
        let backend = open(dir.path());
        let ours = if mode == "shared" { "exclusive" } else { mode };
        assert!(is_free(&backend, ours).await, "{mode}");
        for file in std::fs::read_dir(dir.path()).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        assert!(is_free(&backend, ours).await, "{mode}");
        assert!(backend.inspect(&key()).await.unwrap().holders.is_empty());
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
}

/// Returns two users other than root, if this process is root and can become them.
pub(crate) fn two_users() -> [(u32, u32); 2] {
    use std::os::unix::fs::MetadataExt;
    let ours = std::fs::metadata("/proc/self").unwrap();
    if ours.uid() == 0 {
        [(65_533, 65_531), (65_534, 65_532)]
    } else {
        [(ours.uid(), ours.gid()); 2]
    }
}

#[tokio::test]
async fn users_who_can_write_the_directory_can_lock_with_any_umask() {
    use std::os::unix::fs::PermissionsExt;
    let [first, second] = two_users();
    for (directory, umask) in [
        (0o777, "022"),
        (0o777, "077"),
        (0o1777, "022"),
        (0o1777, "077"),
    ] {
        let long = "x".repeat(500);
        for (mode, key) in [
            ("exclusive", "k"),
            ("shared", "k"),
            ("permit", "k"),
            ("exclusive", &long),
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(directory))
                .unwrap();
            let mut last = 0;
            for user in [first, second, first] {
                let mut holder = Holder::start_as(dir.path(), mode, key, user, umask);
                let token = holder.expect("held:").parse().unwrap();
                // The second user is refused while the first one holds the lock, and for no other
                // reason.
                let other = if user == first { second } else { first };
                let other_mode = if mode == "permit" { mode } else { "exclusive" };
                let mut waiting = Holder::start_as(dir.path(), other_mode, key, other, umask);
                waiting.expect("asks:");
                holder.release();
                holder.expect("released:");
                let next: u64 = waiting.expect("held:").parse().unwrap();
                assert!(
                    mode == "permit" || last < token && token < next,
                    "{directory:o} {umask} {mode}"
                );
                last = next;
            }
        }
    }
}

/// Only root can be another user.
#[tokio::test]
async fn process_outside_the_group_of_a_shared_directory_is_refused() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let [owner, member] = two_users();
    let dir = tempfile::tempdir().unwrap();
    if chown(dir.path(), Some(owner.0), Some(member.1)).is_err() {
        return;
    }
    let set_mode =
        |mode| std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    set_mode(0o770);
    let refused = Holder::command_as(owner, "022")
        .args([
            "file_processes::the_other_process",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env("LEASEHOLD_TEST_DIR", dir.path())
        .env("LEASEHOLD_TEST_MODE", "exclusive")
        .env("LEASEHOLD_TEST_SHARED", "")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("chmod g+s"),
        "{refused:?}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    // Members of the group can lock, and all users where the bit is set.
    for (mode, users) in [(0o770, [member, member]), (0o2770, [owner, member])] {
        set_mode(mode);
        for user in users {
            let mut holder = Holder::start_as(dir.path(), "exclusive", "k", user, "077");
            holder.expect("held:");
            holder.release();
            holder.expect("released:");
        }
        std::fs::remove_file(dir.path().join("k.lock")).unwrap();
        std::fs::remove_file(dir.path().join("k.token")).unwrap();
    }
}

/// Only root can be another user.
#[tokio::test]
async fn files_of_others_in_shared_memory_refuse_no_lock() {
    use std::os::unix::fs::{chown, lchown, symlink};
    let [(stranger, _), (_, group)] = two_users();
    // A user of no other test, so that its directory does not exist yet.
    let user = 65_501;
    let place = std::path::PathBuf::from(format!("/dev/shm/leasehold-{user}"));
    let dir = tempfile::tempdir().unwrap();
    if chown(dir.path(), Some(user), Some(group)).is_err() {
        return;
    }
    let theirs = tempfile::tempdir().unwrap();
    let plants: [(&str, &dyn Fn()); 5] = [
        ("directory", &|| std::fs::create_dir(&place).unwrap()),
        ("file", &|| std::fs::write(&place, "x").unwrap()),
        ("pipe", &|| {
            assert!(
                Command::new("mkfifo")
                    .arg(&place)
                    .status()
                    .unwrap()
                    .success()
            );
        }),
        ("link", &|| symlink(theirs.path(), &place).unwrap()),
        ("dangling link", &|| symlink("nowhere", &place).unwrap()),
    ];
    for (what, plant) in plants {
        drop(std::fs::remove_file(&place));
        plant();
        lchown(&place, Some(stranger), None).unwrap();
        let mut holder = Holder::spawn(
            Holder::command_as((user, group), "022"),
            dir.path(),
            "exclusive",
        );
        assert_ne!(holder.expect("held:"), "", "{what}");
        holder.release();
        holder.expect("released:");
        if place.is_dir() && !place.is_symlink() {
            assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "{what}");
            std::fs::remove_dir(&place).unwrap();
        }
    }
    std::fs::remove_file(&place).unwrap();
    assert_eq!(std::fs::read_dir(theirs.path()).unwrap().count(), 0);
    assert!(!Path::new("/dev/shm/nowhere").exists());
}

#[tokio::test]
#[ignore = "the next test starts it as a process of its own"]
async fn counts_what_it_reads() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let read = || -> u64 {
        let io = std::fs::read_to_string("/proc/self/io").unwrap();
        io.lines()
            .find_map(|line| line.strip_prefix("rchar: "))
            .unwrap()
            .parse()
            .unwrap()
    };
    let mut held = Vec::new();
    for _ in 0..8 {
        let before = read();
        for _ in 0..50 {
            let request = Request::new(LockKey::new(format!("fresh/{}", held.len())).unwrap());
            held.push(Arc::clone(&backend).acquire(request).await.unwrap());
        }
        println!("read: {}", read() - before);
    }
}

#[test]
fn cost_of_a_new_name_does_not_grow_with_held_locks() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "file_processes::counts_what_it_reads",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .output()
        .unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let read: Vec<u64> = output
        .lines()
        .filter_map(|line| line.split_once("read: ")?.1.trim().parse().ok())
        .collect();
    assert_eq!(read.len(), 8, "{output}");
    // The first acquisitions also read what is read once per process. The reads of one name are
    // less than a page.
    assert!(read[7] <= read[1] + 50, "{read:?}");
    assert!(read[7] < 50 * 4096, "{read:?}");
}

/// Runs the script of the README beside processes that use the locks.
#[tokio::test]
async fn cleanup_script_removes_the_files_of_free_locks() {
    let readme = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/leasehold-local/README.md"),
    )
    .unwrap();
    let recipe = readme
        .split("```sh\n")
        .nth(1)
        .expect("the recipe")
        .split("```")
        .next()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let clean = || {
        let output = Command::new("sh")
            .args(["-c", recipe])
            .env("DIR", dir.path())
            .output()
            .unwrap();
        assert!(
            output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let names = |dir: &Path| -> std::collections::BTreeSet<String> {
        let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
        entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    };
    let backend = open(dir.path());
    let acquire =
        |name: &str| Arc::clone(&backend).acquire(Request::new(LockKey::new(name).unwrap()));
    let held = acquire("held").await.unwrap();
    let waiter = tokio::spawn(acquire("held"));
    until(async || {
        backend
            .inspect(&LockKey::new("held").unwrap())
            .await
            .unwrap()
            .waiters
            .len()
            == 1
    })
    .await;
    let permit =
        Request::new(LockKey::new("gpu").unwrap()).with_permit_of(NonZeroU32::new(2).unwrap());
    let permit = Arc::clone(&backend).acquire(permit).await.unwrap();
    let mut last = None;
    for name in ["free", "a b", &"x".repeat(500)] {
        let lease = acquire(name).await.unwrap();
        last = lease.fencing_token().max(last);
        lease.release().await.unwrap();
    }
    std::fs::write(dir.path().join("yarn.lock"), "# yarn").unwrap();
    clean();
    let left = names(dir.path());
    for kept in [
        "held.lock",
        "held.token",
        "held.writers",
        "gpu.permits",
        "gpu.permit-0",
        "yarn.lock",
    ] {
        assert!(left.contains(kept), "{kept}: {left:?}");
    }
    assert!(
        !left
            .iter()
            .any(|name| name.starts_with("free") || name.starts_with("a%20b")),
        "{left:?}"
    );
    held.release().await.unwrap();
    soon(waiter)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    permit.release().await.unwrap();
    for name in ["free", &"x".repeat(500)] {
        let lease = acquire(name).await.unwrap();
        assert!(lease.fencing_token() > last);
        lease.release().await.unwrap();
    }
    clean();
    assert!(
        !names(dir.path())
            .iter()
            .any(|name| name.ends_with(".lock") && name != "yarn.lock")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cleanup_script_beside_users_admits_no_second_holder() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let readme = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/leasehold-local/README.md"),
    )
    .unwrap();
    let recipe = String::from(
        readme
            .split("```sh\n")
            .nth(1)
            .unwrap()
            .split("```")
            .next()
            .unwrap(),
    );
    let dir = tempfile::tempdir().unwrap();
    let inside = Arc::new(AtomicU64::new(0));
    let last = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (backend, inside, last) =
                (open(dir.path()), Arc::clone(&inside), Arc::clone(&last));
            tokio::spawn(async move {
                for _ in 0..500 {
                    let lease = Arc::clone(&backend)
                        .acquire(request("exclusive"))
                        .await
                        .unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    let token = lease.fencing_token().unwrap().get();
                    assert!(last.swap(token, Ordering::SeqCst) < token);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    assert_eq!(lease.release().await.unwrap(), Released::Freed);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        let (recipe, dir) = (recipe.clone(), dir.path().to_path_buf());
        let clean = move || {
            Command::new("sh")
                .args(["-c", &recipe])
                .env("DIR", dir)
                .status()
                .unwrap()
                .success()
        };
        assert!(tokio::task::spawn_blocking(clean).await.unwrap());
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn files_that_may_only_be_read_can_be_locked() {
    use std::os::unix::fs::PermissionsExt;
    let [_, other] = two_users();
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let backend = Arc::new(FileBackend::open_with(dir.path(), hour().with_shared(true)).unwrap());
    let mut last = 0;
    for mode in ["exclusive", "shared"] {
        let lease = Arc::clone(&backend)
            .acquire(request("exclusive"))
            .await
            .unwrap();
        last = lease.fencing_token().unwrap().get().max(last);
        lease.release().await.unwrap();
        // The mode that `flock(1)` gives its files. Only an access list lets another user write the
        // directory.
        for file in std::fs::read_dir(dir.path()).unwrap() {
            std::fs::set_permissions(file.unwrap().path(), std::fs::Permissions::from_mode(0o444))
                .unwrap();
        }
        for mode in [mode, "exclusive"] {
            let mut holder = Holder::start_as(dir.path(), mode, "k/1", other, "022");
            let token = holder.expect("held:").parse().unwrap();
            assert!(token > last);
            last = token;
            assert!(!is_free(&backend, "exclusive").await);
        }
    }
}

#[tokio::test]
async fn waiter_is_notified_when_flock_unlocks() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let path = backend.path_of(&key());
    // `flock(1)` and the shell's `9>file` open the file in different ways.
    for script in [
        "exec flock \"$1\" sh -c 'echo held; read line'",
        "exec 9>>\"$1\"; flock 9; echo held; read line",
    ] {
        let mut other = Command::new("sh")
            .args(["-c", script, "sh", path.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(other.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "held\n");
        assert!(!is_free(&backend, "exclusive").await);
        let seen = backend.inspect(&key()).await.unwrap();
        assert_eq!((seen.holders.len(), seen.holders[0].token), (1, None));
        let waiter = queued(&backend, request("exclusive")).await;
        drop(other.stdin.take());
        soon(waiter)
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
        assert!(other.wait().is_ok());
    }
}

#[tokio::test]
async fn flock_waits_for_a_leasehold_holder() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let flock = |arguments: &[&str]| {
        let path = backend.path_of(&key());
        Command::new("flock")
            .args(arguments)
            .arg(path)
            .arg("true")
            .status()
            .unwrap()
            .success()
    };
    let writer = Arc::clone(&backend)
        .acquire(request("exclusive"))
        .await
        .unwrap();
    assert!(!flock(&["-n"]));
    assert!(!flock(&["-n", "-s"]));
    writer.release().await.unwrap();
    assert!(flock(&["-n"]));
    let reader = Arc::clone(&backend)
        .acquire(request("shared"))
        .await
        .unwrap();
    assert!(!flock(&["-n"]));
    assert!(flock(&["-n", "-s"]));
    reader.release().await.unwrap();
    assert!(flock(&["-n"]));
}

#[tokio::test]
async fn no_reader_overtakes_a_writer_that_waits_in_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let reader = Arc::clone(&backend)
        .acquire(request("shared"))
        .await
        .unwrap();
    let mut writer = Holder::start(dir.path(), "exclusive");
    until(async || backend.inspect(&key()).await.unwrap().waiters.len() == 1).await;
    assert!(!is_free(&backend, "shared").await);
    let late = queued(&backend, request("shared")).await;
    reader.release().await.unwrap();
    writer.expect("held:");
    assert!(!late.is_finished());
    writer.release();
    soon(late).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_killed_waiting_writer_no_longer_keeps_readers_out() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let _reader = Arc::clone(&backend)
        .acquire(request("shared"))
        .await
        .unwrap();
    let mut writer = Holder::start(dir.path(), "exclusive");
    until(async || backend.inspect(&key()).await.unwrap().waiters.len() == 1).await;
    let late = queued(&backend, request("shared")).await;
    writer.child.kill().unwrap();
    soon(late).await.unwrap().unwrap();
}

#[tokio::test]
async fn yielding_request_lets_another_processes_waiter_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let lease = Arc::clone(&backend)
        .acquire(request("exclusive"))
        .await
        .unwrap();
    let mut other = Holder::start(dir.path(), "exclusive");
    until(async || backend.inspect(&key()).await.unwrap().waiters.len() == 1).await;
    let yielding = request("exclusive").with_waiting(|waiting| waiting.yields = true);
    assert!(matches!(
        Arc::clone(&backend).try_acquire(yielding).await.unwrap(),
        Attempt::Contended(_)
    ));
    lease.release().await.unwrap();
    other.expect("held:");
}

#[tokio::test]
async fn inspection_names_the_holder_in_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let (_other, token) = Holder::held(dir.path(), "exclusive");
    let seen = backend.inspect(&key()).await.unwrap();
    assert_eq!(seen.holders.len(), 1);
    assert_eq!(seen.holders[0].label, "the other");
    assert_eq!(seen.holders[0].mode, Some(Mode::Exclusive));
    assert_eq!(seen.holders[0].token.map(FencingToken::get), Some(token));
    let error = backend
        .revoke(&seen.holders[0], leasehold_core::Revocation::Immediate)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), leasehold_core::ErrorKind::Unsupported);
}

#[tokio::test]
#[ignore = "the next test starts it as a process of its own"]
async fn waits_for_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let backend = open(dir.path());
    let mut taken = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    let error = Arc::clone(&backend)
        .try_acquire(request("exclusive"))
        .await
        .expect_err("there is a descriptor left");
    assert!(error.is_retryable(), "{error}");
    let waiter = tokio::spawn(Arc::clone(&backend).acquire(request("exclusive")));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!waiter.is_finished(), "a fault ended the wait");
    drop(taken);
    soon(waiter).await.unwrap().unwrap();
    println!("granted");
}

#[test]
fn waiter_survives_a_temporary_error() {
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 64; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([
            "file_processes::waits_for_descriptors",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.contains("granted"), "{output}");
}
