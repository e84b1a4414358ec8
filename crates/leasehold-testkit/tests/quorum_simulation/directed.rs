//! Single faults at critical moments. The seed determines the fault and its details.
//!
//! Random faults seldom lead to these situations:
//!
//! - a holder with a bare majority is cut off while one of its nodes loses its data
//! - nodes restart far apart while no client requests a lock
//! - a node is lost right after a grant by a bare majority

use std::{ops::Range, sync::Arc, time::Duration};

use leasehold_core::{
    Clock, FencingToken, LockClient, LockKey, Ttl,
    backend::{Attempt, Lease, LockBackend, Request},
    quorum::{Provision, QuorumBackend, QuorumConfig, QuorumMember, seed_pauses},
};
use leasehold_testkit::sim::{DataLoss, Network, SimBackend, SimClock, SimNode};

use crate::{
    flawed_link::FlawedLink,
    world::{Flaw, voting},
};

const KEY: &str = "k";
/// The TTL of locks, which is also the grace period. It is far longer than all other waits.
const TTL: Duration = Duration::from_secs(10);
/// The time within which every client notices that a node has restarted: two checks of its state.
const CHECKS: Duration = Duration::from_secs(14);
/// The time within which a client is granted a free lock when all nodes are up.
const BOUND: Duration = Duration::from_secs(3);

/// Runs one seed and returns the violations that it found.
pub(crate) fn run(seed: u64, flaw: Option<Flaw>) -> Vec<String> {
    seed_pauses(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let simulation = async {
        let mut cluster = Cluster::new(seed, flaw).await;
        match cluster.rng.u32(..4) {
            0 => cluster.restarts_far_apart().await,
            1 => cluster.loss_after_a_bare_majority().await,
            _ => cluster.holder_that_is_cut_off().await,
        }
    };
    tokio::task::LocalSet::new()
        .block_on(&runtime, simulation)
        .err()
        .into_iter()
        .collect()
}

struct Cluster {
    rng: fastrand::Rng,
    network: Arc<Network>,
    nodes: Vec<Arc<SimNode>>,
    durable: bool,
    flaw: Option<Flaw>,
}

struct Client {
    links: Vec<Arc<SimBackend>>,
    locks: LockClient,
}

impl Cluster {
    async fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (network, durable) = (Network::new(rng.u64(..)), rng.u32(..3) == 0);
        let count = if rng.bool() { 5 } else { 3 };
        let nodes: Vec<_> = (0..count).map(|_| SimNode::new(clock(&mut rng))).collect();
        for node in &nodes {
            node.set_durable(durable);
            if let Some(Flaw::Nodes(bug)) = flaw {
                node.set_bug(Some(bug));
            }
        }
        let mut cluster = Self {
            rng,
            network,
            nodes,
            durable,
            flaw,
        };
        let links = voting(cluster.links());
        let provision = Provision::new(ttl())
            .with_durable(durable)
            .with_never_used(true);
        cluster
            .open(links)
            .await
            .provision(&provision)
            .await
            .unwrap();
        cluster
    }

    fn links(&self) -> Vec<Arc<SimBackend>> {
        self.nodes
            .iter()
            .map(|node| self.network.connect(node))
            .collect()
    }

    async fn open(&mut self, links: Vec<QuorumMember>) -> Arc<QuorumBackend> {
        let floor = self.rng.u64(..1_000);
        let config = QuorumConfig::new()
            .with_largest_ttl(ttl())
            .with_token_floor(move || FencingToken::new(floor));
        QuorumBackend::open(links, config).await.unwrap()
    }

    async fn client(&mut self) -> Client {
        let (links, flaw) = (self.links(), self.flaw);
        for link in &links {
            link.link().set_proxied(self.rng.bool());
        }
        let known = match flaw {
            Some(Flaw::NodesCheckedOnlyByAcquisitions | Flaw::NodesNotRetriedBeforeRenewal) => {
                voting(FlawedLink::all(links.clone(), flaw))
            }
            _ => voting(links.clone()),
        };
        let quorum = self.open(known).await;
        let clock = clock(&mut self.rng) as Arc<dyn Clock>;
        Client {
            links,
            locks: LockClient::builder(quorum)
                .with_ttl(ttl())
                .with_clock(clock)
                .build(),
        }
    }

    fn between(&mut self, millis: Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(millis))
    }

    async fn sleep(&mut self, millis: Range<u64>) {
        tokio::time::sleep(self.between(millis)).await;
    }

    /// Restarts the node with its data, with older data or with none. Its clock may be set ahead.
    async fn restart(&mut self, node: &Arc<SimNode>) {
        let older = if self.rng.bool() && !self.durable {
            DataLoss::Total
        } else {
            DataLoss::SinceSave
        };
        node.crash(older);
        self.sleep(1..1_000).await;
        let (ahead, early) = (self.between(0..3_600_000), self.rng.bool());
        if early {
            node.clock().suspend(ahead);
        }
        node.start();
        if !early && self.rng.bool() {
            self.sleep(0..300).await;
            node.clock().suspend(ahead);
        }
    }

    /// Client X holds the lock with a bare majority and is cut off, and one of its nodes restarts
    /// without the lock. Until X considers it lost, no other client is granted the lock. Later
    /// tokens are larger.
    async fn holder_that_is_cut_off(&mut self) -> Result<(), String> {
        self.rng.shuffle(&mut self.nodes);
        self.nodes.iter().for_each(|node| node.save());
        let majority = self.nodes.len() / 2 + 1;
        let (x, y, z) = (
            self.client().await,
            self.client().await,
            self.client().await,
        );
        // Makes every node vote on every connection.
        for client in [&y, &z] {
            drop(
                client
                    .locks
                    .mutex(KEY)
                    .lock()
                    .await
                    .map_err(|error| error.to_string())?
                    .release()
                    .await,
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.nodes.iter().for_each(|node| node.save());
        x.links[majority..]
            .iter()
            .for_each(|link| link.link().cut(true));
        let held = x
            .locks
            .mutex(KEY)
            .lock_timeout(BOUND)
            .await
            .map_err(|error| format!("X: {error}"))?;
        let held = held.ok_or("X: another holds")?;
        self.sleep(0..1_000).await;
        x.links.iter().for_each(|link| link.link().cut(true));
        let victim = Arc::clone(&self.nodes[self.rng.usize(..majority)]);
        self.restart(&victim).await;
        let end = tokio::time::Instant::now() + TTL * 2 + BOUND;
        for asking in [&y, &z].into_iter().cycle() {
            if let Ok(Some(guard)) = asking.locks.mutex(KEY).try_lock().await {
                if held.is_held() {
                    return Err(String::from("mutual exclusion: X and another hold"));
                }
                if guard.fencing_token() <= held.fencing_token() {
                    return Err(format!(
                        "token order: {:?} after {:?}",
                        guard.fencing_token(),
                        held.fencing_token()
                    ));
                }
                return Ok(());
            }
            if tokio::time::Instant::now() > end {
                return Err(String::from(
                    "no leftovers: the lock is not granted although X has lost it long ago",
                ));
            }
            self.sleep(20..300).await;
        }
        unreachable!("the iterator is endless")
    }

    /// All nodes restart twice, one after another and far apart. Clients are connected and request
    /// nothing meanwhile; one of them may hold the lock.
    async fn restarts_far_apart(&mut self) -> Result<(), String> {
        let (one, other) = (self.client().await, self.client().await);
        let held = if self.rng.bool() {
            Some(
                one.locks
                    .mutex(KEY)
                    .lock()
                    .await
                    .map_err(|error| format!("one: {error}"))?,
            )
        } else {
            None
        };
        for _ in 0..2 {
            self.rng.shuffle(&mut self.nodes);
            for node in self.nodes.clone() {
                self.restart(&node).await;
                tokio::time::sleep(TTL + CHECKS).await;
                if held.as_ref().is_some_and(|held| !held.is_held()) {
                    return Err(String::from(
                        "held by a majority: the lock was lost although a majority was always up",
                    ));
                }
            }
        }
        drop(match held {
            Some(held) => held.release().await.map(drop),
            None => Ok(()),
        });
        let last = other.locks.mutex(KEY).lock_timeout(BOUND).await;
        match last {
            Ok(Some(_)) => Ok(()),
            refused => Err(format!(
                "no leftovers: no lock is granted any more: {refused:?}"
            )),
        }
    }

    /// Rivals hold a minority of the nodes when the lock is granted, and release them soon after.
    /// Then one of the nodes that granted the lock loses its data.
    async fn loss_after_a_bare_majority(&mut self) -> Result<(), String> {
        self.rng.shuffle(&mut self.nodes);
        let majority = self.nodes.len() / 2 + 1;
        let x = self.client().await;
        let mut rivals: Vec<Arc<dyn Lease>> = Vec::new();
        for node in &self.nodes[majority..] {
            let request = Request::new(LockKey::new(KEY).unwrap()).with_ttl(ttl());
            match self.network.connect(node).try_acquire(request).await {
                Ok(Attempt::Granted(lease)) => rivals.push(lease),
                _ => return Err(String::from("a node is not free")),
            }
        }
        let held = x
            .locks
            .mutex(KEY)
            .lock()
            .await
            .map_err(|error| format!("X: {error}"))?;
        self.sleep(0..300).await;
        for rival in rivals {
            rival.release().await.map_err(|error| error.to_string())?;
        }
        // This is well before the first renewal.
        self.sleep(700..1_000).await;
        let victim = Arc::clone(&self.nodes[self.rng.usize(..majority)]);
        victim.crash(DataLoss::Total);
        self.sleep(1..2_000).await;
        victim.start();
        tokio::time::sleep(TTL * 2).await;
        if held.is_held() {
            Ok(())
        } else {
            Err(String::from(
                "held by a majority: the lock was lost with one node of a bare majority",
            ))
        }
    }
}

fn ttl() -> Ttl {
    Ttl::new(TTL).unwrap()
}

/// Returns a wrong clock. The rates of any two differ by less than the 1 % that the assumed clock
/// drift allows.
fn clock(rng: &mut fastrand::Rng) -> Arc<SimClock> {
    SimClock::wrong(
        Duration::from_millis(rng.u64(..3_600_000)),
        rng.i32(-4_000..4_000),
    )
}
