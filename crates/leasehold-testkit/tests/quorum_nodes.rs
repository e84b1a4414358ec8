//! The quorum over simulated nodes that stop answering, crash or lose a lock at a given moment of
//! an acquisition.

use std::{sync::Arc, time::Duration};

use leasehold_core::{
    Clock, ClockDrift, ErrorKind, FencingToken, LockKey, Result, Ttl,
    backend::{Attempt, Lease, LockBackend, Request},
    quorum::{Provision, QuorumBackend, QuorumConfig, QuorumMember, QuorumNode, VoteRequirements},
};
use leasehold_testkit::sim::{DataLoss, Network, NetworkConditions, SimBackend, SimClock, SimNode};

/// The delay of every message.
const DELAY: Duration = Duration::from_millis(1);
/// The time-out of the quorum for one node, which is shorter than that of the connection.
const NODE_TIMEOUT: Duration = Duration::from_millis(150);
/// The TTL of locks that do not expire during a test.
const TTL: Duration = Duration::from_secs(60);

/// Three nodes, a quorum of them, and a connection of another client to each.
struct Cluster {
    clock: Arc<SimClock>,
    nodes: Vec<Arc<SimNode>>,
    others: Vec<Arc<SimBackend>>,
    quorum: Arc<QuorumBackend>,
}

impl Cluster {
    async fn new() -> Self {
        let clock = SimClock::new();
        let network = Network::new(0);
        network.set_conditions(NetworkConditions {
            delay: DELAY..DELAY,
            ..NetworkConditions::FAIR
        });
        let nodes: Vec<_> = (0..3).map(|_| SimNode::new(SimClock::new())).collect();
        let connect = || {
            nodes
                .iter()
                .map(|node| network.connect(node))
                .collect::<Vec<_>>()
        };
        let links = connect().into_iter().map(|link| QuorumMember::Voting(link));
        let config = QuorumConfig::new().with_node_timeout(NODE_TIMEOUT);
        let quorum = QuorumBackend::open(links, config.with_token_floor(|| FencingToken::new(0)))
            .await
            .unwrap();
        quorum
            .provision(&Provision::new(Ttl::new(TTL).unwrap()).with_never_used(true))
            .await
            .unwrap();
        Self {
            clock,
            others: connect(),
            quorum,
            nodes,
        }
    }

    fn request(&self, ttl: Duration) -> Request {
        let clock = Arc::clone(&self.clock);
        Request::new(LockKey::new("k").unwrap())
            .with_ttl(Ttl::new(ttl).unwrap())
            .with_clock(clock, ClockDrift::DEFAULT)
    }

    async fn occupy(&self, node: usize, floor: u64) -> Arc<dyn Lease> {
        let token_floor = FencingToken::new(floor);
        let requirements = VoteRequirements {
            epoch_required: false,
            largest_ttl: Duration::ZERO,
            token_floor,
        };
        match Arc::clone(&self.others[node])
            .request_vote(self.request(TTL), requirements)
            .await
            .unwrap()
        {
            Attempt::Granted(lease) => lease,
            Attempt::Contended(_) => panic!("node {node} is free"),
        }
    }

    /// Starts an attempt whose token has to be written back to the last two nodes. Returns when all
    /// nodes have granted the lock and no write-back has been sent.
    async fn before_the_write_back(&self) -> tokio::task::JoinHandle<Result<Attempt>> {
        for (node, floor) in [30, 20, 10].into_iter().enumerate() {
            self.occupy(node, floor).await.release().await.unwrap();
        }
        let attempt = tokio::spawn(Arc::clone(&self.quorum).try_acquire(self.request(TTL)));
        tokio::time::sleep(DELAY * 3 / 2).await;
        assert_eq!(self.held(), 3);
        attempt
    }

    fn held(&self) -> usize {
        self.nodes.iter().filter(|node| node.holds()).count()
    }

    /// Checks that all locks are released long before they expire.
    async fn nothing_left(&self) {
        // This is enough time for several releases.
        tokio::time::sleep(DELAY * 10).await;
        assert_eq!(self.held(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn majority_silent_in_write_back_is_unavailable() {
    let cluster = Cluster::new().await;
    let attempt = cluster.before_the_write_back().await;
    cluster.nodes[1..].iter().for_each(|node| node.pause(true));
    let error = attempt.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("2 of 3 unavailable: "),
        "{error}"
    );
    assert_eq!(
        error.to_string().matches("no answer within 150ms").count(),
        2,
        "{error}"
    );
    cluster.nodes[1..].iter().for_each(|node| node.pause(false));
    cluster.nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn majority_failing_in_write_back_is_unavailable() {
    let cluster = Cluster::new().await;
    let attempt = cluster.before_the_write_back().await;
    // The replies are on their way and will arrive.
    tokio::time::sleep(DELAY).await;
    cluster.nodes[1..]
        .iter()
        .for_each(|node| node.crash(DataLoss::None));
    let error = attempt.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("2 of 3 unavailable: "),
        "{error}"
    );
    assert_eq!(
        error.to_string().matches("connection reset").count(),
        2,
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn majority_lost_to_rivals_in_write_back_is_contention() {
    let cluster = Cluster::new().await;
    let attempt = cluster.before_the_write_back().await;
    // By the clocks of these nodes the lock has expired.
    cluster.nodes[1..]
        .iter()
        .for_each(|node| node.clock().suspend(TTL));
    let rivals = [cluster.occupy(1, 0).await, cluster.occupy(2, 0).await];
    assert!(matches!(attempt.await.unwrap(), Ok(Attempt::Contended(_))));
    for rival in rivals {
        rival.release().await.unwrap();
    }
    cluster.nothing_left().await;
}

/// The nodes grant the lock for a TTL from the arrival of the request, when the client's deadline
/// has passed.
#[tokio::test(start_paused = true)]
async fn majority_slower_than_ttl_is_an_error_and_is_released() {
    const SHORT: Duration = Duration::from_millis(100);
    for slow in [0..3, 1..3] {
        let cluster = Cluster::new().await;
        cluster.nodes[slow.clone()]
            .iter()
            .for_each(|node| node.pause(true));
        let attempt = tokio::spawn(Arc::clone(&cluster.quorum).try_acquire(cluster.request(SHORT)));
        tokio::time::sleep(SHORT * 6 / 5).await;
        cluster.nodes[slow.clone()]
            .iter()
            .for_each(|node| node.pause(false));
        tokio::time::sleep(DELAY / 2).await;
        assert_eq!(
            cluster.held(),
            slow.len(),
            "the nodes have granted the lock, and the replies are on their way"
        );
        let error = attempt.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(
            error.to_string().contains("not within the TTL of 100ms"),
            "{error}"
        );
        cluster.nothing_left().await;
    }
}

/// A token that is granted after the end of the grace period counts as well.
#[tokio::test(start_paused = true)]
async fn nodes_are_provisioned_above_granted_tokens_after_grace() {
    let cluster = Cluster::new().await;
    let quorum = Arc::clone(&cluster.quorum);
    let provision = Provision::new(Ttl::new(TTL).unwrap());
    let provisioning = tokio::spawn(async move { quorum.provision(&provision).await });
    // All nodes have reported their state, and the replies are on their way.
    tokio::time::sleep(DELAY * 3 / 2).await;
    let lease = cluster.occupy(0, 1_000).await;
    provisioning.await.unwrap().unwrap();
    let next = cluster.occupy(2, 0).await;
    assert!(
        next.fencing_token() > lease.fencing_token(),
        "{next:?} after {lease:?}"
    );
}

/// Two names may turn out to lead to one server after the quorum has been opened.
#[tokio::test(start_paused = true)]
async fn second_name_of_a_server_gets_no_vote() {
    let network = Network::new(0);
    let (one, other) = (SimNode::new(SimClock::new()), SimNode::new(SimClock::new()));
    let links = [&one, &one, &other].map(|node| network.connect(node));
    // While the link is cut, the quorum cannot see that it leads to the same server.
    links[1].link().cut(true);
    let members = links
        .iter()
        .map(|link| QuorumMember::Voting(Arc::clone(link) as _));
    let quorum = QuorumBackend::open(members, QuorumConfig::new())
        .await
        .unwrap();
    links[1].link().cut(false);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let problems: Vec<_> = quorum
        .nodes()
        .into_iter()
        .filter_map(|node| node.problem)
        .collect();
    assert_eq!(
        problems,
        ["it is the same server as another node of the quorum"]
    );
    other.crash(DataLoss::None);
    let clock: Arc<dyn Clock> = SimClock::new();
    let request = Request::new(LockKey::new("k").unwrap()).with_clock(clock, ClockDrift::DEFAULT);
    let refused = quorum.try_acquire(request).await.unwrap_err();
    assert_eq!(
        refused.kind(),
        ErrorKind::Unavailable,
        "one server is no majority of three"
    );
}
