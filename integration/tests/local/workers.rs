use std::{fs, path::PathBuf, process::Command as Program, time::Instant};

use leasehold_core::LockKey;
use leasehold_integration::{
    child::find_program,
    peer::Peer,
    stage::{Stage, granted, is_held, refused},
    steps::{SOON, millis},
    worker::{Answer, Command, Patience},
};
use leasehold_local::FileBackend;

const TTL: u64 = 30_000;
const SHORT_TTL: u64 = 1_000;

#[test]
fn directory_recreated_while_held_admits_no_second_holder() {
    let stage = Stage::on_files(TTL);
    let (mut holder, mut before) = (stage.worker("holder"), stage.worker("before"));
    let (old, _) = granted(holder.lock(0, "k", Patience::Try).unwrap());
    fs::remove_dir_all(stage.locks()).unwrap();
    refused(before.lock(0, "k", Patience::Try).unwrap());
    if !stage.locks().exists() {
        fs::create_dir(stage.locks()).unwrap();
    }
    let mut after = stage.worker("after");
    for rival in [&mut before, &mut after] {
        refused(rival.lock(0, "k", Patience::Try).unwrap());
        refused(rival.lock(0, "k", Patience::Within(300)).unwrap());
    }
    // Nobody holds another lock in the new directory.
    granted(after.lock(1, "free", Patience::Try).unwrap());
    let waiting = after
        .send(Command::Lock {
            slot: 0,
            key: "k".into(),
            patience: Patience::Forever,
        })
        .unwrap();
    assert!(
        after.answer(waiting, millis(300)).is_err(),
        "granted while it is held"
    );
    holder.ask(Command::Release { slot: 0 }).unwrap();
    let (new, _) = granted(after.answer(waiting, SOON).unwrap());
    assert!(
        new > old,
        "the counter was lost with the directory: {new} after {old}"
    );
    assert!(is_held(after.ask(Command::Check { slot: 0 }).unwrap()));
    refused(before.lock(0, "k", Patience::Try).unwrap());
}

/// Returns the path of the lock `k`, for `flock(1)`.
fn path_of(stage: &Stage) -> PathBuf {
    FileBackend::open(stage.locks())
        .unwrap()
        .path_of(&LockKey::new("k").unwrap())
}

/// Starts `flock(1)` and waits until it holds the file. It ends when it receives a line.
fn flock(stage: &Stage) -> Peer {
    let held = "echo 'peer> held'; read line";
    let path = path_of(stage);
    let arguments = [path.to_str().unwrap(), "sh", "-c", held];
    let mut peer = Peer::spawn(find_program("flock").unwrap(), arguments).unwrap();
    assert_eq!(peer.hear(SOON).unwrap(), "held");
    peer
}

#[test]
fn a_lock_held_by_flock_is_refused_and_waited_for() {
    let stage = Stage::on_files(TTL);
    let mut worker = stage.worker("worker");
    // The second round uses a file that flock created itself.
    for _ in 0..2 {
        let mut flock = flock(&stage);
        refused(worker.lock(0, "k", Patience::Try).unwrap());
        refused(worker.lock(0, "k", Patience::Within(200)).unwrap());
        let waiting = worker
            .send(Command::Lock {
                slot: 0,
                key: "k".into(),
                patience: Patience::Forever,
            })
            .unwrap();
        assert!(
            worker.answer(waiting, millis(200)).is_err(),
            "granted while flock(1) holds it"
        );
        flock.say("go").unwrap();
        granted(worker.answer(waiting, SOON).unwrap());
        assert!(
            matches!(worker.ask(Command::Release { slot: 0 }).unwrap(), Answer::Released(truth) if truth == "Freed")
        );
    }
}

#[test]
fn a_held_lock_is_refused_to_flock_which_waits_for_it() {
    let stage = Stage::on_files(TTL);
    let mut worker = stage.worker("worker");
    granted(worker.lock(0, "k", Patience::Try).unwrap());
    let program = find_program("flock").unwrap();
    let mut tried = Program::new(&program);
    tried.arg("-n").arg(path_of(&stage)).arg("true");
    assert_eq!(tried.status().unwrap().code(), Some(1));

    let mut waiting = Program::new(&program)
        .arg(path_of(&stage))
        .arg("true")
        .spawn()
        .unwrap();
    std::thread::sleep(millis(200));
    assert!(
        waiting.try_wait().unwrap().is_none(),
        "flock(1) holds a lock of the library"
    );
    worker.ask(Command::Release { slot: 0 }).unwrap();
    let end = Instant::now() + SOON;
    while waiting.try_wait().unwrap().is_none() {
        assert!(
            Instant::now() < end,
            "flock(1) still waits for a released lock"
        );
        std::thread::sleep(millis(5));
    }
    assert!(waiting.wait().unwrap().success());
    assert!(tried.status().unwrap().success());
}

#[test]
fn a_stopped_holder_of_a_file_keeps_it_and_goes_on() {
    let stage = Stage::on_files(SHORT_TTL);
    let (mut holder, mut rival) = (stage.worker("holder"), stage.worker("rival"));
    granted(holder.lock(0, "k", Patience::Forever).unwrap());
    holder.pause().unwrap();
    refused(rival.lock(0, "k", Patience::Within(2 * SHORT_TTL)).unwrap());
    holder.resume().unwrap();
    let held = is_held(holder.ask(Command::Check { slot: 0 }).unwrap());
    let tried = rival.lock(0, "k", Patience::Try).unwrap();
    // While a process considers the lock held after such a sleep, no other process holds it.
    assert!(
        !held || matches!(tried, Answer::Failed { .. } | Answer::Refused),
        "two holders: {tried:?}"
    );
    holder.kill().unwrap();
    granted(rival.lock(1, "k2", Patience::Try).unwrap());
}
