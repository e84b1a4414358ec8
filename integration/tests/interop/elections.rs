//! Curator's `LeaderLatch` and `LeaderSelector`, and kazoo's `Election`.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    LockKey, Released, Ttl,
    backend::{Attempt, Lease, LockBackend, RecordRead, RecordWrite, Request},
};
use leasehold_integration::{foreign::Foreign, server::ZookeeperServer};
use leasehold_zookeeper::ZookeeperBackend;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

/// The timeout of operations that must succeed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The time for which a waiter is observed not to be granted.
const A_WHILE: Duration = Duration::from_millis(300);

const ID: &str = "curator@host:7";

fn key() -> LockKey {
    LockKey::new("item").unwrap()
}

fn mutex() -> Request {
    Request::new(key()).with_ttl(Ttl::from_secs(10).unwrap())
}

fn candidate(proposal: &str) -> Request {
    mutex().with_proposal(proposal.as_bytes())
}

async fn backend(server: &ZookeeperServer, options: &str) -> Arc<ZookeeperBackend> {
    let url = format!("{}/shop{options}", server.url());
    ZookeeperBackend::connect(&url).await.unwrap()
}

async fn curator(server: &ZookeeperServer, kind: &str) -> Foreign {
    let started = Foreign::curator_election(server.addr(), kind, "/shop/item", ID).await;
    started.unwrap()
}

fn waits(backend: &Arc<ZookeeperBackend>, request: Request) -> JoinHandle<Arc<dyn Lease>> {
    let backend = Arc::clone(backend);
    tokio::spawn(async move { backend.acquire(request).await.unwrap() })
}

async fn granted(waiting: JoinHandle<Arc<dyn Lease>>) -> Arc<dyn Lease> {
    timeout(PATIENCE, waiting)
        .await
        .expect("not granted")
        .unwrap()
}

async fn is_refused(backend: &Arc<ZookeeperBackend>, request: Request) -> bool {
    let attempt = Arc::clone(backend).try_acquire(request).await.unwrap();
    matches!(attempt, Attempt::Contended(_))
}

/// Returns the value of the leader.
async fn leader(backend: &Arc<ZookeeperBackend>) -> Option<String> {
    let mut read = RecordRead::new(key());
    read.while_held = true;
    let reading = Arc::clone(backend).read_record(read).await.unwrap();
    Some(String::from_utf8(reading.record?.value).unwrap())
}

/// Waits until this number of clients hold or wait.
async fn queued(server: &ZookeeperServer, count: usize) {
    let there = || {
        let nodes = server.ephemerals().unwrap();
        let nodes = nodes.iter().filter(|node| node.starts_with("/shop/item/"));
        nodes.count()
    };
    let all = async {
        while tokio::task::block_in_place(there) != count {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, all).await.expect("never queued");
}

async fn free(lease: Arc<dyn Lease>) {
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
}

/// Asserts that a candidate of Curator and one of the library lead one after the other, each while
/// the other waits, and that each shows the id of the other.
async fn lead_in_turn(kind: &str, options: &str) {
    let server = ZookeeperServer::start().unwrap();
    let ours = backend(&server, options).await;
    let mut theirs = curator(&server, kind).await;
    assert_eq!(leader(&ours).await, None);

    theirs.lock().await.unwrap();
    assert_eq!(leader(&ours).await.as_deref(), Some(ID));
    assert_eq!(theirs.leader().await.unwrap(), ID);
    assert!(is_refused(&ours, candidate("ours")).await);
    assert!(is_refused(&ours, mutex()).await);
    let waiting = waits(&ours, candidate("ours"));
    queued(&server, 2).await;
    sleep(A_WHILE).await;
    assert!(!waiting.is_finished(), "the other client leads");
    assert_eq!(leader(&ours).await.as_deref(), Some(ID));
    assert!(theirs.release().await.unwrap());
    let lease = granted(waiting).await;

    assert_eq!(theirs.leader().await.unwrap(), "ours");
    assert!(!theirs.try_lock().await.unwrap(), "the library leads");
    let proclaimed = Arc::clone(&lease).write_record(RecordWrite::new(1, "ours, later").unwrap());
    proclaimed.await.unwrap();
    assert_eq!(theirs.leader().await.unwrap(), "ours, later");
    queued(&server, 1).await;
    theirs.begin_lock().unwrap();
    queued(&server, 2).await;
    assert!(timeout(A_WHILE, theirs.holds()).await.is_err());
    assert_eq!(leader(&ours).await.as_deref(), Some("ours, later"));
    free(lease).await;
    theirs.holds().await.unwrap();
    assert_eq!(leader(&ours).await.as_deref(), Some(ID));
    assert!(theirs.release().await.unwrap());
    queued(&server, 0).await;
    assert_eq!(leader(&ours).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn curators_latch_and_our_candidates_lead_in_turn() {
    lead_in_turn("latch", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curators_selector_and_our_candidates_lead_in_turn() {
    lead_in_turn("selector", "?election=selector").await;
}

/// Leasehold waits for the candidates of both classes with either value of the option.
#[tokio::test(flavor = "multi_thread")]
async fn our_candidates_wait_for_either_class_of_curator() {
    for (kind, options) in [("latch", "?election=selector"), ("selector", "")] {
        let server = ZookeeperServer::start().unwrap();
        let ours = backend(&server, options).await;
        let mut theirs = curator(&server, kind).await;
        theirs.lock().await.unwrap();
        assert!(is_refused(&ours, candidate("ours")).await);
        let waiting = waits(&ours, candidate("ours"));
        queued(&server, 2).await;
        sleep(A_WHILE).await;
        assert!(!waiting.is_finished(), "the other client leads");
        assert!(theirs.release().await.unwrap());
        free(granted(waiting).await).await;
    }
}

/// The documentation warns of the class that the option does not name.
#[tokio::test(flavor = "multi_thread")]
async fn the_other_class_of_curator_does_not_see_our_candidates() {
    for (kind, options) in [("latch", "?election=selector"), ("selector", "")] {
        let server = ZookeeperServer::start().unwrap();
        let ours = backend(&server, options).await;
        let lease = waits(&ours, candidate("ours"));
        let lease = granted(lease).await;
        let mut theirs = curator(&server, kind).await;
        theirs.lock().await.unwrap();
        free(lease).await;
    }
}

/// `LeaderSelector` reads the queue again after each event of the node before its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_selector_behind_a_proclaimed_value_leads_next() {
    let server = ZookeeperServer::start().unwrap();
    let ours = backend(&server, "?election=selector").await;
    let lease = granted(waits(&ours, candidate("ours"))).await;
    let mut theirs = curator(&server, "selector").await;
    theirs.begin_lock().unwrap();
    queued(&server, 2).await;
    // It has read the queue by then.
    assert!(timeout(A_WHILE, theirs.holds()).await.is_err());
    let proclaimed = Arc::clone(&lease).write_record(RecordWrite::new(1, "later").unwrap());
    proclaimed.await.unwrap();
    assert!(timeout(A_WHILE, theirs.holds()).await.is_err());
    free(lease).await;
    theirs.holds().await.unwrap();
}

/// The documentation warns of this: `LeaderLatch` watches the node before its own once, and takes
/// a change of the data for the event.
#[tokio::test(flavor = "multi_thread")]
async fn a_latch_behind_a_proclaimed_value_is_not_notified() {
    let server = ZookeeperServer::start().unwrap();
    let ours = backend(&server, "").await;
    let lease = granted(waits(&ours, candidate("ours"))).await;
    let mut theirs = curator(&server, "latch").await;
    theirs.begin_lock().unwrap();
    queued(&server, 2).await;
    assert!(timeout(A_WHILE, theirs.holds()).await.is_err());
    let proclaimed = Arc::clone(&lease).write_record(RecordWrite::new(1, "later").unwrap());
    proclaimed.await.unwrap();
    free(lease).await;
    // It is the leader for everyone else.
    assert_eq!(leader(&ours).await.as_deref(), Some(ID));
    assert!(is_refused(&ours, candidate("ours")).await);
    assert!(timeout(A_WHILE, theirs.holds()).await.is_err());
}

/// kazoo's `Election` is its `Lock`, which takes the patterns.
#[tokio::test(flavor = "multi_thread")]
async fn kazoo_with_our_candidates_pattern_leads_in_turn() {
    let server = ZookeeperServer::start().unwrap();
    let ours = backend(&server, "").await;
    let theirs = Foreign::kazoo(server.addr(), "/shop/item", &["latch-", "lock-"]).await;
    let mut theirs = theirs.unwrap();
    theirs.lock().await.unwrap();
    assert!(is_refused(&ours, candidate("ours")).await);
    assert_eq!(leader(&ours).await, None);
    let waiting = waits(&ours, candidate("ours"));
    queued(&server, 2).await;
    sleep(A_WHILE).await;
    assert!(!waiting.is_finished(), "the other client holds");
    assert!(theirs.release().await.unwrap());
    let lease = granted(waiting).await;
    assert!(!theirs.try_lock().await.unwrap(), "the library leads");
    theirs.begin_lock().unwrap();
    assert!(timeout(A_WHILE, theirs.holds()).await.is_err());
    let proclaimed = Arc::clone(&lease).write_record(RecordWrite::new(1, "later").unwrap());
    proclaimed.await.unwrap();
    assert!(timeout(A_WHILE, theirs.holds()).await.is_err());
    free(lease).await;
    theirs.holds().await.unwrap();
}
