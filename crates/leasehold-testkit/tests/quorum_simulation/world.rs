//! The simulation of one seed: nodes, clients, faults and checks.

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use leasehold_core::{
    FencingToken, Ttl,
    backend::LockBackend,
    quorum::{Provision, QuorumBackend, QuorumConfig, QuorumMember, QuorumNode, seed_pauses},
};
use leasehold_testkit::{
    history::{self, Event, Op, Order, Phase},
    sim::{Network, NetworkConditions, NodeBug, SimClock, SimNode},
};

use crate::{
    client::Client,
    faults::{Faults, LATE},
    flawed_link::FlawedLink,
    register::Register,
};

pub(crate) const KEY: &str = "k";
pub(crate) const TTL: Duration = Duration::from_millis(600);
/// The time for which faults are injected.
const CHAOS: Duration = Duration::from_secs(12);
const CLIENTS: usize = 3;
/// The time after the faults within which each client is granted the lock.
///
/// Locks that are left over expire within a TTL. A client that considers all nodes unavailable
/// retries them within half a second. It notices a restarted node at its next check, within 10 s,
/// and then checks it each second. The node votes again when it has been observed for the largest
/// TTL.
const BOUND: Duration = Duration::from_secs(13);

/// The time within which each client is granted the lock after the faults when all request it at
/// once. It is far below the TTL, after which a lock that was not released is free in any case.
const CONTENDED_BOUND: Duration = Duration::from_millis(300);
/// The number of times that each client requests the lock then.
const ROUNDS: usize = 5;

/// A flaw of the nodes or clients, which the simulation must find.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flaw {
    Nodes(NodeBug),
    /// A client counts only the nodes that it reached when it started.
    MajorityOfReachedNodes,
    /// A client does not release the grants of an attempt without a majority.
    PartialGrantsNotReleased,
    /// A client checks the nodes only while it requests a lock.
    NodesCheckedOnlyByAcquisitions,
    /// A client retries the nodes that are missing after a grant only with the renewal.
    NodesNotRetriedBeforeRenewal,
}

pub(crate) struct Outcome {
    pub(crate) problems: Vec<String>,
    pub(crate) history: Vec<String>,
    pub(crate) grants: usize,
}

/// The state that all parts of one simulation share.
pub(crate) struct Shared {
    rng: RefCell<fastrand::Rng>,
    over: Cell<bool>,
    floors: bool,
    attempts: Cell<u64>,
    clock: Arc<SimClock>,
    faults: RefCell<Vec<(u64, String)>>,
    pub(crate) events: RefCell<Vec<Event>>,
    pub(crate) register: RefCell<Register>,
}

impl Shared {
    pub(crate) fn is_over(&self) -> bool {
        self.over.get()
    }

    pub(crate) fn next_attempt(&self) -> u64 {
        self.attempts.replace(self.attempts.get() + 1)
    }

    /// Returns a random duration in a range of milliseconds.
    pub(crate) fn between(&self, millis: Range<u64>) -> Duration {
        Duration::from_micros(
            self.rng
                .borrow_mut()
                .u64(millis.start * 1000..millis.end * 1000),
        )
    }

    pub(crate) fn below(&self, end: u32) -> u32 {
        self.rng.borrow_mut().u32(..end)
    }

    pub(crate) fn one_in(&self, count: u32) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn pick<T: Clone>(&self, from: &[T]) -> T {
        from[self.rng.borrow_mut().usize(..from.len())].clone()
    }

    pub(crate) fn log(&self, line: impl FnOnce() -> String) {
        self.faults
            .borrow_mut()
            .push((self.clock.true_time(), line()));
    }
}

/// Runs one seed from beginning to end, in paused time.
pub(crate) fn run(seed: u64, flaw: Option<Flaw>) -> Outcome {
    seed_pauses(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, simulate(seed, flaw))
}

async fn simulate(seed: u64, flaw: Option<Flaw>) -> Outcome {
    let mut rng = fastrand::Rng::with_seed(seed);
    let network = Network::new(rng.u64(..));
    let durable = rng.u32(..4) == 0;
    let count = if rng.u32(..3) == 0 { 5 } else { 3 };
    // The rates of any two clocks differ by less than the 1 % that the assumed drift allows.
    let mut clock = || {
        SimClock::wrong(
            Duration::from_millis(rng.u64(..3_600_000)),
            rng.i32(-4_000..4_000),
        )
    };
    let nodes: Vec<_> = (0..count).map(|_| SimNode::new(clock())).collect();
    let clocks: Vec<_> = (0..CLIENTS).map(|_| clock()).collect();
    let floors = rng.bool();
    let shared = Rc::new(Shared {
        floors,
        rng: RefCell::new(rng),
        over: Cell::default(),
        attempts: Cell::default(),
        clock: SimClock::new(),
        faults: RefCell::default(),
        events: RefCell::default(),
        register: RefCell::default(),
    });
    for node in &nodes {
        node.set_durable(durable);
        if let Some(Flaw::Nodes(bug)) = flaw {
            node.set_bug(Some(bug));
        }
    }
    let mut clients = Vec::new();
    for (index, clock) in clocks.into_iter().enumerate() {
        let links: Vec<_> = nodes.iter().map(|node| network.connect(node)).collect();
        let proxies = shared.one_in(3);
        links
            .iter()
            .for_each(|link| link.link().set_proxied(proxies && shared.one_in(2)));
        let known = match flaw {
            Some(Flaw::MajorityOfReachedNodes) => vec![shared.pick(&links)],
            _ => links.clone(),
        };
        let known = match flaw {
            Some(Flaw::PartialGrantsNotReleased) => voting(FlawedLink::all(known, flaw)),
            _ => voting(known),
        };
        let quorum = open(
            known,
            &shared,
            durable,
            index == 0 || matches!(flaw, Some(Flaw::MajorityOfReachedNodes)),
        )
        .await;
        clients.push(Rc::new(Client::new(
            format!("client {index}"),
            clock,
            links,
            quorum,
            &shared,
        )));
    }

    let usual_conditions = if shared.one_in(3) {
        LATE
    } else {
        NetworkConditions::FAIR
    };
    let faults = Rc::new(Faults {
        network,
        nodes,
        clients: clients.clone(),
        shared: Rc::clone(&shared),
        durable,
        usual_conditions,
    });
    let workers: Vec<_> = clients
        .iter()
        .map(|client| {
            let client = Rc::clone(client);
            tokio::task::spawn_local(async move { client.work().await })
        })
        .collect();
    let injector = Rc::clone(&faults);
    let injecting = tokio::task::spawn_local(async move { injector.inject().await });
    tokio::time::sleep(CHAOS).await;
    shared.over.set(true);
    injecting.await.unwrap();
    for worker in workers {
        worker.await.unwrap();
    }
    faults.repair_everything().await;
    let problems = after_faults(&faults).await;
    check(&shared, problems)
}

pub(crate) fn voting<N: QuorumNode>(links: Vec<Arc<N>>) -> Vec<QuorumMember> {
    links
        .into_iter()
        .map(|link| QuorumMember::Voting(link))
        .collect()
}

async fn open(
    nodes: Vec<QuorumMember>,
    shared: &Rc<Shared>,
    durable: bool,
    provision: bool,
) -> Arc<dyn LockBackend> {
    let largest = Ttl::new(TTL).unwrap();
    // The floor differs between clients, or there is none: tokens must not depend on it.
    let (skew, start, floors) = (
        u64::from(shared.below(2_000)),
        Arc::clone(&shared.clock),
        shared.floors,
    );
    let floor = move || {
        FencingToken::new(if floors {
            start.true_time() / 1_000_000 + skew
        } else {
            0
        })
    };
    let config = QuorumConfig::new()
        .with_largest_ttl(largest)
        .with_token_floor(floor);
    let quorum = QuorumBackend::open(nodes, config).await.unwrap();
    if provision {
        let provision = Provision::new(largest)
            .with_durable(durable)
            .with_never_used(true);
        quorum.provision(&provision).await.unwrap();
    }
    quorum
}

/// Checks that each client gets the lock in time, also when all request it at once, and that no
/// lock is left over then.
async fn after_faults(faults: &Faults) -> Vec<String> {
    let mut problems = Vec::new();
    for client in &faults.clients {
        problems.extend(client.acquires_within(TTL + BOUND).await.err());
    }
    // Waits until no client considers a node unavailable.
    tokio::time::sleep(TTL + BOUND).await;
    problems.extend(all_contend(faults).await);
    for client in &faults.clients {
        problems.extend(
            client
                .locks
                .close()
                .await
                .err()
                .map(|error| format!("no leftovers: {} cannot close: {error}", client.name)),
        );
    }
    tokio::time::sleep(TTL + BOUND).await;
    for (index, node) in faults.nodes.iter().enumerate() {
        if node.holds() {
            problems.push(format!(
                "no leftovers: node {index} holds a lock that no client has"
            ));
        }
    }
    problems
}

/// Lets all clients request the lock at once, several times, so that votes are split. None of them
/// may have to wait for an expiry.
async fn all_contend(faults: &Faults) -> Vec<String> {
    let turns = faults.clients.iter().map(async |client| {
        for _ in 0..ROUNDS {
            client.acquires_within(CONTENDED_BOUND).await?;
        }
        Ok(())
    });
    join_all(turns)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect()
}

fn check(shared: &Shared, mut problems: Vec<String>) -> Outcome {
    let events = shared.events.borrow();
    let guarantees = [
        ("mutual exclusion", history::overlaps(&events)),
        ("token order", history::tokens(&events, Order::AsReported)),
        (
            "fenced writes",
            history::register(&shared.register.borrow().history),
        ),
    ];
    for (name, broken) in guarantees {
        problems.extend(
            broken
                .iter()
                .map(|violation| format!("{name}: {violation}")),
        );
    }
    let mut lines = shared.faults.borrow().clone();
    lines.extend(events.iter().map(|event| {
        let Event {
            t_ns,
            proc,
            attempt,
            op,
            phase,
            token,
            deadline,
            ..
        } = event;
        let until = deadline.map_or(0, |deadline| deadline / 1_000);
        (
            *t_ns,
            format!(
                "{proc}: attempt {attempt}: {op:?} {phase:?}, token {}, until {until}",
                token.unwrap_or(0)
            ),
        )
    }));
    lines.sort_by_key(|(at, _)| *at);
    let history = lines
        .into_iter()
        .map(|(at, line)| format!("{:>12} {line}", at / 1_000))
        .collect();
    let grants = events
        .iter()
        .filter(|event| (event.op, event.phase) == (Op::Acquire, Phase::Ok))
        .count();
    Outcome {
        problems,
        history,
        grants,
    }
}
