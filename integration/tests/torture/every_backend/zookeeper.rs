use std::thread;

use leasehold_integration::{
    server::{ZookeeperEnsemble, ZookeeperServer},
    steps::millis,
};
use rand::{RngExt, rngs::StdRng};

use super::{Target, elections::elects, survives};

/// Long enough for an election on a busy machine, and for waiters to have their own session.
const TTL: u64 = 5500;
const MEMBERS: usize = 3;

/// Three servers, with proxies between them.
struct Zookeeper {
    ensemble: ZookeeperEnsemble,
    administrator: tokio::runtime::Runtime,
}

impl Zookeeper {
    /// Writes the data of every node of the lock, which notifies its watchers.
    fn write_nodes(&self) {
        let url = self.ensemble.url();
        let hosts = url.trim_start_matches("zookeeper://").to_owned();
        let written = async {
            let client = zookeeper_client::Client::connector()
                .connect(&hosts)
                .await?;
            let mut paths = vec!["/".to_owned()];
            while let Some(path) = paths.pop() {
                for child in client.list_children(&path).await? {
                    let child = if path == "/" {
                        format!("/{child}")
                    } else {
                        format!("{path}/{child}")
                    };
                    if child.starts_with("/zookeeper") {
                        continue;
                    }
                    let (data, _) = client.get_data(&child).await?;
                    client.set_data(&child, &data, None).await?;
                    paths.push(child);
                }
            }
            Ok::<_, zookeeper_client::Error>(())
        };
        // There is nothing to write if the server is faulty or the node is gone.
        drop(
            self.administrator
                .block_on(async { tokio::time::timeout(millis(TTL), written).await }),
        );
    }
}

impl Target for Zookeeper {
    fn url(&self, _: usize) -> String {
        format!("{}?tick=500ms&connect-timeout=5s", self.ensemble.url())
    }

    fn ttl_ms(&self) -> u64 {
        TTL
    }

    fn strike(&mut self, rng: &mut StdRng) {
        thread::sleep(millis(rng.random_range(100..1000)));
        let at = rng.random_range(0..MEMBERS);
        match rng.random_range(0..6) {
            0 => {
                self.ensemble.member(at).pause().unwrap();
                thread::sleep(millis(rng.random_range(10..2 * TTL)));
                self.ensemble.member(at).resume().unwrap();
            }
            1 => {
                self.ensemble.member(at).kill();
                thread::sleep(millis(rng.random_range(0..500)));
                self.ensemble.member(at).restart().unwrap();
            }
            2 => {
                // A paused leader, whose follower is cut off from it when it continues.
                let Ok(leader) = self.ensemble.leader() else {
                    return;
                };
                let follower = (leader + 1) % MEMBERS;
                self.ensemble.member(leader).pause().unwrap();
                thread::sleep(millis(rng.random_range(TTL / 10..TTL)));
                self.ensemble.isolate(follower).unwrap();
                self.ensemble.member(leader).resume().unwrap();
                thread::sleep(millis(rng.random_range(TTL / 2..2 * TTL)));
                self.ensemble.rejoin(follower).unwrap();
            }
            _ => self.write_nodes(),
        }
    }

    fn settle(&mut self) {
        self.ensemble.recover().unwrap();
    }
}

fn start() -> Zookeeper {
    let ensemble = ZookeeperServer::builder()
        .sync_limit(8)
        .links()
        .start_members(MEMBERS)
        .unwrap();
    Zookeeper {
        ensemble,
        administrator: tokio::runtime::Runtime::new().unwrap(),
    }
}

#[test]
fn zookeeper_keeps_its_promises_in_chaos() {
    survives(start());
}

#[test]
fn zookeeper_elects_one_leader_at_a_time_in_chaos() {
    elects(start());
}
