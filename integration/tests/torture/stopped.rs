use leasehold_integration::{
    server::{RedisServer, ZookeeperServer},
    worker::{Answer, Command, Patience, Worker},
};

use crate::support::{PATIENCE, Stage, granted, is_held, millis, refused};

pub(crate) const TTL: u64 = 1000;

#[track_caller]
pub(crate) fn write(worker: &mut Worker, value: u64, fenced: bool) -> bool {
    match worker
        .ask(Command::Write {
            slot: 0,
            value,
            fenced,
        })
        .unwrap()
    {
        Answer::Wrote { accepted } => accepted,
        other => panic!("{other:?}"),
    }
}

/// Pauses a holder for three TTLs, while a rival acquires the lock and writes.
pub(crate) fn overtaken(stage: &Stage, fenced: bool) -> Worker {
    let (mut holder, mut rival) = (stage.worker("holder"), stage.worker("rival"));
    let (old, _) = granted(holder.lock(0, "k", Patience::Forever).unwrap());
    assert!(write(&mut holder, 1, fenced));
    assert!(is_held(holder.ask(Command::Check { slot: 0 }).unwrap()));
    let watch = holder.send(Command::Watch { slot: 0 }).unwrap();
    std::thread::sleep(millis(100));
    holder.pause().unwrap();
    let stopped = std::time::Instant::now();
    let (new, _) = granted(rival.lock(0, "k", Patience::Within(2 * TTL)).unwrap());
    assert!(new > old, "{old} {new}");
    assert!(write(&mut rival, 2, fenced));
    std::thread::sleep(millis(3 * TTL).saturating_sub(stopped.elapsed()));
    // Checks sent before the pause and all the time: none after the deadline may report the lock as
    // held.
    let check = holder.send(Command::Check { slot: 0 }).unwrap();
    holder.resume().unwrap();
    assert!(
        !is_held(holder.answer(check, PATIENCE).unwrap()),
        "a holder that slept for 3 TTLs considers its lock held"
    );
    match holder.answer(watch, PATIENCE).unwrap() {
        Answer::Watched { held, too_late } => {
            assert!(held > 0, "the guard was never checked");
            assert_eq!(
                too_late, 0,
                "the guard was reported as held after its deadline"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(
        is_held(rival.ask(Command::Check { slot: 0 }).unwrap()),
        "the rival lost its lock to the resumed holder"
    );
    holder
}

#[test]
fn stopped_holder_knows_its_loss_and_stale_write_is_refused() {
    let server = RedisServer::start().unwrap();
    the_stale_write_is_refused(&Stage::on(&server.url(), TTL));
}

#[test]
fn stopped_zookeeper_holder_knows_and_stale_write_is_refused() {
    let server = ZookeeperServer::builder()
        .tick(millis(200))
        .start()
        .unwrap();
    the_stale_write_is_refused(&Stage::on(&format!("{}?tick=200ms", server.url()), TTL));
}

fn the_stale_write_is_refused(stage: &Stage) {
    let mut holder = overtaken(stage, true);
    assert!(!write(&mut holder, 3, true), "the stale write was accepted");
    assert_eq!(stage.register().value().unwrap(), 2);
    assert!(matches!(
        holder.ask(Command::Release { slot: 0 }).unwrap(),
        Answer::Released(outcome) if outcome == "AlreadyLost"
    ));
    // The old holder leaves the rival's lock alone.
    refused(holder.lock(1, "k", Patience::Try).unwrap());
}

/// A control: without a fence the same history corrupts the register, so the fence protects it
/// above.
#[test]
fn without_a_fence_the_stale_write_corrupts() {
    let server = RedisServer::start().unwrap();
    let stage = Stage::on(&server.url(), TTL);
    let mut holder = overtaken(&stage, false);
    assert!(write(&mut holder, 3, false));
    assert_eq!(stage.register().value().unwrap(), 3);
}

#[test]
fn a_stopped_holder_of_a_file_keeps_it_and_goes_on() {
    let stage = Stage::on_files(TTL);
    let (mut holder, mut rival) = (stage.worker("holder"), stage.worker("rival"));
    granted(holder.lock(0, "k", Patience::Forever).unwrap());
    holder.pause().unwrap();
    refused(rival.lock(0, "k", Patience::Within(2 * TTL)).unwrap());
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
