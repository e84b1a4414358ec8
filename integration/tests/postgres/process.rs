use leasehold_integration::{
    server::PostgresServer,
    stage::Stage,
    steps::{millis, until},
    worker::{Command, Patience},
};

use tokio::task::block_in_place;

use crate::support::{HOUR, MINUTE, client_of};

/// Whether a waiting writer is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stopped,
    /// The process stays alive.
    None,
}

/// Lets a writer in another process wait behind a reader with a TTL of an hour. Returns whether a
/// second reader is granted beside the waiting writer.
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
