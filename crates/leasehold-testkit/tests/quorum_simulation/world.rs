//! One seed: the nodes, the clients, the faults and the judgement.

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use leasehold_core::{
    FencingToken, LockBackend, Ttl,
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
/// For how long things go wrong.
const CHAOS: Duration = Duration::from_secs(12);
const CLIENTS: usize = 3;
/// After that much peace, whoever wants the lock has had it. What is left over expires within a
/// TTL. A client that takes all nodes for dead asks them again within half a second. A node that
/// started last is seen at the next look, within 10 s, and then each second; it votes again once it
/// was watched for the largest TTL.
const BOUND: Duration = Duration::from_secs(13);

/// In peace, when all want the lock at once and nobody keeps it, each has it within this: far below
/// the TTL, at which what somebody proxied is free in any case.
const RUSH: Duration = Duration::from_millis(300);
/// How often each wants it then.
const TURNS: usize = 5;

/// Something that is wrong on purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flaw {
    Nodes(NodeBug),
    /// Each client knows only the nodes that it reached when it started.
    MajorityOfAnswered,
    /// An attempt that did not win keeps what it got.
    PartialWinsKept,
    /// Only a client that asks for a lock looks after the nodes.
    OnlyAcquisitionsLookAfter,
    /// The nodes that are missing after a grant are asked when it is renewed.
    NothingAskedBeforeRenewal,
}

pub(crate) struct Outcome {
    pub(crate) problems: Vec<String>,
    pub(crate) history: Vec<String>,
    pub(crate) grants: usize,
}

/// What all parts of one simulation share.
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

    /// A duration of so many milliseconds.
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

/// Runs one seed from beginning to end, in no time.
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
    // Any two clocks part by less than the 1 % that the drift allows for.
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
            Some(Flaw::MajorityOfAnswered) => vec![shared.pick(&links)],
            _ => links.clone(),
        };
        let known = match flaw {
            Some(Flaw::PartialWinsKept) => voting(FlawedLink::all(known, flaw)),
            _ => voting(known),
        };
        let quorum = open(
            known,
            &shared,
            durable,
            index == 0 || matches!(flaw, Some(Flaw::MajorityOfAnswered)),
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

    let climate = if shared.one_in(3) {
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
        climate,
    });
    let workers: Vec<_> = clients
        .iter()
        .map(|client| {
            let client = Rc::clone(client);
            tokio::task::spawn_local(async move { client.work().await })
        })
        .collect();
    let striking = Rc::clone(&faults);
    let strikes = tokio::task::spawn_local(async move { striking.strike().await });
    tokio::time::sleep(CHAOS).await;
    shared.over.set(true);
    strikes.await.unwrap();
    for worker in workers {
        worker.await.unwrap();
    }
    faults.mend_everything().await;
    let problems = in_peace(&faults).await;
    judge(&shared, problems)
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
    // A floor that is different at each client, or none: tokens must not depend on it.
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

/// C4: everybody gets the lock in time, also where all want it at once, and then nothing is left
/// over.
async fn in_peace(faults: &Faults) -> Vec<String> {
    let mut problems = Vec::new();
    for client in &faults.clients {
        problems.extend(client.acquires_within(TTL + BOUND).await.err());
    }
    // Nobody remembers what failed.
    tokio::time::sleep(TTL + BOUND).await;
    problems.extend(rush(faults).await);
    for client in &faults.clients {
        problems.extend(
            client
                .locks
                .close()
                .await
                .err()
                .map(|error| format!("C4: {} cannot close: {error}", client.name)),
        );
    }
    tokio::time::sleep(TTL + BOUND).await;
    for (index, node) in faults.nodes.iter().enumerate() {
        if node.holds() {
            problems.push(format!("C4: node {index} holds a lock that nobody has"));
        }
    }
    problems
}

/// All want the lock at once, several times, and split votes. None of them waits for anything to
/// expire.
async fn rush(faults: &Faults) -> Vec<String> {
    let turns = faults.clients.iter().map(async |client| {
        for _ in 0..TURNS {
            client.acquires_within(RUSH).await?;
        }
        Ok(())
    });
    join_all(turns)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect()
}

fn judge(shared: &Shared, mut problems: Vec<String>) -> Outcome {
    let events = shared.events.borrow();
    let promises = [
        ("C1", history::overlaps(&events)),
        ("C2", history::tokens(&events, Order::AsReported)),
        ("C3", history::register(&shared.register.borrow().history)),
    ];
    for (name, broken) in promises {
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
