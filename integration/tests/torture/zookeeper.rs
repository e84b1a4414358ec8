use std::{
    thread,
    time::{Duration, Instant},
};

use leasehold_core::{LockClient, Revocation};
use leasehold_integration::{
    checker::{self, Order},
    chosen::seed,
    leftovers,
    server::{ZookeeperEnsemble, ZookeeperServer},
    stage::Stage,
    steps::{SOON, millis, until},
};
use leasehold_zookeeper::{
    ZookeeperBackend,
    zookeeper_client::{Acls, Client, CreateMode},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::chaos::{Crew, PROCESSES, heals, none, only_faults};

/// Short, so that many pauses last longer, and long enough for waiters to have their own session.
const TTL: u64 = 5500;

/// The limit for recovery after all faults. A failed election is repeated after about 10 s.
const COMMITS: Duration = Duration::from_secs(120);

/// Injects random faults into the servers and the workers for `span`, and until there were enough
/// grants.
fn strike(rng: &mut StdRng, ensemble: &mut ZookeeperEnsemble, crew: &mut Crew<'_>, span: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < span || !crew.had_enough(begun) {
        // An election takes half a second, so the servers recover between faults.
        thread::sleep(millis(rng.random_range(300..1500)));
        let (at, member) = (rng.random_range(0..PROCESSES), rng.random_range(0..3));
        match rng.random_range(0..9) {
            6 => administer(
                &url_of(ensemble, member),
                millis(rng.random_range(100..1000)),
            ),
            7 => revoke(&url_of(ensemble, member)),
            8 => {
                // A paused leader executes its queued requests when it continues, and then loses a
                // follower.
                let Ok(leader) = ensemble.leader() else {
                    continue;
                };
                let follower = (leader + rng.random_range(1..3)) % 3;
                ensemble.member(leader).pause().unwrap();
                thread::sleep(millis(rng.random_range(0..TTL)));
                ensemble.mute(follower, leader).unwrap();
                ensemble.member(leader).resume().unwrap();
                thread::sleep(millis(rng.random_range(TTL / 2..2 * TTL)));
                ensemble.rejoin(follower).unwrap();
            }
            0 => {
                ensemble.member(member).pause().unwrap();
                thread::sleep(millis(rng.random_range(10..2 * TTL)));
                ensemble.member(member).resume().unwrap();
            }
            1 => {
                ensemble.member(member).kill();
                thread::sleep(millis(rng.random_range(0..500)));
                ensemble.member(member).restart().unwrap();
            }
            2 => {
                ensemble.isolate(member).unwrap();
                thread::sleep(millis(rng.random_range(TTL / 2..2 * TTL)));
                ensemble.rejoin(member).unwrap();
            }
            3 | 4 => {
                // All but one: the holder is probably paused, and the remaining one acquires its
                // lock.
                let stopped: Vec<_> = (0..PROCESSES).filter(|worker| *worker != at).collect();
                stopped
                    .iter()
                    .for_each(|worker| crew.workers[*worker].pause().unwrap());
                thread::sleep(millis(rng.random_range(TTL / 10..2 * TTL)));
                stopped
                    .iter()
                    .for_each(|worker| crew.workers[*worker].resume().unwrap());
            }
            _ => {
                // A process that starts while there is no leader reports an error.
                ensemble.wait_until_serving().unwrap();
                crew.replace(at);
            }
        }
    }
}

fn url_of(ensemble: &mut ZookeeperEnsemble, member: usize) -> String {
    ensemble.member(member).url()
}

/// Runs an administrator's operation, which is abandoned if the servers do not answer.
fn as_administrator(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { drop(tokio::time::timeout(millis(3000), work).await) });
}

/// Waits until the servers commit. For some seconds after a fault they may serve and then elect
/// another leader.
fn wait_until_committing(ensemble: &ZookeeperEnsemble) {
    let hosts = ensemble.url().trim_start_matches("zookeeper://").to_owned();
    let node = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    until("the servers commit", COMMITS, || {
        let mut committed = false;
        as_administrator(async {
            let Ok(client) = Client::connect(&hosts).await else {
                return;
            };
            committed = client.create("/committed-", b"", &node).await.is_ok();
        });
        committed
    });
}

/// Writes to the first node in the queue, repeatedly.
fn administer(url: &str, span: Duration) {
    let addr = url.trim_start_matches("zookeeper://");
    as_administrator(async {
        let Ok(client) = Client::connect(addr).await else {
            return;
        };
        let end = Instant::now() + span;
        while Instant::now() < end {
            let mut children = client.list_children("/k").await.unwrap_or_default();
            children.sort_unstable_by_key(|name| name.rsplit('-').next().map(str::to_owned));
            for first in children.iter().take(1) {
                // The node may already be gone.
                drop(
                    client
                        .set_data(&format!("/k/{first}"), b"of an administrator", None)
                        .await,
                );
            }
        }
    });
}

/// Revokes the current holder's lock gracefully.
fn revoke(url: &str) {
    as_administrator(async {
        let Ok(backend) = ZookeeperBackend::connect(url).await else {
            return;
        };
        let client = LockClient::new(backend);
        if let Ok(inspection) = client.inspect("k").await {
            for holder in &inspection.holders {
                drop(client.revoke(holder, Revocation::Graceful).await);
            }
        }
    });
}

#[test]
fn zookeepers_keep_promises_with_64_tasks_of_4_processes() {
    let mut rng = StdRng::seed_from_u64(seed());
    let mut ensemble = ZookeeperServer::builder()
        .sync_limit(8)
        .links()
        .start_members(3)
        .unwrap();
    let stage = Stage::on(
        &format!("{}?tick=500ms&connect-timeout=5s", ensemble.url()),
        TTL,
    );
    let mut crew = Crew::new(&stage);
    strike(&mut rng, &mut ensemble, &mut crew, Duration::from_secs(25));
    ensemble.recover().unwrap();
    wait_until_committing(&ensemble);
    let (grants, errors) = crew.calm();
    println!("{grants} grants by surviving workers, errors: {errors:?}");
    only_faults(&errors);

    let events = crew.events();
    none(&checker::overlaps(&events), "mutual exclusion");
    none(&checker::tokens(&events, Order::AsReported), "token order");
    none(
        &checker::register(&stage.register().history().unwrap()),
        "fenced writes",
    );
    wait_until_committing(&ensemble);
    heals(&stage, &crew);
    drop(crew);
    let queue = || {
        let leader = ensemble.leader()?;
        let mut nodes = ensemble.member(leader).ephemerals()?;
        nodes.retain(|node| node.starts_with("/k/"));
        Ok(nodes)
    };
    leftovers::nothing_left(2 * SOON, queue).unwrap();
}
