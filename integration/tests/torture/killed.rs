use std::time::{Duration, Instant};

use leasehold_integration::{
    leftovers,
    server::{RedisServer, ZookeeperServer},
    worker::{Answer, Command, Patience, now_ns},
};

use crate::support::{PATIENCE, Stage, granted, millis, nothing_left, refused, until};

/// The limit for an immediate effect, long enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Asserts that one of a few attempts is within the limit, because a busy machine may delay any of
/// them.
fn in_time(limit_ms: u64, mut once: impl FnMut() -> Duration) {
    let late: Vec<Duration> = (0..5)
        .map(|_| once())
        .take_while(|took| *took > millis(limit_ms))
        .collect();
    assert!(late.len() < 5, "{late:?}");
}

#[test]
fn redis_frees_a_killed_holders_lock_after_its_ttl() {
    const TTL: u64 = 2000;
    let server = RedisServer::start().unwrap();
    let stage = Stage::on(&server.url(), TTL);
    in_time(TTL + 1000, || {
        let (mut holder, mut next) = (stage.worker("holder"), stage.worker("next"));
        let (old, deadline) = granted(holder.lock(0, "k", Patience::Forever).unwrap());
        let waiting = next
            .send(Command::Lock {
                slot: 0,
                key: "k".into(),
                patience: Patience::Forever,
            })
            .unwrap();
        // The holder may renew until it is killed, and a renewal counts from when it is sent.
        holder.kill().unwrap();
        let killed = Instant::now();
        let (new, _) = granted(next.answer(waiting, PATIENCE).unwrap());
        let (took, now) = (killed.elapsed(), now_ns());
        assert!(
            now >= deadline,
            "granted {} ms before the old holder's deadline",
            (deadline - now) / 1_000_000
        );
        assert!(new > old, "{old} {new}");
        next.ask(Command::Release { slot: 0 }).unwrap();
        took
    });
}

#[test]
fn redis_keeps_a_killed_holders_lock_for_nine_tenths_of_ttl() {
    const TTL: u64 = 1500;
    let server = RedisServer::start().unwrap();
    let stage = Stage::on(&server.url(), TTL);
    in_time(TTL + 1000, || {
        let (mut holder, mut next) = (stage.worker("holder"), stage.worker("next"));
        let asked = Instant::now();
        granted(holder.lock(0, "k", Patience::Forever).unwrap());
        holder.kill().unwrap();
        granted(next.lock(0, "k", Patience::Forever).unwrap());
        let took = asked.elapsed();
        assert!(took >= millis(TTL) * 9 / 10, "{took:?}");
        next.ask(Command::Release { slot: 0 }).unwrap();
        took
    });
}

/// A session ends at the first tick after its TTL, counted from the last message that the server
/// received.
#[test]
fn zookeeper_frees_a_killed_holders_lock_after_its_ttl() {
    const TTL: u64 = 2000;
    let server = ZookeeperServer::start().unwrap();
    let stage = Stage::on(&format!("{}?tick=500ms", server.url()), TTL);
    let (mut holder, mut next) = (stage.worker("holder"), stage.worker("next"));
    let (old, _) = granted(holder.lock(0, "k", Patience::Forever).unwrap());
    let waiting = next
        .send(Command::Lock {
            slot: 0,
            key: "k".into(),
            patience: Patience::Forever,
        })
        .unwrap();
    // The holder renews until it is killed.
    until("it waits", PATIENCE, || {
        server
            .ephemerals()
            .unwrap()
            .iter()
            .filter(|node| node.starts_with("/k/"))
            .count()
            == 2
    });
    let (held, deadline) = (holder.ask(Command::Check { slot: 0 }).unwrap(), now_ns());
    let Answer::Checked {
        held: true,
        remaining_ms,
    } = held
    else {
        panic!("{held:?}")
    };
    let deadline = deadline + (remaining_ms - 1) * 1_000_000;
    holder.kill().unwrap();
    let killed = Instant::now();
    let (new, _) = granted(next.answer(waiting, PATIENCE).unwrap());
    let (took, now) = (killed.elapsed(), now_ns());
    assert!(
        now >= deadline,
        "granted {} ms before the old holder's deadline",
        (deadline - now) / 1_000_000
    );
    assert!(
        took >= millis(TTL) * 8 / 10 && took <= millis(TTL + 10_000),
        "{took:?}"
    );
    assert!(new > old, "{old} {new}");
}

#[test]
fn files_free_the_lock_of_a_killed_holder_at_once() {
    let stage = Stage::on_files(30_000);
    let (mut holder, mut next) = (stage.worker("holder"), stage.worker("next"));
    let (old, _) = granted(holder.lock(0, "k", Patience::Forever).unwrap());
    refused(next.lock(0, "k", Patience::Try).unwrap());
    let waiting = next
        .send(Command::Lock {
            slot: 0,
            key: "k".into(),
            patience: Patience::Forever,
        })
        .unwrap();
    assert!(
        next.answer(waiting, millis(200)).is_err(),
        "granted while it is held"
    );
    holder.kill().unwrap();
    let killed = Instant::now();
    let (new, _) = granted(next.answer(waiting, PATIENCE).unwrap());
    assert!(killed.elapsed() <= AT_ONCE, "{:?}", killed.elapsed());
    assert!(new > old, "{old} {new}");
}

#[test]
fn a_killed_waiter_is_not_granted_the_lock_and_leaves_nothing() {
    // No lease expires during the test.
    const TTL: u64 = 3_600_000;
    let server = RedisServer::start().unwrap();
    for stage in [Stage::on(&server.url(), TTL), Stage::on_files(TTL)] {
        let (mut holder, mut waiter, mut next) = (
            stage.worker("holder"),
            stage.worker("waiter"),
            stage.worker("next"),
        );
        granted(holder.lock(0, "k", Patience::Forever).unwrap());
        let waiting = waiter
            .send(Command::Lock {
                slot: 0,
                key: "k".into(),
                patience: Patience::Forever,
            })
            .unwrap();
        assert!(
            waiter.answer(waiting, millis(200)).is_err(),
            "granted while it is held"
        );
        waiter.kill().unwrap();
        holder.ask(Command::Release { slot: 0 }).unwrap();
        let begun = Instant::now();
        granted(next.lock(0, "k", Patience::Within(20_000)).unwrap());
        assert!(
            begun.elapsed() <= AT_ONCE,
            "{}: a dead waiter stands in the way for {:?}",
            stage.url(),
            begun.elapsed()
        );
        next.ask(Command::Release { slot: 0 }).unwrap();
    }
    // The waiter's registration expires after 5 s, whatever the TTL.
    nothing_left(&server, PATIENCE);
}

#[test]
fn a_killed_process_leaves_no_locked_file() {
    let stage = Stage::on_files(30_000);
    let (mut holder, mut waiter) = (stage.worker("holder"), stage.worker("waiter"));
    granted(holder.lock(0, "k", Patience::Forever).unwrap());
    let waiting = waiter
        .send(Command::Lock {
            slot: 0,
            key: "k".into(),
            patience: Patience::Forever,
        })
        .unwrap();
    assert!(
        waiter.answer(waiting, millis(200)).is_err(),
        "granted while it is held"
    );
    // A control: the check for leftovers finds existing locks.
    assert!(!leftovers::files(&stage.locks()).unwrap().is_empty());
    holder.kill().unwrap();
    waiter.kill().unwrap();
    leftovers::nothing_left(AT_ONCE, || leftovers::files(&stage.locks())).unwrap();
}
