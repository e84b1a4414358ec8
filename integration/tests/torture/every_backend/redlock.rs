use std::thread;

use leasehold_core::Ttl;
use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::{Persistence, RedlockServers},
    steps::millis,
};
use rand::{RngExt, rngs::StdRng};

use super::{Target, survives};

const TTL: u64 = 500;
const NODES: usize = 3;
/// A server restarted without its data votes again after the largest TTL. No other server may lose
/// its data before.
const REJOINED: u64 = 3 * TTL + 3000;

/// Three servers without persistence. Every other worker reaches each through a proxy.
struct Redlock {
    servers: RedlockServers,
    ways: Vec<Proxy>,
}

impl Target for Redlock {
    fn url(&self, worker: usize) -> String {
        let hosts: Vec<_> = if worker.is_multiple_of(2) {
            self.servers
                .servers
                .iter()
                .map(|server| server.addr().to_string())
                .collect()
        } else {
            self.ways.iter().map(|way| way.addr().to_string()).collect()
        };
        format!(
            "redlock://{}/?timeout=150ms&node-timeout=100ms",
            hosts.join(",")
        )
    }

    fn ttl_ms(&self) -> u64 {
        TTL
    }

    fn strike(&mut self, rng: &mut StdRng) {
        thread::sleep(millis(rng.random_range(50..400)));
        let at = rng.random_range(0..NODES);
        let (server, way) = (&mut self.servers.servers[at], &self.ways[at]);
        match rng.random_range(0..6) {
            0 | 1 => {
                server.pause().unwrap();
                thread::sleep(millis(rng.random_range(10..2 * TTL)));
                server.resume().unwrap();
            }
            2 => {
                // The server restarts without its data, and the next fault waits until it votes
                // again.
                server.kill();
                thread::sleep(millis(rng.random_range(0..500)));
                server.restart().unwrap();
                thread::sleep(millis(REJOINED));
            }
            3 => {
                let direction = if rng.random_bool(0.5) {
                    Direction::ClientToServer
                } else {
                    Direction::ServerToClient
                };
                server.pause().unwrap();
                thread::sleep(millis(rng.random_range(10..TTL)));
                way.blackhole(direction);
                server.resume().unwrap();
                thread::sleep(millis(rng.random_range(10..2 * TTL)));
                way.heal();
            }
            4 => {
                way.hold(Direction::ClientToServer);
                thread::sleep(millis(rng.random_range(10..2 * TTL)));
                way.heal();
            }
            _ => {
                let mut connection = server.connection().unwrap();
                redis::cmd("PEXPIRE")
                    .arg("k")
                    .arg(TTL)
                    .arg("GT")
                    .exec(&mut connection)
                    .unwrap();
            }
        }
    }

    fn settle(&mut self) {}
}

#[test]
fn redlock_keeps_its_promises_in_chaos() {
    let servers = RedlockServers::start(NODES, Persistence::None).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    drop(
        runtime
            .block_on(servers.provision(Ttl::from_millis(TTL).unwrap()))
            .unwrap(),
    );
    let ways = servers
        .servers
        .iter()
        .map(|server| Proxy::start(server.addr()).unwrap())
        .collect();
    survives(Redlock { servers, ways });
}
