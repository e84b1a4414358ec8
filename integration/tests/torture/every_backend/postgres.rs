use std::thread;

use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::PostgresServer,
    steps::millis,
};
use rand::{RngExt, rngs::StdRng};

use super::{Target, elections::elects, survives};

const TTL: u64 = 2000;

/// One server. Every other worker connects through a proxy.
///
/// No fault resets a connection. A reset frees the locks of a connection immediately, and the
/// holder notices at its next renewal, as `docs/guarantees.md` says.
struct Postgres {
    server: PostgresServer,
    way: Proxy,
}

impl Postgres {
    fn backends(&self) -> Vec<u32> {
        let pids = self
            .server
            .psql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()");
        pids.unwrap()
            .lines()
            .map(|pid| pid.parse().unwrap())
            .collect()
    }
}

impl Target for Postgres {
    fn url(&self, worker: usize) -> String {
        self.server.url_at(if worker.is_multiple_of(2) {
            self.server.addr()
        } else {
            self.way.addr()
        })
    }

    fn ttl_ms(&self) -> u64 {
        TTL
    }

    fn strike(&mut self, rng: &mut StdRng) {
        thread::sleep(millis(rng.random_range(100..600)));
        match rng.random_range(0..4) {
            0 => {
                // A backend is paused, and its client may have disconnected when it continues.
                let backends = self.backends();
                let Some(&pid) = backends.get(rng.random_range(0..backends.len().max(1))) else {
                    return;
                };
                if self.server.pause_backend(pid).is_ok() {
                    thread::sleep(millis(rng.random_range(10..TTL / 4)));
                    drop(self.server.resume_backend(pid));
                }
            }
            1 => {
                let direction = if rng.random_bool(0.5) {
                    Direction::ClientToServer
                } else {
                    Direction::ServerToClient
                };
                self.way.hold(direction);
                thread::sleep(millis(rng.random_range(10..TTL / 4)));
                self.way.heal();
            }
            2 => {
                // Sends notifications without a cause on every channel with a listener.
                let hint = "SELECT pg_notify(channel, '') FROM \
                    (SELECT DISTINCT substring(query FROM 'LISTEN \"?([^\"; ]+)') AS channel FROM pg_stat_activity) c \
                    WHERE channel IS NOT NULL";
                self.server.psql(hint).unwrap();
            }
            _ => {
                self.server
                    .psql("ALTER ROLE postgres PASSWORD 'another'")
                    .unwrap();
            }
        }
    }

    fn settle(&mut self) {}
}

fn start() -> Postgres {
    let server = PostgresServer::start().unwrap();
    let way = Proxy::start(server.addr()).unwrap();
    Postgres { server, way }
}

#[test]
fn postgres_keeps_its_promises_in_chaos() {
    survives(start());
}

#[test]
fn postgres_elects_one_leader_at_a_time_in_chaos() {
    elects(start());
}
