use std::time::{Duration, Instant};

use leasehold_integration::{
    server::{PostgresServer, shared_postgres},
    worker::{Answer, Command, Patience},
};

use tokio::task::block_in_place;

use super::support::{HOUR, MINUTE, client_of, nothing_left};
use crate::{
    stopped::{TTL, overtaken, write},
    support::{PATIENCE, Stage, granted, millis, refused, until},
};

/// The limit for an immediate effect, long enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(10);

#[test]
fn the_lock_of_a_killed_holder_is_free_at_once() {
    let server = PostgresServer::start().unwrap();
    // Long enough that nothing expires.
    let stage = Stage::on(&server.url(), 60_000);
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
        next.answer(waiting, millis(300)).is_err(),
        "granted while it is held"
    );
    holder.kill().unwrap();
    let killed = Instant::now();
    let (new, _) = granted(next.answer(waiting, PATIENCE).unwrap());
    assert!(killed.elapsed() <= AT_ONCE, "{:?}", killed.elapsed());
    assert!(new > old, "{old} {new}");
    next.kill().unwrap();
    nothing_left(&server, AT_ONCE);
}

#[test]
fn a_killed_waiter_leaves_nothing() {
    let server = PostgresServer::start().unwrap();
    let stage = Stage::on(&server.url(), 60_000);
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
        waiter.answer(waiting, millis(300)).is_err(),
        "granted while it is held"
    );
    waiter.kill().unwrap();
    holder.ask(Command::Release { slot: 0 }).unwrap();
    let begun = Instant::now();
    granted(next.lock(0, "k", Patience::Within(10_000)).unwrap());
    assert!(
        begun.elapsed() <= AT_ONCE,
        "a dead waiter stands in the way for {:?}",
        begun.elapsed()
    );
    next.ask(Command::Release { slot: 0 }).unwrap();
    drop((holder, next));
    nothing_left(&server, AT_ONCE);
}

/// The ways in which a waiting writer ends without notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Killed,
    Stopped,
    /// The process stays alive.
    None,
}

/// Lets a writer in another process wait behind a reader with a TTL of an hour. Returns whether a
/// second reader is granted after the writer has ended.
async fn reader_behind_a_writer(end: End) -> Option<()> {
    let server = PostgresServer::start().unwrap();
    let stage = Stage::on(&server.url(), HOUR);
    let (first, second) = (
        client_of(&server.url(), HOUR).await,
        client_of(&server.url(), HOUR).await,
    );
    let _held = first.rwlock("k").read().await.unwrap();
    let mut writer = block_in_place(|| {
        // The TTL is so long that the writer never polls.
        let mut writer = stage.worker_at(
            "writer",
            &format!("{}?fallback-poll-interval=3600s", server.url()),
        );
        writer
            .send(Command::Lock {
                slot: 0,
                key: "k".into(),
                patience: Patience::Forever,
            })
            .map(|_| ())
            .unwrap();
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
        until("it waits", MINUTE, || server.psql(locks).unwrap() == "3");
        writer
    });
    assert!(second.rwlock("k").try_read().await.unwrap().is_none());
    match end {
        End::Killed => writer.kill().unwrap(),
        End::Stopped => writer.pause().unwrap(),
        End::None => {}
    }
    let limit = if end == End::None {
        millis(15_000)
    } else {
        MINUTE
    };
    second
        .rwlock("k")
        .read_timeout(limit)
        .await
        .unwrap()
        .map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_waiting_writer_keeps_no_reader_out() {
    reader_behind_a_writer(End::Killed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_waiting_writer_keeps_no_reader_out_for_its_ttl() {
    reader_behind_a_writer(End::Stopped).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_writer_keeps_readers_out_for_as_long_as_it_lives() {
    assert!(
        reader_behind_a_writer(End::None).await.is_none(),
        "a reader overtook the writer"
    );
}

#[test]
fn stopped_holder_knows_its_loss_and_stale_write_is_refused() {
    let server = shared_postgres().unwrap();
    let stage = Stage::on(server.url(), TTL);
    let mut holder = overtaken(&stage, true);
    assert!(!write(&mut holder, 3, true), "the stale write was accepted");
    assert_eq!(stage.register().value().unwrap(), 2);
    assert!(matches!(
        holder.ask(Command::Release { slot: 0 }).unwrap(),
        Answer::Released(outcome) if outcome == "AlreadyLost"
    ));
}
