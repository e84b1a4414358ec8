//! The parent node of a queue is deleted and created again.

use std::time::Duration;

use leasehold_integration::{
    server::ZookeeperServer,
    steps::{millis, token},
};
use tokio::time::timeout;
use zookeeper_client::Client;

use crate::support::{SOON, client, free, ttl};

async fn until_gone(operator: &Client, path: &str) {
    let gone = async {
        while operator.check_stat(path).await.unwrap().is_some() {
            tokio::time::sleep(millis(20)).await;
        }
    };
    timeout(SOON, gone)
        .await
        .expect("the container was not removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn recreated_parent_does_not_lower_tokens() {
    let builder = ZookeeperServer::builder().property("znode.container.checkIntervalMs", 200);
    let server = builder.start().unwrap();
    let (one, other) = (client(&server.url()).await, client(&server.url()).await);
    let operator = Client::connect(&server.addr().to_string()).await.unwrap();
    let mut last = 0;
    for round in 0..6 {
        // Several locks, so that the sequence is ahead of its restart value.
        for client in [&one, &other, &one] {
            let guard = client.mutex("k").with_ttl(ttl(10)).lock().await.unwrap();
            assert!(
                token(&guard) > last,
                "round {round}: {} after {last}",
                token(&guard)
            );
            last = token(&guard);
            free(guard).await;
        }
        match round % 2 {
            0 => until_gone(&operator, "/k").await,
            _ => match operator.delete("/k", None).await {
                Ok(()) | Err(zookeeper_client::Error::NoNode) => {}
                Err(error) => panic!("{error}"),
            },
        }
    }
}

/// The directory of a free lock may be deleted while a client is about to queue in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_removed_again_and_again_costs_no_lock() {
    let server = ZookeeperServer::start().unwrap();
    let clients = [client(&server.url()).await, client(&server.url()).await];
    let operator = Client::connect(&server.addr().to_string()).await.unwrap();
    let removing = tokio::spawn(async move {
        loop {
            // Succeeds only while the directory is empty.
            drop(operator.delete("/k", None).await);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    });
    let rounds = clients.map(|client| {
        tokio::spawn(async move {
            let mut tokens = Vec::new();
            for _ in 0..100 {
                let guard = timeout(SOON, client.mutex("k").with_ttl(ttl(10)).lock())
                    .await
                    .unwrap()
                    .unwrap();
                tokens.push(token(&guard));
                free(guard).await;
            }
            tokens
        })
    });
    let mut all = Vec::new();
    for tokens in rounds {
        let tokens = tokens.await.unwrap();
        assert!(tokens.is_sorted());
        all.extend(tokens);
    }
    removing.abort();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 200);
}
