//! The quorum over backends in this process.

mod support;

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use leasehold_core::{
    ErrorKind, Fencing, LockClient, LockKey, Mode, Released, Revocation, RevokeOutcome, TestClock,
    Ttl,
    backend::{Attempt, Lease, LockBackend, Request},
    quorum::{QuorumBackend, QuorumConfig, QuorumMember, QuorumNode},
};
use leasehold_local::{FileBackend, MemoryBackend};
use support::flaky::Flaky;

struct Nodes {
    clock: Arc<TestClock>,
    nodes: Vec<Arc<MemoryBackend>>,
}

impl Nodes {
    fn new(count: usize) -> Self {
        let clock = Arc::new(TestClock::new());
        let nodes = (0..count)
            .map(|_| Arc::new(MemoryBackend::with_clock(clock.clone())))
            .collect();
        Self { clock, nodes }
    }

    fn members(&self) -> Vec<QuorumMember> {
        self.nodes
            .iter()
            .map(|node| QuorumMember::Voting(Arc::clone(node) as _))
            .collect()
    }

    async fn open(&self) -> Arc<QuorumBackend> {
        QuorumBackend::open(self.members(), QuorumConfig::new())
            .await
            .unwrap()
    }

    fn request(&self, key: &str) -> Request {
        let drift = leasehold_core::ClockDrift::DEFAULT;
        Request::new(LockKey::new(key).unwrap())
            .with_ttl(Ttl::from_secs(10).unwrap())
            .with_clock(self.clock.clone(), drift)
    }

    /// Takes the lock on one node, as another program would.
    async fn occupy(&self, node: usize, key: &str) -> Arc<dyn Lease> {
        match Arc::clone(&self.nodes[node])
            .try_acquire(self.request(key))
            .await
            .unwrap()
        {
            Attempt::Granted(lease) => lease,
            Attempt::Contended(_) => panic!("node {node} is free"),
        }
    }

    /// Returns the number of nodes that are locked.
    async fn held(&self, key: &str) -> usize {
        let key = LockKey::new(key).unwrap();
        let mut held = 0;
        for node in &self.nodes {
            held += usize::from(!node.inspect(&key).await.unwrap().holders.is_empty());
        }
        held
    }
}

async fn granted(backend: &Arc<QuorumBackend>, request: Request) -> Arc<dyn Lease> {
    match Arc::clone(backend).try_acquire(request).await.unwrap() {
        Attempt::Granted(lease) => lease,
        Attempt::Contended(contention) => panic!("{contention:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_even_number_of_nodes_is_refused() {
    for count in [0, 2, 4] {
        let nodes = Nodes::new(count);
        let error = QuorumBackend::open(nodes.members(), QuorumConfig::new())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("odd"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_majority_of_the_configured_nodes_is_needed_and_enough() {
    let nodes = Nodes::new(5);
    let quorum = nodes.open().await;
    let (one, two) = (nodes.occupy(0, "k").await, nodes.occupy(1, "k").await);
    let lease = granted(&quorum, nodes.request("k")).await;
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
    let three = nodes.occupy(2, "k").await;
    assert!(matches!(
        quorum
            .clone()
            .try_acquire(nodes.request("k"))
            .await
            .unwrap(),
        Attempt::Contended(_)
    ));
    // The leases of the failed attempt were released.
    assert_eq!(nodes.held("k").await, 3);
    for lease in [one, two, three] {
        lease.release().await.unwrap();
    }
    assert_eq!(nodes.held("k").await, 0);
}

#[tokio::test(start_paused = true)]
async fn tokens_grow_whatever_the_nodes_had_before() {
    let nodes = Nodes::new(5);
    let quorum = nodes.open().await;
    let mut last = None;
    for round in 0..20 {
        // The tokens of each node grow on their own in between.
        for node in 0..round % 6 {
            nodes
                .occupy(node % 5, "other")
                .await
                .release()
                .await
                .unwrap();
        }
        let lease = granted(&quorum, nodes.request("k")).await;
        assert!(
            lease.fencing_token() > last,
            "{:?} after {last:?}",
            lease.fencing_token()
        );
        last = lease.fencing_token();
        assert_eq!(lease.release().await.unwrap(), Released::Freed);
    }
}

#[tokio::test(start_paused = true)]
async fn renewal_reacquires_free_nodes_that_had_another_holder() {
    let nodes = Nodes::new(5);
    let quorum = nodes.open().await;
    let other = nodes.occupy(4, "k").await;
    let lease = granted(&quorum, nodes.request("k")).await;
    other.release().await.unwrap();
    assert_eq!(nodes.held("k").await, 4);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = lease.valid_until();
    Arc::clone(&lease).renew().await.unwrap();
    assert!(lease.valid_until() > before);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(nodes.held("k").await, 5);
    assert_eq!(Arc::clone(&lease).release().await.unwrap(), Released::Freed);
    assert_eq!(
        Arc::clone(&lease).release().await.unwrap(),
        Released::AlreadyLost
    );
    assert_eq!(lease.renew().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(nodes.held("k").await, 0);
}

/// A lock on a bare majority would be lost with any of its nodes.
#[tokio::test(start_paused = true)]
async fn nodes_missing_at_the_grant_are_asked_before_any_renewal() {
    let nodes = Nodes::new(5);
    let quorum = nodes.open().await;
    let others = [nodes.occupy(3, "k").await, nodes.occupy(4, "k").await];
    let lease = granted(&quorum, nodes.request("k")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    for other in others {
        other.release().await.unwrap();
    }
    assert_eq!(nodes.held("k").await, 3);
    // The first renewal would be due only seconds later.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(nodes.held("k").await, 5);
    let holders = quorum
        .inspect(&LockKey::new("k").unwrap())
        .await
        .unwrap()
        .holders;
    assert_eq!(
        holders.len(),
        1,
        "one holder, by whatever name: {holders:?}"
    );
    // After the release, no node is requested again.
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(nodes.held("k").await, 0);
}

#[tokio::test(start_paused = true)]
async fn released_or_expired_lock_is_not_requested_again() {
    let nodes = Nodes::new(3);
    let quorum = nodes.open().await;
    for released in [true, false] {
        let other = nodes.occupy(2, "k").await;
        let lease = granted(&quorum, nodes.request("k")).await;
        if released {
            lease.release().await.unwrap();
        } else {
            nodes.clock.suspend(Duration::from_secs(20));
        }
        drop(other.release().await);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(nodes.held("k").await, 0, "{released}");
    }
}

/// The maintenance task keeps nothing alive.
#[tokio::test(start_paused = true)]
async fn no_task_outlives_a_closed_or_dropped_quorum() {
    let nodes = Nodes::new(3);
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    for close in [true, false] {
        let before = tasks();
        let quorum = nodes.open().await;
        assert_eq!(tasks(), before + 1);
        let weak = Arc::downgrade(&quorum);
        if close {
            quorum.close().await.unwrap();
        } else {
            drop(quorum);
            assert!(weak.upgrade().is_none());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(tasks(), before);
    }
}

/// A node that did not answer is released until it confirms. Until then it may have been acquired
/// again.
#[tokio::test(start_paused = true)]
async fn late_release_frees_no_reacquired_node() {
    let nodes = Nodes::new(3);
    let (quorum, key) = (nodes.open().await, LockKey::new("k").unwrap());
    let lease = granted(&quorum, nodes.request("k")).await;
    let at = async |node: usize| nodes.nodes[node].inspect(&key).await.unwrap().holders;
    let mut names = vec![at(2).await[0].owner.unwrap()];
    for _ in 0..3 {
        let gone = at(2).await.remove(0);
        nodes.nodes[2]
            .revoke(&gone, Revocation::Immediate)
            .await
            .unwrap();
        // The renewal notices the loss and acquires the node again.
        Arc::clone(&lease).renew().await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        for earlier in &names {
            let late = nodes.request("k").with_owner(*earlier);
            assert_eq!(
                Arc::clone(&nodes.nodes[2]).withdraw(late).await.unwrap(),
                Released::AlreadyLost
            );
        }
        names.push(at(2).await[0].owner.unwrap());
        let seen = quorum.inspect(&key).await.unwrap().holders;
        assert_eq!(seen.len(), 1, "still one holder: {seen:?}");
    }
    quorum
        .revoke(
            &quorum.inspect(&key).await.unwrap().holders[0],
            Revocation::Immediate,
        )
        .await
        .unwrap();
    assert_eq!(nodes.held("k").await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_a_majority_no_longer_knows_is_lost() {
    let nodes = Nodes::new(3);
    let quorum = nodes.open().await;
    let lease = granted(&quorum, nodes.request("k")).await;
    for node in &nodes.nodes[..2] {
        let holder = node
            .inspect(&LockKey::new("k").unwrap())
            .await
            .unwrap()
            .holders
            .remove(0);
        node.revoke(&holder, Revocation::Immediate).await.unwrap();
    }
    assert_eq!(
        Arc::clone(&lease).renew().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    assert_eq!(lease.release().await.unwrap(), Released::AlreadyLost);
    assert_eq!(nodes.held("k").await, 0);
}

#[tokio::test(start_paused = true)]
async fn permits_are_refused_with_the_reason() {
    let nodes = Nodes::new(3);
    let quorum = nodes.open().await;
    let client = LockClient::builder(quorum)
        .with_clock(nodes.clock.clone())
        .build();
    let error = client.semaphore("gpu", 2).acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error
            .to_string()
            .contains("a majority on each permit cannot bound their number"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn readers_share_and_exclude_writers() {
    let nodes = Nodes::new(5);
    let (one, other) = (nodes.open().await, nodes.open().await);
    let shared = || nodes.request("k").with_mode(Mode::Shared);
    let writer = granted(&one, nodes.request("k")).await;
    Arc::clone(&writer).release().await.unwrap();
    let (first, second) = (
        granted(&one, shared()).await,
        granted(&other, shared()).await,
    );
    assert!(
        first.fencing_token() > writer.fencing_token()
            && second.fencing_token() > writer.fencing_token()
    );
    assert!(matches!(
        one.clone().try_acquire(nodes.request("k")).await.unwrap(),
        Attempt::Contended(_)
    ));
    Arc::clone(&first).release().await.unwrap();
    Arc::clone(&second).release().await.unwrap();
    let next = granted(&other, nodes.request("k")).await;
    assert!(next.fencing_token() > first.fencing_token().max(second.fencing_token()));
    next.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn holder_is_listed_once_and_can_be_revoked() {
    let nodes = Nodes::new(5);
    let (quorum, other) = (nodes.open().await, nodes.open().await);
    let lease = granted(&quorum, nodes.request("k").with_label("till 3")).await;
    // A holder on a minority of the nodes is not listed.
    let key = LockKey::new("k").unwrap();
    let seen = other.inspect(&key).await.unwrap();
    assert_eq!((seen.holders.len(), seen.nodes.len()), (1, 5));
    assert_eq!(seen.holders[0].label, "till 3");
    assert!(seen.nodes.iter().all(|node| node.problem.is_none()));
    other
        .revoke(&seen.holders[0], Revocation::Immediate)
        .await
        .unwrap();
    assert_eq!(lease.renew().await.unwrap_err().kind(), ErrorKind::Lost);
    let _stray = nodes.occupy(2, "k").await;
    assert!(quorum.inspect(&key).await.unwrap().holders.is_empty());
}

#[tokio::test]
async fn member_that_cannot_vote_leaves_the_quorum_without_tokens() {
    let dir = std::env::temp_dir().join(format!("leasehold-quorum-{}", std::process::id()));
    let files = Arc::new(FileBackend::open(&dir).unwrap());
    let mut members = Nodes::new(2).members();
    members.push(QuorumMember::Plain(files));
    let quorum = QuorumBackend::open(members, QuorumConfig::new())
        .await
        .unwrap();
    assert_eq!(quorum.capabilities().fencing, Fencing::None);
    let lease = granted(&quorum, Request::new(LockKey::new("k").unwrap())).await;
    assert_eq!(lease.fencing_token(), None);
    lease.release().await.unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}

/// The majority does not wait for the node, but still learns from its answers that it fails and
/// that it answers again.
#[tokio::test(start_paused = true)]
async fn node_failing_after_the_majority_is_noticed_and_used_again() {
    for votes in [false, true] {
        let clock = Arc::new(TestClock::new());
        let nodes = ["a", "b", "c"].map(|name| Flaky::new(name, clock.clone(), votes));
        let members = nodes.iter().map(Flaky::member);
        let quorum = QuorumBackend::open(members, QuorumConfig::new())
            .await
            .unwrap();
        let client = LockClient::builder(quorum.clone())
            .with_clock(clock)
            .build();
        let pair = async || {
            client
                .mutex("k")
                .try_lock()
                .await
                .unwrap()
                .unwrap()
                .release()
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        let problems = || {
            quorum
                .nodes()
                .into_iter()
                .filter_map(|node| Some((node.endpoint, node.problem?)))
                .collect::<Vec<_>>()
        };
        pair().await;
        assert_eq!(problems(), []);
        nodes[2].down.store(true, SeqCst);
        for _ in 0..3 {
            pair().await;
            assert_eq!(problems(), [("c".to_owned(), "made to fail".to_owned())]);
        }
        nodes[2].down.store(false, SeqCst);
        pair().await;
        assert_eq!(problems(), []);
    }
}

/// Releases in the background report their outcome as well, so that a suspect node, which gets one
/// request at a time, does not wait for the end of one that was forgotten.
#[tokio::test(start_paused = true)]
async fn node_failing_after_a_refusal_is_probed_and_used_again() {
    let clock = Arc::new(TestClock::new());
    let nodes = ["a", "b", "c"].map(|name| Flaky::new(name, clock.clone(), false));
    let request = Request::new(LockKey::new("k").unwrap())
        .with_clock(clock.clone(), leasehold_core::ClockDrift::DEFAULT);
    for node in &nodes[..2] {
        let occupied = Arc::clone(node).try_acquire(request.clone()).await.unwrap();
        assert!(matches!(occupied, Attempt::Granted(_)));
    }
    let members = nodes.iter().map(Flaky::member);
    let quorum = QuorumBackend::open(members, QuorumConfig::new())
        .await
        .unwrap();
    let failing = async || {
        let attempt = Arc::clone(&quorum)
            .try_acquire(request.clone())
            .await
            .unwrap();
        assert!(matches!(attempt, Attempt::Contended(_)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        quorum
            .nodes()
            .into_iter()
            .filter(|node| node.problem.is_some())
            .map(|node| node.endpoint)
            .collect::<Vec<_>>()
    };
    assert!(failing().await.is_empty());
    nodes[2].down.store(true, SeqCst);
    for _ in 0..3 {
        assert_eq!(failing().await, ["c"]);
    }
    nodes[2].down.store(false, SeqCst);
    assert!(failing().await.is_empty());
}

/// Returns three nodes that vote, a quorum of them, and a request.
async fn flaky() -> ([Arc<Flaky>; 3], Arc<QuorumBackend>, Request) {
    let clock = Arc::new(TestClock::new());
    let nodes = ["a", "b", "c"].map(|name| Flaky::new(name, clock.clone(), true));
    let members = nodes.iter().map(Flaky::member);
    let quorum = QuorumBackend::open(members, QuorumConfig::new())
        .await
        .unwrap();
    let request = Request::new(LockKey::new("k").unwrap())
        .with_clock(clock, leasehold_core::ClockDrift::DEFAULT);
    (nodes, quorum, request)
}

/// Returns how many nodes are locked once all pending calls have completed.
async fn held(nodes: &[Arc<Flaky>], request: &Request) -> usize {
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut held = 0;
    for node in nodes {
        held += node.inspect(request.key()).await.unwrap().holders.len();
    }
    held
}

#[tokio::test(start_paused = true)]
async fn node_that_panics_counts_as_failed() {
    let (nodes, quorum, request) = flaky().await;
    // The node may panic before the quorum counts it as a holder, or afterwards.
    for late in [false, true] {
        nodes[0].panics.store(!late, SeqCst);
        let lease = granted(&quorum, request.clone().as_new_owner()).await;
        nodes[0].panics.store(true, SeqCst);
        lease.clone().renew().await.unwrap();
        assert_eq!(lease.release().await.unwrap(), Released::Freed);
        nodes[0].panics.store(false, SeqCst);
        // A release that is retried in the background succeeds once the node no longer panics.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(held(&nodes, &request).await, 0);
    }
    nodes[0].panics.store(true, SeqCst);
    assert_eq!(
        quorum.inspect(request.key()).await.unwrap().holders.len(),
        0
    );
}

/// The node has renewed and holds the lock for another TTL, but the holder uses its old deadline.
#[tokio::test(start_paused = true)]
async fn a_node_whose_renewal_is_answered_too_late_is_released() {
    let (nodes, quorum, request) = flaky().await;
    let lease = granted(&quorum, request.clone()).await;
    assert_eq!(held(&nodes, &request).await, 3);
    nodes[2].late_renewals.store(1, SeqCst);
    Arc::clone(&lease).renew().await.unwrap();
    assert_eq!(held(&nodes, &request).await, 3);
    nodes[2].late_answers.add_permits(1);
    assert_eq!(held(&nodes, &request).await, 2);
    Arc::clone(&lease).renew().await.unwrap();
    assert_eq!(
        held(&nodes, &request).await,
        3,
        "the node is acquired again"
    );
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
    assert_eq!(held(&nodes, &request).await, 0);
}

/// Two renewals of a node are pending. The first answer has the node released and acquired again.
/// The second answer is for the lease that was released.
#[tokio::test(start_paused = true)]
async fn late_reply_to_old_renewal_keeps_a_reacquired_node() {
    let (nodes, quorum, request) = flaky().await;
    let lease = granted(&quorum, request.clone()).await;
    assert_eq!(held(&nodes, &request).await, 3);
    nodes[2].late_renewals.store(2, SeqCst);
    for _ in 0..2 {
        Arc::clone(&lease).renew().await.unwrap();
    }
    nodes[2].late_answers.add_permits(1);
    assert_eq!(held(&nodes, &request).await, 2);
    Arc::clone(&lease).renew().await.unwrap();
    assert_eq!(
        held(&nodes, &request).await,
        3,
        "the node is acquired again"
    );
    nodes[2].late_answers.add_permits(1);
    assert_eq!(held(&nodes, &request).await, 3);
    assert_eq!(lease.release().await.unwrap(), Released::Freed);
    assert_eq!(held(&nodes, &request).await, 0);
}

/// A node that did not answer the inspection may still be locked by the holder.
#[tokio::test(start_paused = true)]
async fn release_is_no_success_while_a_silent_majority_may_hold() {
    let (nodes, quorum, request) = flaky().await;
    let lease = granted(&quorum, request.clone()).await;
    assert_eq!(held(&nodes, &request).await, 3);
    nodes[2].down.store(true, SeqCst);
    let holder = quorum
        .inspect(request.key())
        .await
        .unwrap()
        .holders
        .remove(0);
    nodes[1].down.store(true, SeqCst);
    for revocation in [Revocation::Immediate, Revocation::Graceful] {
        let error = quorum.revoke(&holder, revocation).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(
            error
                .to_string()
                .contains("2 of 3 unavailable: b: made to fail; c: made to fail"),
            "{error}"
        );
    }
    Arc::clone(&lease).renew().await.unwrap();
    nodes[1].down.store(false, SeqCst);
    // One silent node is not a majority.
    assert_eq!(
        quorum.revoke(&holder, Revocation::Immediate).await.unwrap(),
        RevokeOutcome::Freed
    );
    assert_eq!(held(&nodes[..2], &request).await, 0);
    assert_eq!(lease.renew().await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test(start_paused = true)]
async fn revocation_reaches_nodes_that_did_not_show_the_holder() {
    let (nodes, quorum, request) = flaky().await;
    let lease = granted(&quorum, request.clone()).await;
    assert_eq!(held(&nodes, &request).await, 3);
    nodes[2].down.store(true, SeqCst);
    let holder = quorum
        .inspect(request.key())
        .await
        .unwrap()
        .holders
        .remove(0);
    nodes[2].down.store(false, SeqCst);
    nodes[0].down.store(true, SeqCst);
    assert_eq!(
        quorum.revoke(&holder, Revocation::Immediate).await.unwrap(),
        RevokeOutcome::Freed
    );
    nodes[0].down.store(false, SeqCst);
    assert_eq!(held(&nodes[1..], &request).await, 0);
    assert_eq!(lease.renew().await.unwrap_err().kind(), ErrorKind::Lost);
}

/// The holder has acquired a node again under another id since the inspection.
#[tokio::test(start_paused = true)]
async fn revocation_reaches_nodes_reacquired_meanwhile() {
    for revocation in [Revocation::Immediate, Revocation::Graceful] {
        let now = revocation == Revocation::Immediate;
        let (nodes, quorum, request) = flaky().await;
        let lease = granted(&quorum, request.clone()).await;
        assert_eq!(held(&nodes, &request).await, 3);
        let holder = quorum
            .inspect(request.key())
            .await
            .unwrap()
            .holders
            .remove(0);
        for node in &nodes {
            let there = node.inspect(request.key()).await.unwrap().holders.remove(0);
            node.revoke(&there, Revocation::Immediate).await.unwrap();
            Arc::clone(&lease).renew().await.unwrap();
            assert_eq!(
                held(&nodes, &request).await,
                3,
                "the node is acquired again"
            );
        }
        let broken = quorum.revoke(&holder, revocation).await.unwrap();
        assert_eq!(matches!(broken, RevokeOutcome::Freed), now, "{broken:?}");
        assert_eq!(
            matches!(broken, RevokeOutcome::FreeWithin(_)),
            !now,
            "{broken:?}"
        );
        assert_eq!(held(&nodes, &request).await, if now { 0 } else { 3 });
        let expected = if now {
            ErrorKind::Lost
        } else {
            ErrorKind::Revoked
        };
        assert_eq!(lease.renew().await.unwrap_err().kind(), expected);
    }
}

/// A node that fails could otherwise end the renewal before a majority has answered.
#[tokio::test(start_paused = true)]
async fn revocation_is_reported_although_a_node_fails() {
    let (nodes, quorum, request) = flaky().await;
    let lease = granted(&quorum, request.clone()).await;
    assert_eq!(held(&nodes, &request).await, 3);
    let inspection = quorum.inspect(request.key()).await.unwrap();
    let revoked = quorum.revoke(&inspection.holders[0], Revocation::Graceful);
    assert!(matches!(
        revoked.await.unwrap(),
        RevokeOutcome::FreeWithin(_)
    ));
    nodes[0].panics.store(true, SeqCst);
    nodes[2].renewal_takes.store(10, SeqCst);
    assert_eq!(
        Arc::clone(&lease).renew().await.unwrap_err().kind(),
        ErrorKind::Revoked
    );
    // Two nodes that fail are no majority that revoked it.
    nodes[1].panics.store(true, SeqCst);
    assert_eq!(
        lease.renew().await.unwrap_err().kind(),
        ErrorKind::Indeterminate
    );
}

/// Each lock file identifies the same holder differently.
#[tokio::test]
async fn holder_with_different_ids_per_node_is_listed_once() {
    let dir = std::env::temp_dir().join(format!("leasehold-quorum-names-{}", std::process::id()));
    let files = (0..3).map(|node| FileBackend::open(dir.join(node.to_string())).unwrap());
    let nodes = files.map(|files| QuorumMember::Plain(Arc::new(files)));
    let quorum = QuorumBackend::open(nodes, QuorumConfig::new())
        .await
        .unwrap();
    let key = LockKey::new("k").unwrap();
    let lease = granted(&quorum, Request::new(key.clone()).with_label("till 3")).await;
    let seen = quorum.inspect(&key).await.unwrap().holders;
    assert_eq!(
        seen.iter().map(|holder| &*holder.label).collect::<Vec<_>>(),
        ["till 3"]
    );
    lease.release().await.unwrap();
    assert!(quorum.inspect(&key).await.unwrap().holders.is_empty());
    std::fs::remove_dir_all(dir).unwrap();
}

/// Two clients with many tasks each: every task is served, and nothing is left behind.
#[tokio::test(start_paused = true)]
async fn contenders_take_turns_and_leave_nothing() {
    let nodes = Nodes::new(5);
    let mut tasks = tokio::task::JoinSet::new();
    let inside = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for _ in 0..4 {
        let client = LockClient::builder(nodes.open().await)
            .with_clock(nodes.clock.clone())
            .build();
        for _ in 0..4 {
            let (mutex, inside) = (client.mutex("k"), Arc::clone(&inside));
            tasks.spawn(async move {
                let mut tokens = Vec::new();
                for _ in 0..20 {
                    let guard = mutex.lock().await.unwrap();
                    assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                    tokens.push(guard.fencing_token().unwrap());
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    guard.release().await.unwrap();
                }
                tokens
            });
        }
    }
    let mut all = Vec::new();
    while let Some(tokens) = tasks.join_next().await {
        all.extend(tokens.unwrap());
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4 * 4 * 20);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(nodes.held("k").await, 0);
}

#[tokio::test(start_paused = true)]
async fn ping_needs_a_majority_and_names_silent_nodes() {
    let (nodes, quorum, _) = flaky().await;
    let problems = |pong: leasehold_core::Pong| -> Vec<bool> {
        pong.nodes
            .iter()
            .map(|node| node.problem.is_some())
            .collect()
    };
    assert_eq!(
        problems(quorum.ping().await.unwrap()),
        [false, false, false]
    );
    nodes[1].down.store(true, SeqCst);
    assert_eq!(problems(quorum.ping().await.unwrap()), [false, true, false]);
    nodes[2].panics.store(true, SeqCst);
    let error = quorum.ping().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::Unavailable, Some("ping"))
    );
    let text = error.to_string();
    assert!(
        text.contains("2 of 3 unavailable") && text.contains(&nodes[1].to_string()),
        "{text}"
    );
    assert!(!text.contains(&format!("{}:", nodes[0])), "{text}");
}

/// A quorum promises at least this, however its nodes are provisioned.
#[tokio::test(start_paused = true)]
async fn the_provisional_capabilities_of_a_quorum_are_its_weakest() {
    let nodes = Nodes::new(3);
    let provisional =
        QuorumBackend::provisional_capabilities(nodes.members(), &QuorumConfig::new());
    let quorum = nodes.open().await.capabilities();
    assert_eq!(
        (provisional.backend, &provisional.endpoint),
        (quorum.backend, &quorum.endpoint)
    );
    assert!(provisional.fencing <= quorum.fencing && provisional.max_ttl >= quorum.max_ttl);
    assert_eq!(
        (provisional.drift, provisional.pipelined_release),
        (quorum.drift, quorum.pipelined_release)
    );
}
