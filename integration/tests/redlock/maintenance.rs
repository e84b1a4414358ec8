//! Maintenance of locks and servers in the background.

use leasehold_core::{LockClient, Renewal};
use leasehold_integration::server::{Persistence, RedisServer, RedlockServers};
use tokio::task::block_in_place;

use crate::support::{
    PATIENT, client, eventually, five, millis, nothing_left, token, ttl, until, value,
};

/// Sets the key for another holder; [`free`] removes it.
fn occupy(server: &RedisServer) {
    let () = redis::cmd("SET")
        .arg("k")
        .arg("another")
        .query(&mut server.connection().unwrap())
        .unwrap();
}

fn free(server: &RedisServer) {
    let () = redis::cmd("DEL")
        .arg("k")
        .query(&mut server.connection().unwrap())
        .unwrap();
}

/// A lock granted by three of five servers, while two were held by another, survives the loss of
/// any of the three.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bare_majority_outlives_the_loss_of_one_server() {
    let mut servers = five(Persistence::None).await;
    let client = client(&servers, PATIENT).await;
    block_in_place(|| servers.servers[3..].iter().for_each(occupy));
    // Only the grant itself can have asked them.
    let held = client
        .mutex("k")
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    block_in_place(|| {
        std::thread::sleep(millis(200));
        servers.servers[3..].iter().for_each(free);
        let holds = |server: &RedisServer| value(server, "k").is_some();
        until("the missing servers hold, too", || {
            servers.servers.iter().all(holds)
        });
        // The server restarts immediately and has lost the lock.
        servers.servers[1].restart().unwrap();
    });
    held.renew().await.unwrap();
    assert!(held.is_held());
    held.release().await.unwrap();
    block_in_place(|| nothing_left(&servers.servers));
}

/// Restarts two of three servers, the second once the first has these keys again.
fn restart_in_turn(servers: &mut RedlockServers, keys: &[&str]) {
    for at in 0..2 {
        servers.servers[at].restart().unwrap();
        for key in keys {
            until(&format!("server {at} has {key}"), || {
                value(&servers.servers[at], key).is_some()
            });
        }
    }
}

async fn three(grace: u64) -> (RedlockServers, LockClient) {
    let servers = RedlockServers::start(3, Persistence::None).unwrap();
    drop(servers.provision(ttl(millis(grace))).await.unwrap());
    let backend = leasehold::backend::connect(&format!("{}{PATIENT}", servers.url()))
        .await
        .unwrap();
    let client = LockClient::builder(backend)
        .with_ttl(ttl(millis(grace)))
        .build();
    (servers, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_far_apart_wedge_no_idle_client() {
    let (mut servers, client) = three(2_000).await;
    block_in_place(|| restart_in_turn(&mut servers, &[":lh4:mark"]));
    eventually(&client, "k").await.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_that_only_renews_outlives_every_restart() {
    // Long enough for pauses of a busy machine.
    let (mut servers, client) = three(8_000).await;
    let held = client.mutex("k").lock().await.unwrap();
    let before = token(&held);
    block_in_place(|| restart_in_turn(&mut servers, &[":lh4:mark", "k"]));
    held.renew().await.unwrap();
    assert!(held.is_held());
    held.release().await.unwrap();
    let next = eventually(&client, "k").await;
    assert!(token(&next) > before);
    next.release().await.unwrap();
}
