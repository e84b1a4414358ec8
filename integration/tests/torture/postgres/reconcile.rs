use std::time::{Duration, Instant};

use leasehold_core::ErrorKind;
use leasehold_integration::server::PostgresServer;
use tokio::task::block_in_place;

use super::support::client_of;
use crate::support::{PATIENCE, nothing_panicked};

const TTL: u64 = 30_000;

/// Who may not see what its session has gives the connection up, and with it the server frees everything: by then the holder
/// knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_given_up_is_lost_before_a_rival_is_granted() {
    let server = PostgresServer::start().unwrap();
    let (client, rival) = (client_of(&server.url(), TTL).await, client_of(&server.url(), TTL).await);
    let guard = client.mutex("k").lock().await.unwrap();
    let mutex = rival.mutex("k");
    // Its look at the server's locks, and the one that follows, wait until they are cancelled.
    let mut psql = server.psql_session().unwrap();
    block_in_place(|| psql.ask("BEGIN; LOCK TABLE pg_catalog.pg_locks IN ACCESS EXCLUSIVE MODE", PATIENCE).unwrap());
    let cancelling = tokio::task::spawn_blocking(move || {
        let (mut cancelled, until) = (0, Instant::now() + PATIENCE);
        while cancelled < 2 {
            assert!(Instant::now() < until, "{cancelled} looks were cancelled");
            let sql = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
                       WHERE wait_event_type = 'Lock' AND query LIKE '%pg_locks%' AND pid <> pg_backend_pid()";
            cancelled += psql.ask(sql, PATIENCE).unwrap().trim().parse::<u32>().unwrap();
            // So that none is counted twice.
            std::thread::sleep(Duration::from_millis(100));
        }
        psql.ask("ROLLBACK", PATIENCE).unwrap();
    });
    let seizing = tokio::spawn(async move { mutex.lock_within(PATIENCE).await });
    let renewing = guard.renew().await;
    assert_eq!(renewing.expect_err("it saw nothing").kind(), ErrorKind::Lost);
    assert!(!guard.is_held());
    cancelling.await.unwrap();
    let seized = seizing.await.unwrap().unwrap();
    assert!(seized.fencing_token() > guard.fencing_token());
    seized.release().await.unwrap();
    drop(guard);
    nothing_panicked();
}
