//! The sequence numbers of a queue's nodes can run out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use leasehold_core::LockClient;
use leasehold_integration::{
    server::ZookeeperServer,
    steps::{millis, token},
};
use tokio::time::{sleep, timeout};
use zookeeper_client::Client;

use crate::support::{SOON, client, free, members, nothing_left, ttl, until_waiting};

/// Nodes with this number or a larger one do not take part.
const LIMIT: i32 = i32::MAX - 1_000_000;

/// Starts a server whose next node below `/k` gets this number.
async fn server_at(number: i32) -> ZookeeperServer {
    let mut server = ZookeeperServer::start().unwrap();
    free(
        client(&server.url())
            .await
            .mutex("k")
            .with_ttl(ttl(10))
            .lock()
            .await
            .unwrap(),
    )
    .await;
    server.spend_numbers("/k", number).unwrap();
    let operator = Client::connect(&server.addr().to_string()).await.unwrap();
    operator
        .delete(&format!("/k/{}", ZookeeperServer::SPENT), None)
        .await
        .unwrap();
    server
}

fn number(node: &str) -> i32 {
    node.rsplit("lock-").next().unwrap().parse().unwrap()
}

async fn clients<const N: usize>(server: &ZookeeperServer) -> Vec<LockClient> {
    join_all((0..N).map(|_| async { client(&server.url()).await })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sequence_numbers_that_are_used_up_admit_one_at_a_time() {
    for start in [i32::MAX - 3, LIMIT - 3] {
        let server = server_at(start).await;
        let holders = Arc::new(AtomicUsize::new(0));
        let tasks = clients::<5>(&server).await.into_iter().map(|client| {
            let holders = Arc::clone(&holders);
            tokio::spawn(async move {
                let mut tokens = Vec::new();
                for _ in 0..4 {
                    let guard = timeout(SOON, client.mutex("k").with_ttl(ttl(10)).lock())
                        .await
                        .unwrap()
                        .unwrap();
                    assert_eq!(
                        holders.fetch_add(1, Ordering::SeqCst),
                        0,
                        "two clients hold the lock"
                    );
                    tokens.push(token(&guard));
                    sleep(millis(20)).await;
                    holders.fetch_sub(1, Ordering::SeqCst);
                    free(guard).await;
                }
                tokens
            })
        });
        let mut tokens = Vec::new();
        for task in join_all(tasks).await {
            let task = task.unwrap();
            assert!(task.is_sorted(), "decreasing tokens: {task:?}");
            tokens.extend(task);
        }
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), 20, "tokens are repeated");
        nothing_left(&server, SOON);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_queued_before_the_limit_are_served() {
    // An acquisition of a held lock uses one number, and another one in the queue.
    let server = server_at(LIMIT - 3).await;
    let all = clients::<4>(&server).await;
    let first = all[0].mutex("k").with_ttl(ttl(10)).lock().await.unwrap();
    let held = members(&server);
    assert_eq!(number(held.first().unwrap()), LIMIT - 3);
    let wait = |client: &LockClient| {
        let mutex = client.mutex("k").with_ttl(ttl(10));
        tokio::spawn(async move { mutex.lock().await.unwrap() })
    };
    let second = wait(&all[1]);
    until_waiting(&server, 1).await;
    let late = [wait(&all[2]), wait(&all[3])];
    // The clients retry, and none is granted.
    sleep(Duration::from_millis(600)).await;
    assert!(
        !second.is_finished() && late.iter().all(|task| !task.is_finished()),
        "two clients hold the lock"
    );
    assert!(
        all[2]
            .mutex("k")
            .with_ttl(ttl(10))
            .try_lock()
            .await
            .unwrap()
            .is_none()
    );
    let mut last = token(&first);
    free(first).await;
    let second = timeout(SOON, second).await.unwrap().unwrap();
    assert!(token(&second) > last);
    last = token(&second);
    sleep(Duration::from_millis(300)).await;
    assert!(
        late.iter().all(|task| !task.is_finished()),
        "two clients hold the lock"
    );
    free(second).await;
    let [one, other] = late;
    let (guard, rest) = match futures_util::future::select(one, other).await {
        futures_util::future::Either::Left(first) => first,
        futures_util::future::Either::Right((guard, rest)) => (guard, rest),
    };
    let guard = guard.unwrap();
    assert!(token(&guard) > last);
    assert!(
        members(&server).iter().all(|node| number(node) < 1_000),
        "the numbers did not restart"
    );
    last = token(&guard);
    // The other waiter has queued again, without waiting for a free lock.
    until_waiting(&server, 1).await;
    free(guard).await;
    let guard = timeout(SOON, rest).await.unwrap().unwrap();
    assert!(token(&guard) > last);
    free(guard).await;
    nothing_left(&server, SOON);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_also_begin_anew() {
    let server = server_at(i32::MAX).await;
    let all = clients::<2>(&server).await;
    let reader = all[0].rwlock("k").with_ttl(ttl(10)).read().await.unwrap();
    let beside = all[1].rwlock("k").with_ttl(ttl(10)).read().await.unwrap();
    assert!(
        all[0]
            .mutex("k")
            .with_ttl(ttl(10))
            .try_lock()
            .await
            .unwrap()
            .is_none()
    );
    drop((reader, beside));
    nothing_left(&server, SOON);
    free(all[0].mutex("k").with_ttl(ttl(10)).lock().await.unwrap()).await;
}
