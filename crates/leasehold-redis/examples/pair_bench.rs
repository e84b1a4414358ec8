//! Acquire + release on distinct keys: this backend, alone and under the client, beside the bare driver.
//!
//! `cargo run --release -p leasehold-redis --example pair_bench -- [URL] [MILLISECONDS PER ROUND] [ROUNDS] [TASKS…]`
//!
//! - `plain`: the bare driver, `SET NX PX` and a compare-and-delete script; no fencing token.
//! - `floor`: the bare driver doing the same round trips as we do: `SET NX PX` and `INCRBY` in one pipeline, then a script.
//! - `backend`, `client`: ours.
//!
//! All are interleaved, and a ratio is the median of the rounds' ratios: absolute figures move with the machine.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use leasehold_core::{Attempt, LockBackend, LockClient, LockKey, OwnerId, Request};
use leasehold_redis::{
    RedisBackend,
    redis::{self, aio::MultiplexedConnection},
};
use tokio::runtime::{Builder, Runtime};

const RELEASE: &str = include_str!("../src/scripts/release.lua");
const COMPARE_AND_DELETE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

fn main() {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "redis://127.0.0.1/".into());
    let round = Duration::from_millis(arguments.next().map_or(400, |text| text.parse().unwrap()));
    let rounds: usize = arguments.next().map_or(7, |text| text.parse().unwrap());
    let mut counts: Vec<usize> = arguments.map(|text| text.parse().unwrap()).collect();
    if counts.is_empty() {
        counts = vec![1, 4, 16, 64, 256];
    }
    println!("pairs per second | CPU time per pair in us, here and in the server | ratios");
    println!(
        "{:<15}{:>5} |{:>9}{:>9}{:>9}{:>9} |{:>12}{:>12}{:>12}{:>12} |{:>14}{:>14}{:>14}{:>14}",
        "runtime",
        "tasks",
        "plain",
        "floor",
        "backend",
        "client",
        "plain",
        "floor",
        "backend",
        "client",
        "backend/floor",
        "backend/plain",
        "client/floor",
        "client/plain"
    );
    for workers in [2, 1] {
        let (name, runtime) = match workers {
            1 => ("current-thread", Builder::new_current_thread().enable_all().build().unwrap()),
            n => ("two workers", Builder::new_multi_thread().worker_threads(n).enable_all().build().unwrap()),
        };
        let (raw, backend) = runtime.block_on(subjects(&url));
        let client = LockClient::new(Arc::clone(&backend));
        for &tasks in &counts {
            let mut measured = Vec::new();
            for _ in 0..=rounds {
                measured.push([
                    rate(&runtime, &raw, tasks, round, |n| plain_pairs(raw.clone(), n)),
                    rate(&runtime, &raw, tasks, round, |n| floor_pairs(raw.clone(), n)),
                    rate(&runtime, &raw, tasks, round, |n| backend_pairs(Arc::clone(&backend), n)),
                    rate(&runtime, &raw, tasks, round, |n| client_pairs(&client, n)),
                ]);
            }
            // The first round warms up.
            measured.remove(0);
            let median = |of: &dyn Fn(&[Measured; 4]) -> f64| {
                let mut all: Vec<f64> = measured.iter().map(of).collect();
                all.sort_by(f64::total_cmp);
                all[all.len() / 2]
            };
            let rates = [0, 1, 2, 3].map(|n| format!("{:>9.0}", median(&|all| all[n].rate)));
            let cpu = [0, 1, 2, 3]
                .map(|n| format!("{:>6.2}+{:<5.2}", median(&|all| all[n].cpu_here), median(&|all| all[n].cpu_there)));
            let ratios = [(2, 1), (2, 0), (3, 1), (3, 0)]
                .map(|(a, b)| format!("{:>14.3}", median(&|all| all[a].rate / all[b].rate)));
            println!("{name:<15}{tasks:>5} |{} |{} |{}", rates.concat(), cpu.concat(), ratios.concat());
        }
    }
}

/// One subject in one round.
struct Measured {
    rate: f64,
    /// Microseconds per pair, of this process and of the server.
    cpu_here: f64,
    cpu_there: f64,
}

/// This process's CPU time in microseconds. Zero where it cannot be read.
fn cpu_here() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanos = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<f64>().ok()
    });
    nanos.sum::<f64>() / 1e3
}

/// The server's.
async fn cpu_there(raw: &MultiplexedConnection) -> f64 {
    let info: String = redis::cmd("INFO").arg("cpu").query_async(&mut raw.clone()).await.unwrap();
    let seconds = info.lines().filter_map(|line| {
        line.strip_prefix("used_cpu_user:").or_else(|| line.strip_prefix("used_cpu_sys:"))?.trim().parse::<f64>().ok()
    });
    seconds.sum::<f64>() * 1e6
}

async fn subjects(url: &str) -> (MultiplexedConnection, Arc<RedisBackend>) {
    let backend = RedisBackend::connect(url).await.unwrap();
    let client = redis::Client::open(url).unwrap();
    let info = client.get_connection_info().clone();
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    let client = redis::Client::open(info.set_tcp_settings(tcp)).unwrap();
    let raw = client.get_multiplexed_async_connection().await.unwrap();
    let () = redis::Script::new(COMPARE_AND_DELETE).load_async(&mut raw.clone()).await.map(drop).unwrap();
    (raw, backend)
}

/// What this many tasks achieve.
fn rate<F>(
    runtime: &Runtime,
    raw: &MultiplexedConnection,
    tasks: usize,
    round: Duration,
    pairs: impl Fn(usize) -> F,
) -> Measured
where
    F: AsyncPairs,
{
    runtime.block_on(async {
        let stop = Arc::new(AtomicBool::new(false));
        let (here, there) = (cpu_here(), cpu_there(raw).await);
        let started = Instant::now();
        let tasks: Vec<_> = (0..tasks)
            .map(|n| {
                let (mut pairs, stop) = (pairs(n), Arc::clone(&stop));
                tokio::spawn(async move {
                    let mut done = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        pairs.pair().await;
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        tokio::time::sleep(round).await;
        stop.store(true, Ordering::Relaxed);
        let mut done = 0;
        for task in tasks {
            done += task.await.unwrap();
        }
        let done = done as f64;
        let rate = done / started.elapsed().as_secs_f64();
        Measured { rate, cpu_here: (cpu_here() - here) / done, cpu_there: (cpu_there(raw).await - there) / done }
    })
}

trait AsyncPairs: Send + 'static {
    fn pair(&mut self) -> impl Future<Output = ()> + Send;
}

struct Plain {
    connection: MultiplexedConnection,
    release: String,
    key: String,
}

fn plain_pairs(connection: MultiplexedConnection, n: usize) -> Plain {
    let release = redis::Script::new(COMPARE_AND_DELETE).get_hash().to_owned();
    Plain { connection, release, key: format!("bench/pla/{n}") }
}

impl AsyncPairs for Plain {
    async fn pair(&mut self) {
        let value = OwnerId::random().to_string();
        let mut set = redis::cmd("SET");
        set.arg(&self.key).arg(&value).arg("NX").arg("PX").arg(30_000);
        let () = set.query_async(&mut self.connection).await.unwrap();
        let mut release = redis::cmd("EVALSHA");
        release.arg(&self.release).arg(1).arg(&self.key).arg(&value);
        let freed: i64 = release.query_async(&mut self.connection).await.unwrap();
        assert_eq!(freed, 1);
    }
}

struct Floor {
    connection: MultiplexedConnection,
    release: String,
    key: String,
    token_key: String,
}

fn floor_pairs(connection: MultiplexedConnection, n: usize) -> Floor {
    let release = redis::Script::new(RELEASE).get_hash().to_owned();
    Floor { connection, release, key: format!("bench/raw/{n}"), token_key: format!("{{bench/raw/{n}}}:token") }
}

impl AsyncPairs for Floor {
    async fn pair(&mut self) {
        let value = OwnerId::random().to_string();
        let mut acquire = redis::pipe();
        acquire.cmd("SET").arg(&self.key).arg(&value).arg("NX").arg("PX").arg(30_000);
        acquire.cmd("INCRBY").arg(&self.token_key).arg(2);
        let ((), token): ((), i64) = acquire.query_async(&mut self.connection).await.unwrap();
        assert!(token > 0);
        let mut release = redis::cmd("EVALSHA");
        release.arg(&self.release).arg(1).arg(&self.key).arg(&value);
        let freed: i64 = release.query_async(&mut self.connection).await.unwrap();
        assert_eq!(freed, 1);
    }
}

struct Backend {
    backend: Arc<RedisBackend>,
    request: Request,
}

fn backend_pairs(backend: Arc<RedisBackend>, n: usize) -> Backend {
    let request = Request::new(LockKey::new(format!("bench/our/{n}")).unwrap()).with_label("bench");
    Backend { backend, request }
}

impl AsyncPairs for Backend {
    async fn pair(&mut self) {
        let request = self.request.as_new_owner();
        match Arc::clone(&self.backend).try_acquire(request).await.unwrap() {
            Attempt::Granted(lease) => lease.release().await.map(drop).unwrap(),
            Attempt::Contended(_) => panic!("nobody else has this key"),
        }
    }
}

struct Client {
    mutex: leasehold_core::Mutex,
}

fn client_pairs(client: &LockClient, n: usize) -> Client {
    Client { mutex: client.mutex(format!("bench/cli/{n}")) }
}

impl AsyncPairs for Client {
    async fn pair(&mut self) {
        self.mutex.lock().await.unwrap().release().await.map(drop).unwrap();
    }
}
