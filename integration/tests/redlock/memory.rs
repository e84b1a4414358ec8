//! Servers that forget.

use std::time::Duration;

use leasehold_core::{ErrorKind, Fencing, LockClient, backend::LockBackend, quorum::Provision};
use leasehold_integration::server::{Persistence, RedisServer, RedlockServers};
use tokio::task::block_in_place;

use crate::support::{
    PATIENCE, PATIENT, client, client_at, eventually, five, millis, not_granted, nothing_left,
    token, ttl, url_through, value, ways,
};

fn mark(server: &RedisServer) -> Option<String> {
    value(server, ":lh4:mark")
}

/// A holds at 1, 2 and 3, and never reached 4 and 5. Server 3 forgets. B would have 3, 4 and 5.
async fn a_server_that_forgot_does_not_vote(
    persistence: Persistence,
    forget: impl FnOnce(&mut RedisServer),
) {
    let mut servers = five(persistence).await;
    if persistence == Persistence::Snapshot {
        let () = redis::cmd("SAVE")
            .query(&mut servers.servers[2].connection().unwrap())
            .unwrap();
    }
    let ways = ways(&servers);
    for way in &ways[3..] {
        way.cut();
    }
    let one = client_at(&url_through(&ways, PATIENT)).await;
    let held = one.mutex("k").lock().await.unwrap();
    let before = token(&held);
    let other = client(&servers, PATIENT).await;
    block_in_place(|| forget(&mut servers.servers[2]));
    for _ in 0..20 {
        not_granted(&other, "k").await;
        assert!(held.is_held());
    }
    drop(held);
    let next = eventually(&other, "k").await;
    assert!(token(&next) > before);
    next.release().await.unwrap();
    block_in_place(|| nothing_left(&servers.servers));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_back_with_no_memory_is_not_counted() {
    a_server_that_forgot_does_not_vote(Persistence::None, |server| server.restart().unwrap()).await;
}

/// What a snapshot brings back is older than what was granted, and its mark comes back with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_with_an_old_snapshot_and_its_marker_does_not_vote() {
    a_server_that_forgot_does_not_vote(Persistence::Snapshot, |server| {
        server.kill();
        server.restart().unwrap();
        assert!(mark(server).is_some(), "the snapshot has the mark");
    })
    .await;
}

/// The same run, and nothing in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_flushed_is_not_counted() {
    a_server_that_forgot_does_not_vote(Persistence::None, |server| {
        let () = redis::cmd("FLUSHALL")
            .query(&mut server.connection().unwrap())
            .unwrap();
    })
    .await;
}

/// After the grace it copies the largest token from a majority of the others, and votes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgot_rejoins_after_the_largest_ttl() {
    const GRACE: Duration = Duration::from_secs(3);
    let mut servers = RedlockServers::start(5, Persistence::None).unwrap();
    servers.provision(ttl(GRACE)).await.unwrap();
    let backend = leasehold::backend::connect(&format!("{}{PATIENT}", servers.url()))
        .await
        .unwrap();
    assert_eq!(backend.capabilities().max_ttl, ttl(GRACE));
    let client = LockClient::builder(backend).with_ttl(ttl(GRACE)).build();
    let first = client.mutex("k").lock().await.unwrap();
    let before = token(&first);
    first.release().await.unwrap();
    let restarted = std::time::Instant::now();
    block_in_place(|| servers.servers[0].restart().unwrap());
    // Who uses the quorum lets it rejoin, nobody has to do anything by hand.
    while mark(&servers.servers[0]).is_none() {
        assert!(restarted.elapsed() < PATIENCE, "it has not rejoined");
        client
            .mutex("other")
            .lock()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
        tokio::time::sleep(millis(50)).await;
    }
    assert!(restarted.elapsed() >= GRACE, "it rejoined within the grace");
    let above: u64 = mark(&servers.servers[0])
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        above >= before,
        "it has copied {above}, and {before} was granted"
    );
    // Now it is needed.
    for server in &mut servers.servers[3..] {
        server.kill();
    }
    let next = eventually(&client, "k").await;
    assert!(token(&next) > before);
    next.release().await.unwrap();
    block_in_place(|| nothing_left(&servers.servers[..3]));
}

/// A lock outlives the restart of all servers that write everything down, and they rejoin by
/// themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_servers_that_lose_nothing_can_restart() {
    const GRACE: Duration = Duration::from_secs(8);
    let mut servers = RedlockServers::start(5, Persistence::EveryWrite).unwrap();
    let quorum = leasehold::quorum::connect(&servers.url()).await.unwrap();
    let provision = Provision::new(ttl(GRACE))
        .with_never_used(true)
        .with_durable(true);
    quorum.provision(&provision).await.unwrap();
    let (one, other) = (
        client(&servers, PATIENT).await,
        client(&servers, PATIENT).await,
    );
    assert_eq!(one.capabilities().fencing, Fencing::Durable);
    let held = one.mutex("k").with_ttl(ttl(GRACE)).lock().await.unwrap();
    block_in_place(|| {
        for server in &mut servers.servers {
            server.kill();
            server.restart().unwrap();
        }
    });
    let rejoined = std::time::Instant::now() + PATIENCE;
    let refused = loop {
        match other.mutex("k").with_ttl(ttl(GRACE)).try_lock().await {
            Ok(guard) => break guard,
            Err(error) => assert!(std::time::Instant::now() < rejoined, "{error}"),
        }
        tokio::time::sleep(millis(20)).await;
    };
    assert!(refused.is_none() && held.is_held());
    let before = token(&held);
    held.release().await.unwrap();
    let next = other.mutex("k").with_ttl(ttl(GRACE)).lock().await.unwrap();
    assert!(token(&next) > before);
}

/// Nobody knows any more what was granted: the grants end, and nobody is granted anything until an
/// operator says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_without_data_grant_nothing_until_provisioned() {
    let mut servers = five(Persistence::None).await;
    let client = client(&servers, PATIENT).await;
    assert_eq!(client.capabilities().fencing, Fencing::Clocked);
    let held = client.mutex("k").lock().await.unwrap();
    let before = token(&held);
    block_in_place(|| {
        servers
            .servers
            .iter_mut()
            .for_each(|server| server.restart().unwrap());
    });
    let refused = client.mutex("other").try_lock().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    // Who comes anew is told that tokens are best effort, and is not granted anything in the grace
    // either.
    let quorum = leasehold::quorum::connect(&format!("{}{PATIENT}", servers.url()))
        .await
        .unwrap();
    assert_eq!(quorum.capabilities().fencing, Fencing::BestEffort);
    let newcomer = LockClient::new(quorum.clone());
    let refused = newcomer.mutex("k").try_lock().await.unwrap_err();
    assert!(
        refused.to_string().contains("init --assume-fresh"),
        "{refused}"
    );
    // For as long as what they forgot may be held.
    let unsaid = Provision::new(ttl(crate::support::TTL));
    let provisioning = tokio::time::timeout(millis(1_500), quorum.provision(&unsaid)).await;
    assert!(provisioning.is_err(), "it does not wait: {provisioning:?}");
    let provision = Provision::new(ttl(crate::support::TTL)).with_never_used(true);
    quorum.provision(&provision).await.unwrap();
    let next = eventually(&client, "k").await;
    assert!(token(&next) > before, "the clock carries tokens over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provisioning_as_durable_asks_the_servers() {
    let servers = RedlockServers::start(3, Persistence::Snapshot).unwrap();
    let quorum = leasehold::quorum::connect(&servers.url()).await.unwrap();
    let provision = Provision::new(ttl(crate::support::TTL))
        .with_never_used(true)
        .with_durable(true);
    let refused = quorum.provision(&provision).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(
        refused.to_string().contains("appendfsync always"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_under_two_names_is_refused() {
    let servers = RedlockServers::start(2, Persistence::None).unwrap();
    let (one, other) = (servers.servers[0].port(), servers.servers[1].port());
    let url = format!("redlock://127.0.0.1:{one},localhost:{one},127.0.0.1:{other}/");
    let error = leasehold::connect(&url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("same server"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn largest_ttl_is_not_lowered_while_a_node_may_have_forgotten() {
    let mut servers = RedlockServers::start(3, Persistence::None).unwrap();
    servers.provision(ttl(crate::support::TTL)).await.unwrap();
    block_in_place(|| servers.servers[0].restart().unwrap());
    let quorum = leasehold::quorum::connect(&servers.url()).await.unwrap();
    // Longer than the new grace, and by far not the old one.
    let shorter = Provision::new(ttl(millis(1_000)));
    let provisioning = tokio::time::timeout(millis(3_500), quorum.provision(&shorter)).await;
    assert!(provisioning.is_err(), "it does not wait: {provisioning:?}");
}

/// A lock that outlives the grace could be granted again by a server that forgot it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_program_refuses_ttls_above_the_provisioned_one() {
    let servers = RedlockServers::start(3, Persistence::None).unwrap();
    let url = format!("{}{PATIENT}&largest-ttl=2s", servers.url());
    let client = LockClient::builder(leasehold::backend::connect(&url).await.unwrap())
        .with_ttl(ttl(millis(2_000)))
        .build();
    // Servers that were just started vote when they have been up for that long.
    eventually(&client, "k").await.release().await.unwrap();
    servers.provision(ttl(millis(1_000))).await.unwrap();
    let begun = std::time::Instant::now();
    let error = loop {
        match client.mutex("k").lock().await {
            Ok(guard) => drop(guard.release().await),
            Err(error) if error.kind() == ErrorKind::InvalidInput => break error,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
        assert!(begun.elapsed() < PATIENCE, "longer locks are still granted");
        tokio::time::sleep(millis(50)).await;
    };
    assert!(error.to_string().contains("provision"), "{error}");
    client
        .mutex("k")
        .with_ttl(ttl(millis(1_000)))
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}
