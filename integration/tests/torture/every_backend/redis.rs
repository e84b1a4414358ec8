use std::thread;

use leasehold_integration::{
    proxy::{Direction, Proxy},
    server::{Persistence, RedisServer},
    steps::millis,
};
use rand::{RngExt, rngs::StdRng};

use super::{Target, elections::elects, survives};

const TTL: u64 = 500;
const USER: (&str, &str, &str) = ("app", "secret", "~* &* +@all");

/// One server that keeps every write. Every other worker connects through a proxy.
struct Redis {
    server: RedisServer,
    way: Proxy,
}

impl Redis {
    fn run(&self, command: &[&str]) {
        let mut built = redis::cmd(command[0]);
        command[1..].iter().for_each(|argument| {
            built.arg(argument);
        });
        built.exec(&mut self.server.connection().unwrap()).unwrap();
    }
}

impl Target for Redis {
    fn url(&self, worker: usize) -> String {
        let addr = if worker.is_multiple_of(2) {
            self.server.addr()
        } else {
            self.way.addr()
        };
        format!("redis://{}:{}@{addr}/?timeout=200ms", USER.0, USER.1)
    }

    fn ttl_ms(&self) -> u64 {
        TTL
    }

    fn strike(&mut self, rng: &mut StdRng) {
        thread::sleep(millis(rng.random_range(50..400)));
        match rng.random_range(0..7) {
            0 => {
                self.server.pause().unwrap();
                thread::sleep(millis(rng.random_range(10..2 * TTL)));
                self.server.resume().unwrap();
            }
            1 => {
                self.server.kill();
                thread::sleep(millis(rng.random_range(0..500)));
                self.server.restart().unwrap();
            }
            2 => {
                // The paused server continues with one direction cut.
                let direction = if rng.random_bool(0.5) {
                    Direction::ClientToServer
                } else {
                    Direction::ServerToClient
                };
                self.server.pause().unwrap();
                thread::sleep(millis(rng.random_range(10..TTL)));
                self.way.blackhole(direction);
                self.server.resume().unwrap();
                thread::sleep(millis(rng.random_range(10..2 * TTL)));
                self.way.heal();
            }
            3 => {
                // Requests arrive late and in order.
                self.way.hold(Direction::ClientToServer);
                thread::sleep(millis(rng.random_range(10..2 * TTL)));
                self.way.heal();
            }
            4 => {
                // The user is removed, which ends its connections, and created again in one step.
                let mut renewed = redis::pipe();
                renewed.atomic().cmd("ACL").arg("DELUSER").arg(USER.0);
                renewed
                    .cmd("ACL")
                    .arg("SETUSER")
                    .arg(USER.0)
                    .arg("on")
                    .arg(format!(">{}", USER.1));
                USER.2.split(' ').for_each(|rule| {
                    renewed.arg(rule);
                });
                renewed
                    .exec(&mut self.server.connection().unwrap())
                    .unwrap();
            }
            5 => {
                // An administrator prolongs the lock for any holder. Waiters are notified, and the
                // lock is not free.
                self.run(&["PEXPIRE", "k", &TTL.to_string(), "GT"]);
            }
            _ => self.run(&["CLIENT", "KILL", "TYPE", "normal"]),
        }
    }

    fn settle(&mut self) {}
}

fn start() -> Redis {
    let builder = RedisServer::builder()
        .persistence(Persistence::EveryWrite)
        .user(USER.0, USER.1, USER.2);
    let server = builder.start().unwrap();
    let way = Proxy::start(server.addr()).unwrap();
    Redis { server, way }
}

#[test]
fn redis_keeps_its_promises_in_chaos() {
    survives(start());
}

#[test]
fn redis_elects_one_leader_at_a_time_in_chaos() {
    elects(start());
}
