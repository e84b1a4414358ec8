use std::sync::Arc;

use futures_util::future::join_all;
use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::PostgresServer,
};
use tokio::task::block_in_place;

use super::support::{client_of, nothing_left};
use crate::{
    dropped::{AtPoll, Cut, LONG_TTL, cancel_everywhere, drop_all_everywhere},
    support::{is_a_fault, millis, nothing_panicked, token},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acquisition_dropped_at_any_poll_leaves_no_lock_or_waiter() {
    let server = PostgresServer::start().unwrap();
    drop_all_everywhere(&server.url()).await;
    block_in_place(|| nothing_left(&server, millis(20_000)));
    nothing_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acquisition_cancelled_at_any_poll_leaves_nothing() {
    let server = PostgresServer::start().unwrap();
    let (client, rival) = (
        client_of(&server.url(), LONG_TTL).await,
        client_of(&server.url(), LONG_TTL).await,
    );
    let (cancelled, granted) = cancel_everywhere(Arc::clone(client.backend()), &rival).await;
    assert!(
        cancelled >= 2 && granted >= 8,
        "{cancelled} cancelled, {granted} granted: nothing was tested"
    );
    block_in_place(|| nothing_left(&server, millis(20_000)));
    nothing_panicked();
}

/// The TTL of what a cut connection may leave, which must expire.
const TTL: u64 = 3000;

/// Cuts the connections during an acquisition and verifies the outcome.
async fn cut_within(server: &PostgresServer, cut: Cut, contended: bool) -> bool {
    let proxy = Proxy::start(server.addr()).unwrap();
    let key = format!("{cut:?}{contended}");
    let client = client_of(&server.url_at(proxy.addr()), TTL).await;
    // A busy machine may take longer to open a session than the default timeout.
    while client.mutex("warm").lock().await.is_err() {}
    let rival = client_of(&server.url(), TTL).await;
    let other = if contended {
        Some(rival.mutex(key.as_str()).lock().await.unwrap())
    } else {
        None
    };
    let mut at_poll = u32::MAX;
    match cut {
        Cut::Poll(polls) => at_poll = polls,
        Cut::Chunks(direction, chunks) => proxy.cut_after_chunks(direction, chunks),
        Cut::Bytes(direction, bytes) => proxy.cut_after_bytes(direction, bytes),
    }
    let mutex = client.mutex(key.as_str());
    let releasing = async {
        if let Some(other) = other {
            tokio::time::sleep(millis(100)).await;
            other.release().await.unwrap();
        }
    };
    let locking = tokio::time::timeout(
        millis(30_000),
        AtPoll {
            inner: Box::pin(mutex.lock_timeout(millis(5000))),
            polls: at_poll,
            act: Some(|| proxy.disconnect()),
        },
    );
    let (outcome, ()) = tokio::join!(locking, releasing);
    match outcome.unwrap_or_else(|_| panic!("{cut:?}, contended {contended}: the call hangs")) {
        Ok(None) => assert!(contended, "{cut:?}: refused without a holder"),
        Ok(Some(guard)) => {
            assert!(token(&guard) > 0);
            let released = guard.release().await;
            assert!(
                released
                    .as_ref()
                    .map_or_else(|error| is_a_fault(error.kind()), |_| true),
                "{released:?}"
            );
        }
        Err(error) => assert!(
            is_a_fault(error.kind()),
            "{cut:?}, contended {contended}: {error:?}"
        ),
    }
    let next = rival
        .mutex(key.as_str())
        .lock_timeout(millis(2 * TTL + 10_000))
        .await;
    next.unwrap()
        .unwrap_or_else(|| panic!("{cut:?}, contended {contended}: still held"))
        .release()
        .await
        .unwrap();
    let tripped = proxy.counters().trips > 0;
    // Closes both clients, because the server has few connections.
    drop((client.close().await, rival.close().await));
    tripped
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_in_an_acquisition_leave_no_lock_or_waiter() {
    let server = PostgresServer::start().unwrap();
    let both = [Direction::ClientToServer, Direction::ServerToClient];
    let chunks = both
        .into_iter()
        .flat_map(|direction| (0..8).map(move |chunks| Cut::Chunks(direction, chunks)));
    let bytes = both.into_iter().flat_map(|direction| {
        (1..400)
            .step_by(20)
            .map(move |bytes| Cut::Bytes(direction, bytes))
    });
    let polls = (0..8).map(Cut::Poll);
    let cases: Vec<_> = polls
        .chain(chunks)
        .chain(bytes)
        .flat_map(|cut| [(cut, false), (cut, true)])
        .collect();
    let mut cuts = 0;
    for some in cases.chunks(8) {
        let running = some
            .iter()
            .map(|(cut, contended)| cut_within(&server, *cut, *contended));
        cuts += join_all(running)
            .await
            .into_iter()
            .filter(|cut| *cut)
            .count();
    }
    println!("{cuts} of {} connections were cut", cases.len());
    assert!(
        cuts >= 24,
        "only {cuts} of {} connections were cut",
        cases.len()
    );
    block_in_place(|| nothing_left(&server, millis(2 * TTL + 3000)));
    nothing_panicked();
}
