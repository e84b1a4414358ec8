use leasehold_core::{ErrorKind, Released};
use leasehold_integration::server::Persistence;
use tokio::task::block_in_place;

use crate::support::{PATIENT, client, five, nothing_left, token, until, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_killed_servers_change_nothing() {
    let mut servers = five(Persistence::None).await;
    let (one, other) = (
        client(&servers, PATIENT).await,
        client(&servers, PATIENT).await,
    );
    let held = one.mutex("k").lock().await.unwrap();
    let mut last = token(&held);
    // Granted by a majority, it is asked for at the others in the background.
    block_in_place(|| {
        until("all hold", || {
            servers
                .servers
                .iter()
                .all(|server| value(server, "k").is_some())
        });
    });
    for server in &mut servers.servers[1..3] {
        server.kill();
    }
    held.renew().await.unwrap();
    assert!(held.is_held());
    let waiting = tokio::spawn({
        let mutex = other.mutex("k");
        async move { mutex.lock().await }
    });
    assert_eq!(held.release().await.unwrap(), Released::Freed);
    let taken = waiting.await.unwrap().unwrap();
    assert!(token(&taken) > last);
    last = token(&taken);
    taken.release().await.unwrap();
    // Also for who comes only now.
    let late = client(&servers, PATIENT).await;
    for _ in 0..5 {
        let guard = late.mutex("k").lock().await.unwrap();
        assert!(token(&guard) > last);
        last = token(&guard);
        guard.release().await.unwrap();
    }
    let seen = late.inspect("k").await.unwrap();
    assert_eq!(
        seen.nodes
            .iter()
            .filter(|node| node.problem.is_some())
            .count(),
        2,
        "{:?}",
        seen.nodes
    );
    block_in_place(|| nothing_left([0, 3, 4].map(|at| &servers.servers[at])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_names_three_killed_servers_and_leaves_nothing() {
    let mut servers = five(Persistence::None).await;
    let client = client(&servers, PATIENT).await;
    let held = client.mutex("held").lock().await.unwrap();
    for server in &mut servers.servers[..3] {
        server.kill();
    }
    let error = client.mutex("k").try_lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    assert!(text.contains("3 of 5 unavailable: "), "{text}");
    for server in &servers.servers[..3] {
        assert!(text.contains(&server.addr().to_string()), "{text}");
    }
    assert!(
        !text.contains(&servers.servers[3].addr().to_string()),
        "{text}"
    );
    // A failed renewal is not a loss; the deadline is.
    assert_ne!(held.renew().await.unwrap_err().kind(), ErrorKind::Lost);
    assert!(held.is_held());
    assert!(held.release().await.is_err());
    block_in_place(|| nothing_left(&servers.servers[3..]));
    // Nobody gets in while there is no majority, nor who comes only now.
    assert_eq!(
        leasehold::connect(&servers.url()).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}
