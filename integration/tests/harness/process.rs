use std::path::Path;
use std::time::{Duration, Instant};

use leasehold_integration::child::OwnedChild;
use leasehold_integration::peer::{self, Peer};
use leasehold_integration::server::{Process, RedisServer};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_peer_hears_and_is_heard_and_ends_when_it_wants() {
    if peer::role().is_some() {
        while let Some(line) = peer::listen() {
            peer::tell(format!("heard {line}"));
        }
        return;
    }
    let mut peer = Peer::this_test(
        "process::a_peer_hears_and_is_heard_and_ends_when_it_wants",
        "echo",
    )
    .unwrap();
    for line in ["one", "two"] {
        peer.say(line).unwrap();
        assert_eq!(peer.hear(PATIENCE).unwrap(), format!("heard {line}"));
    }
    assert!(peer.wait(Duration::from_millis(50)).is_err());
    peer.process().kill();
    assert!(peer.hear(PATIENCE).is_err());
}

#[test]
fn a_server_dies_with_a_test_process_that_is_killed() {
    if peer::role().is_some() {
        let mut server = RedisServer::start().unwrap();
        peer::tell(server.pid().unwrap());
        peer::tell(server.folder().display());
        peer::listen();
        return;
    }
    let mut peer = Peer::this_test(
        "process::a_server_dies_with_a_test_process_that_is_killed",
        "starter",
    )
    .unwrap();
    let (pid, folder) = (peer.hear(PATIENCE).unwrap(), peer.hear(PATIENCE).unwrap());
    let server = Path::new("/proc").join(pid);
    assert!(server.exists());
    peer.process().kill();
    let end = Instant::now() + PATIENCE;
    while alive(&server) {
        assert!(
            Instant::now() < end,
            "the server outlived the test process that started it"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    // A killed process leaves only this folder behind.
    std::fs::remove_dir_all(folder).unwrap();
}

/// Returns whether the process is not dead. In a container without an init process, nobody reaps an
/// orphan, which then stays a zombie.
fn alive(process: &Path) -> bool {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

#[test]
fn a_server_outlives_the_thread_that_started_it() {
    let mut server = std::thread::spawn(|| RedisServer::start().unwrap())
        .join()
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(server.pid().is_some());
}

#[test]
fn an_ended_child_has_its_status_and_receives_no_signal() {
    let mut child = OwnedChild::spawn("sh", |command| {
        command.args(["-c", "exit 7"]);
    })
    .unwrap();
    assert_eq!(child.wait(PATIENCE).unwrap().code(), Some(7));
    assert!(!child.is_running());
    assert!(child.pause().is_err());
}

#[test]
fn program_that_never_gets_ready_is_killed_and_its_log_shown() {
    let mut process = Process::new("mute", "sh").unwrap();
    process.set_arguments(["-c", "echo up at $$ >&2; exec sleep 600"]);
    let error = process
        .start(Duration::from_millis(300), || Err("no answer".to_owned()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("no answer"), "{error}");
    let pid = error
        .rsplit_once("up at ")
        .expect("the error does not show the log")
        .1;
    assert!(!alive(&Path::new("/proc").join(pid.trim())));
}

#[test]
fn a_program_that_ends_at_once_is_not_waited_for() {
    let mut process = Process::new("brief", "sh").unwrap();
    process.set_arguments(["-c", "echo cannot >&2; exit 3"]);
    let begun = Instant::now();
    let error = process
        .start(PATIENCE, || Err("no answer".to_owned()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot"), "{error}");
    assert!(begun.elapsed() < PATIENCE / 2);
}
