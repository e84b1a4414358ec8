//! One fault at a time, at the moment where it hurts: what is drawn from the seed is which, and
//! how.
//!
//! Chaos seldom comes to these situations: a holder at a bare majority and cut off while one of its
//! nodes forgets; nodes that restart far apart while nobody asks for a lock; a node that is lost
//! right after a grant by a bare majority.

use std::{ops::Range, sync::Arc, time::Duration};

use leasehold_core::{
    Attempt, Clock, FencingToken, Lease, LockBackend, LockClient, LockKey, Request, Ttl,
    quorum::{Provision, QuorumBackend, QuorumConfig, QuorumMember, seed_pauses},
};
use leasehold_testkit::sim::{DataLoss, Network, SimBackend, SimClock, SimNode};

use crate::{
    flawed_link::FlawedLink,
    world::{Flaw, voting},
};

const KEY: &str = "k";
/// Of the locks, and so the grace. Far longer than what else is waited for.
const TTL: Duration = Duration::from_secs(10);
/// Within which every client finds a node that restarted, the grace aside: a look, and the next
/// one.
const LOOKS: Duration = Duration::from_secs(14);
/// In peace, whoever wants the lock has it.
const BOUND: Duration = Duration::from_secs(3);

/// What goes wrong with one seed; nothing should.
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
            Some(Flaw::OnlyAcquisitionsLookAfter | Flaw::NothingAskedBeforeRenewal) => {
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

    /// The node restarts, with what it had, with older data or with none; and its clock may be set
    /// ahead.
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

    /// X holds at a bare majority, and is cut off. One of its nodes comes back without the lock.
    /// Until X knows that it is lost, others get nothing, and their tokens are larger.
    async fn holder_that_is_cut_off(&mut self) -> Result<(), String> {
        self.rng.shuffle(&mut self.nodes);
        self.nodes.iter().for_each(|node| node.save());
        let majority = self.nodes.len() / 2 + 1;
        let (x, y, z) = (
            self.client().await,
            self.client().await,
            self.client().await,
        );
        // Every node has voted on every connection.
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
                    return Err(String::from("C1: X and another hold"));
                }
                if guard.fencing_token() <= held.fencing_token() {
                    return Err(format!(
                        "C2: {:?} after {:?}",
                        guard.fencing_token(),
                        held.fencing_token()
                    ));
                }
                return Ok(());
            }
            if tokio::time::Instant::now() > end {
                return Err(String::from(
                    "C4: nobody gets it although X has lost it long ago",
                ));
            }
            self.sleep(20..300).await;
        }
        unreachable!("they ask in turns")
    }

    /// All nodes restart, one after the other and far apart, twice over, while clients are
    /// connected and ask for nothing: one may hold.
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
                tokio::time::sleep(TTL + LOOKS).await;
                if held.as_ref().is_some_and(|held| !held.is_held()) {
                    return Err(String::from("C5: lost, though a majority was always up"));
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
            refused => Err(format!("C4: nothing is granted any more: {refused:?}")),
        }
    }

    /// Others hold a minority when the lock is granted, for a moment. Soon after, one of the other
    /// nodes forgets it.
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
        // Well before the first renewal.
        self.sleep(700..1_000).await;
        let victim = Arc::clone(&self.nodes[self.rng.usize(..majority)]);
        victim.crash(DataLoss::Total);
        self.sleep(1..2_000).await;
        victim.start();
        tokio::time::sleep(TTL * 2).await;
        if held.is_held() {
            Ok(())
        } else {
            Err(String::from("C5: lost with one node of a bare majority"))
        }
    }
}

fn ttl() -> Ttl {
    Ttl::new(TTL).unwrap()
}

/// Any two part by less than the 1 % that the drift allows for.
fn clock(rng: &mut fastrand::Rng) -> Arc<SimClock> {
    SimClock::wrong(
        Duration::from_millis(rng.u64(..3_600_000)),
        rng.i32(-4_000..4_000),
    )
}
