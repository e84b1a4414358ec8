//! Curator's `LeaderLatch` and `LeaderSelector`, and kazoo's `Election`.

use std::sync::Arc;

use leasehold_core::{
    LockKey, Ttl,
    backend::{Lease, LockBackend, RecordRead, Request},
};
use leasehold_integration::{
    foreign::Foreign,
    leases::{acquired, acquiring, free, granted, is_refused, write, written},
    server::ZookeeperServer,
};
use leasehold_zookeeper::ZookeeperBackend;
use tokio::{task::JoinHandle, time::sleep};

use crate::support::{A_WHILE, backend, keeps_waiting, queued};

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

async fn curator(server: &ZookeeperServer, kind: &str) -> Foreign {
    let started = Foreign::curator_election(server.addr(), kind, "/shop/item", ID).await;
    started.unwrap()
}

/// Waits in the library, while another client leads.
async fn waiter(
    server: &ZookeeperServer,
    ours: &Arc<ZookeeperBackend>,
) -> JoinHandle<Arc<dyn Lease>> {
    let waiting = acquiring(ours, candidate("ours"));
    queued(server, 2).await;
    sleep(A_WHILE).await;
    assert!(!waiting.is_finished(), "the other client leads");
    waiting
}

/// Leads in the library. A candidate of Curator waits, and has read the queue.
async fn lead_before(
    server: &ZookeeperServer,
    ours: &Arc<ZookeeperBackend>,
    kind: &str,
) -> (Arc<dyn Lease>, Foreign) {
    let lease = acquired(ours, candidate("ours")).await;
    let mut theirs = curator(server, kind).await;
    theirs.begin_lock().unwrap();
    queued(server, 2).await;
    keeps_waiting(&mut theirs).await;
    (lease, theirs)
}

/// Returns the value of the leader.
async fn leader(backend: &Arc<ZookeeperBackend>) -> Option<String> {
    let mut read = RecordRead::new(key());
    read.while_held = true;
    let reading = Arc::clone(backend).read_record(read).await.unwrap();
    Some(String::from_utf8(reading.record?.value).unwrap())
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
    let waiting = waiter(&server, &ours).await;
    assert_eq!(leader(&ours).await.as_deref(), Some(ID));
    assert!(theirs.release().await.unwrap());
    let lease = granted(waiting).await;

    assert_eq!(theirs.leader().await.unwrap(), "ours");
    assert!(!theirs.try_lock().await.unwrap(), "the library leads");
    written(&lease, write(1, "ours, later")).await;
    assert_eq!(theirs.leader().await.unwrap(), "ours, later");
    queued(&server, 1).await;
    theirs.begin_lock().unwrap();
    queued(&server, 2).await;
    keeps_waiting(&mut theirs).await;
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
        let waiting = waiter(&server, &ours).await;
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
        let lease = acquired(&ours, candidate("ours")).await;
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
    let (lease, mut theirs) = lead_before(&server, &ours, "selector").await;
    written(&lease, write(1, "later")).await;
    keeps_waiting(&mut theirs).await;
    free(lease).await;
    theirs.holds().await.unwrap();
}

/// The documentation warns of this: `LeaderLatch` watches the node before its own once, and takes
/// a change of the data for the event.
#[tokio::test(flavor = "multi_thread")]
async fn a_latch_behind_a_proclaimed_value_is_not_notified() {
    let server = ZookeeperServer::start().unwrap();
    let ours = backend(&server, "").await;
    let (lease, mut theirs) = lead_before(&server, &ours, "latch").await;
    written(&lease, write(1, "later")).await;
    free(lease).await;
    // It is the leader for everyone else.
    assert_eq!(leader(&ours).await.as_deref(), Some(ID));
    assert!(is_refused(&ours, candidate("ours")).await);
    keeps_waiting(&mut theirs).await;
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
    let waiting = waiter(&server, &ours).await;
    assert!(theirs.release().await.unwrap());
    let lease = granted(waiting).await;
    assert!(!theirs.try_lock().await.unwrap(), "the library leads");
    theirs.begin_lock().unwrap();
    keeps_waiting(&mut theirs).await;
    written(&lease, write(1, "later")).await;
    keeps_waiting(&mut theirs).await;
    free(lease).await;
    theirs.holds().await.unwrap();
}
