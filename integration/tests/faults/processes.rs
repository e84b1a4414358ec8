//! Holders and waiters whose process is killed or stopped.

use std::thread;

use leasehold_integration::{
    chosen::seed,
    held::HeldMode,
    stage::{Stage, is_held},
    steps::{millis, token},
    worker::{Answer, Command, Patience, Worker, now_ns},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    fixture::Fixture,
    support::{SOON, granted, nothing_left, soon, until_waiting},
};

pub(crate) async fn the_lock_of_a_killed_holder_is_free_at_once(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let client = fixture.client().await;
    for mode in HeldMode::all(&client) {
        let (mut holder, mut next) = (stage.worker("holder"), stage.worker("next"));
        let held = holder.ask(mode.command(Patience::Forever)).unwrap();
        let (old, _) = granted(held);
        // A control: the check for leftovers finds the lock.
        assert!(!fixture.leftovers().unwrap().is_empty());
        let waiting = next.send(mode.rival().command(Patience::Forever)).unwrap();
        until_waiting(&client, 1).await;
        assert!(
            next.answer(waiting, millis(0)).is_err(),
            "{mode:?}: granted while it is held"
        );
        holder.kill().unwrap();
        // Far less than the TTL of an hour.
        let (new, _) = granted(next.answer(waiting, SOON).unwrap());
        assert!(
            new > old || mode == HeldMode::Permit,
            "{mode:?}: {new} after {old}"
        );
        next.kill().unwrap();
        nothing_left(fixture);
    }
}

pub(crate) async fn a_killed_holder_keeps_its_lock_until_its_deadline(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let (mut holder, mut next) = (stage.worker("holder"), stage.worker("next"));
    let asked = now_ns();
    let held = holder
        .ask(HeldMode::Writer.command(Patience::Forever))
        .unwrap();
    let (old, deadline) = granted(held);
    // Most of the TTL is of use.
    assert!(deadline - asked >= fixture.ttl_ms() * 1_000_000 * 3 / 4);
    let waiting = next
        .send(HeldMode::Writer.command(Patience::Forever))
        .unwrap();
    holder.kill().unwrap();
    let (new, _) = granted(next.answer(waiting, SOON).unwrap());
    let now = now_ns();
    assert!(
        now >= deadline,
        "granted {} ms before the old holder's deadline",
        (deadline - now) / 1_000_000
    );
    assert!(new > old, "{new} after {old}");
    assert!(matches!(
        next.ask(Command::Release { slot: 0 }).unwrap(),
        Answer::Released(outcome) if outcome == "Freed"
    ));
    drop(next);
    nothing_left(fixture);
}

pub(crate) async fn a_killed_waiter_blocks_for_seconds_whatever_its_ttl(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let (one, other) = (fixture.client().await, fixture.client().await);
    for mode in HeldMode::all(&one) {
        let rival = mode.rival();
        let held = rival.lock(&one, "k").await.unwrap();
        let mut doomed = stage.worker("doomed");
        let asked = doomed.send(mode.command(Patience::Forever)).unwrap();
        until_waiting(&one, 1).await;
        let next = tokio::spawn({
            let other = other.clone();
            async move { rival.lock(&other, "k").await.unwrap() }
        });
        until_waiting(&one, 2).await;
        assert!(
            doomed.answer(asked, millis(0)).is_err(),
            "{mode:?}: granted while it is held"
        );
        doomed.kill().unwrap();
        held.release().await.unwrap();
        // Far less than the killed waiter's TTL of an hour.
        let next = soon(
            &format!("the one behind a killed {mode:?} is granted"),
            next,
        )
        .await;
        next.unwrap().release().await.unwrap();
        nothing_left(fixture);
    }
}

/// The number of waiters in a queue of which some are killed.
const WAITERS: usize = 6;

pub(crate) async fn a_killed_waiter_in_any_mode_blocks_nobody_for_long(fixture: &mut dyn Fixture) {
    let mut rng = StdRng::seed_from_u64(seed());
    let stage = fixture.stage();
    let client = fixture.client().await;
    for round in 0..3 {
        let held = HeldMode::Writer.lock(&client, "k").await.unwrap();
        let mut waiters: Vec<_> = (0..WAITERS)
            .map(|waiter| {
                let mut worker = stage.worker(&format!("w{round}-{waiter}"));
                let mode = if rng.random_bool(0.5) {
                    HeldMode::Writer
                } else {
                    HeldMode::Reader
                };
                let asked = worker.send(mode.command(Patience::Forever)).unwrap();
                (worker, asked)
            })
            .collect();
        until_waiting(&client, WAITERS).await;
        for _ in 0..rng.random_range(1..WAITERS) {
            thread::sleep(millis(rng.random_range(0..100)));
            let (mut killed, _) = waiters.swap_remove(rng.random_range(0..waiters.len()));
            killed.kill().unwrap();
        }
        held.release().await.unwrap();
        thread::scope(|scope| {
            for (mut worker, asked) in waiters {
                scope.spawn(move || {
                    let answer = worker.answer(asked, 3 * SOON);
                    granted(answer.expect("a killed waiter blocks"));
                    worker.ask(Command::Release { slot: 0 }).unwrap();
                });
            }
        });
        nothing_left(fixture);
    }
}

pub(crate) async fn killed_waiting_writer_keeps_no_reader_out(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let (first, second) = (fixture.client().await, fixture.client().await);
    let held = first.rwlock("k").read().await.unwrap();
    let mut writer = stage.worker("writer");
    let asked = writer
        .send(HeldMode::Writer.command(Patience::Forever))
        .unwrap();
    until_waiting(&first, 1).await;
    assert!(
        writer.answer(asked, millis(0)).is_err(),
        "granted beside a reader"
    );
    writer.kill().unwrap();
    let granted = second.rwlock("k").read_timeout(SOON).await.unwrap();
    granted
        .expect("a killed writer keeps a reader out")
        .release()
        .await
        .unwrap();
    held.release().await.unwrap();
    nothing_left(fixture);
}

/// Verifies that the waiter is skipped while it is stopped, and granted after it continues.
pub(crate) async fn a_stopped_waiter_blocks_for_seconds_and_waits_again(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let (one, other) = (fixture.client().await, fixture.client().await);
    let held = one.mutex("k").lock().await.unwrap();
    let mut stopped = stage.worker("stopped");
    let asked = stopped
        .send(HeldMode::Writer.command(Patience::Forever))
        .unwrap();
    until_waiting(&one, 1).await;
    let next = tokio::spawn({
        let mutex = other.mutex("k");
        async move { mutex.lock().await.unwrap() }
    });
    until_waiting(&one, 2).await;
    stopped.pause().unwrap();
    held.release().await.unwrap();
    let next = soon("the one behind a stopped process is granted", next)
        .await
        .unwrap();
    stopped.resume().unwrap();
    until_waiting(&one, 1).await;
    assert!(next.is_held());
    let before = token(&next);
    next.release().await.unwrap();
    let (after, _) = granted(stopped.answer(asked, SOON).unwrap());
    assert!(after > before, "{after} after {before}");
    stopped.ask(Command::Release { slot: 0 }).unwrap();
    nothing_left(fixture);
}

#[track_caller]
fn write(worker: &mut Worker, value: u64, fenced: bool) -> bool {
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

/// Stops a holder until a rival has acquired the lock and written.
fn overtaken(stage: &Stage, ttl_ms: u64, fenced: bool) -> (Worker, Worker) {
    let (mut holder, mut rival) = (stage.worker("holder"), stage.worker("rival"));
    let (old, _) = granted(
        holder
            .ask(HeldMode::Writer.command(Patience::Forever))
            .unwrap(),
    );
    assert!(write(&mut holder, 1, fenced));
    assert!(is_held(holder.ask(Command::Check { slot: 0 }).unwrap()));
    let watch = holder.send(Command::Watch { slot: 0 }).unwrap();
    thread::sleep(millis(100));
    holder.pause().unwrap();
    let asked = rival
        .send(HeldMode::Writer.command(Patience::Forever))
        .unwrap();
    let (new, _) = granted(rival.answer(asked, SOON).unwrap());
    assert!(new > old, "{new} after {old}");
    assert!(write(&mut rival, 2, fenced));
    thread::sleep(millis(ttl_ms));
    // The holder checks all the time. No check after the deadline may report the lock as held.
    let check = holder.send(Command::Check { slot: 0 }).unwrap();
    holder.resume().unwrap();
    assert!(
        !is_held(holder.answer(check, SOON).unwrap()),
        "a holder that slept for two TTLs considers its lock held"
    );
    match holder.answer(watch, SOON).unwrap() {
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
    (holder, rival)
}

pub(crate) async fn stopped_holder_knows_its_loss_and_stale_write_is_refused(
    fixture: &mut dyn Fixture,
) {
    let stage = fixture.stage();
    let (mut holder, mut rival) = overtaken(&stage, fixture.ttl_ms(), true);
    assert!(!write(&mut holder, 3, true), "the stale write was accepted");
    assert_eq!(stage.register().value().unwrap(), 2);
    assert!(matches!(
        holder.ask(Command::Release { slot: 0 }).unwrap(),
        Answer::Released(outcome) if outcome == "AlreadyLost"
    ));
    // The old holder leaves the rival's lock alone.
    let tried = holder.ask(HeldMode::Writer.command(Patience::Try)).unwrap();
    assert!(matches!(tried, Answer::Refused), "{tried:?}");
    assert!(matches!(
        rival.ask(Command::Release { slot: 0 }).unwrap(),
        Answer::Released(outcome) if outcome == "Freed"
    ));
    drop((holder, rival));
    nothing_left(fixture);
}

/// Verifies, as a control, that without a fence the same history corrupts the register.
pub(crate) async fn without_a_fence_the_stale_write_corrupts(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let (mut holder, _rival) = overtaken(&stage, fixture.ttl_ms(), false);
    assert!(write(&mut holder, 3, false));
    assert_eq!(stage.register().value().unwrap(), 3);
}
