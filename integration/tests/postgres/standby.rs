//! The durability reported for tokens with standbys.

use std::time::Instant;

use leasehold_core::{Fencing, backend::LockBackend};
use leasehold_integration::{
    panics::nothing_panicked,
    server::PostgresServer,
    steps::{SOON, millis},
};
use leasehold_postgres::PostgresBackend;
use tokio::task::block_in_place;

use crate::support::client_of;

const TTL: u64 = 3000;

async fn fencing(url: &str) -> Fencing {
    // Retries, because a busy machine may refuse a connection.
    client_of(url, TTL).await;
    PostgresBackend::connect(&format!("{url}?connect-timeout=20s&timeout=20s"))
        .await
        .unwrap()
        .capabilities()
        .fencing
}

/// Waits until the server reports these states of its standbys.
fn until_states(primary: &PostgresServer, states: &str) {
    let end = Instant::now() + SOON;
    loop {
        let told = primary
            .psql("SELECT string_agg(sync_state, ',' ORDER BY sync_state) FROM pg_stat_replication")
            .unwrap();
        if told == states {
            return;
        }
        assert!(
            Instant::now() < end,
            "{told}, not {states}; {}",
            primary.log_tail()
        );
        std::thread::sleep(millis(20));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_durable_only_if_commits_wait_for_every_standby() {
    // The checkpoint of the second copy must not remove a log that the first standby still needs.
    let primary = PostgresServer::builder()
        .durable()
        .setting("wal_keep_size", "16MB")
        .start()
        .unwrap();
    assert_eq!(fencing(&primary.url()).await, Fencing::Durable);
    let _one = block_in_place(|| {
        primary.psql("CREATE SEQUENCE leasehold_tokens; CREATE ROLE shop LOGIN; GRANT USAGE ON SEQUENCE leasehold_tokens TO shop").unwrap();
        let one = primary.start_standby().unwrap();
        until_states(&primary, "async");
        one
    });
    assert_eq!(fencing(&primary.url()).await, Fencing::BestEffort);
    block_in_place(|| {
        primary
            .psql("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (*)'")
            .unwrap();
        primary.psql("SELECT pg_reload_conf()").unwrap();
        until_states(&primary, "sync");
    });
    assert_eq!(fencing(&primary.url()).await, Fencing::Durable);
    // A role that cannot see the state of a standby must not rely on it.
    assert_eq!(fencing(&primary.url_as("shop")).await, Fencing::BestEffort);
    block_in_place(|| primary.psql("GRANT pg_read_all_stats TO shop").unwrap());
    assert_eq!(fencing(&primary.url_as("shop")).await, Fencing::Durable);
    // A second standby for which no commit waits.
    let _other = block_in_place(|| {
        let other = primary.start_standby().unwrap();
        until_states(&primary, "potential,sync");
        other
    });
    assert_eq!(fencing(&primary.url()).await, Fencing::BestEffort);
    nothing_panicked();
}
