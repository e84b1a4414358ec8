//! Acquire + release on distinct keys: this backend beside the bare driver that runs the same two scripts.
//!
//! `cargo run --release -p leasehold-redis --example pair_bench -- [URL] [MILLISECONDS PER ROUND] [ROUNDS]`
//!
//! The two are interleaved, and the ratio is the median of the rounds' ratios: absolute figures move with the machine.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use leasehold_core::{Attempt, LockBackend, LockKey, OwnerId, Request};
use leasehold_redis::{
    RedisBackend,
    redis::{self, aio::MultiplexedConnection},
};
use tokio::runtime::{Builder, Runtime};

const ACQUIRE: &str = include_str!("../src/scripts/acquire.lua");
const RELEASE: &str = include_str!("../src/scripts/release.lua");

fn main() {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "redis://127.0.0.1/".into());
    let round = Duration::from_millis(arguments.next().map_or(400, |text| text.parse().unwrap()));
    let rounds: usize = arguments.next().map_or(7, |text| text.parse().unwrap());
    println!("{:<16} {:>5} {:>12} {:>12} {:>7}", "runtime", "tasks", "driver/s", "leasehold/s", "ratio");
    for workers in [2, 1] {
        let (name, runtime) = match workers {
            1 => ("current-thread", Builder::new_current_thread().enable_all().build().unwrap()),
            n => ("two workers", Builder::new_multi_thread().worker_threads(n).enable_all().build().unwrap()),
        };
        let (raw, backend) = runtime.block_on(subjects(&url));
        for tasks in [1, 4, 16, 64, 256] {
            let mut measured = Vec::new();
            for _ in 0..=rounds {
                let floor = rate(&runtime, tasks, round, |n| raw_pairs(raw.clone(), n));
                let ours = rate(&runtime, tasks, round, |n| our_pairs(Arc::clone(&backend), n));
                measured.push((ours / floor, floor, ours));
            }
            // The first round warms up.
            measured.remove(0);
            measured.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (ratio, floor, ours) = measured[measured.len() / 2];
            println!("{name:<16} {tasks:>5} {floor:>12.0} {ours:>12.0} {ratio:>7.3}");
        }
    }
}

async fn subjects(url: &str) -> (MultiplexedConnection, Arc<RedisBackend>) {
    let backend = RedisBackend::connect(url).await.unwrap();
    let client = redis::Client::open(url).unwrap();
    let info = client.get_connection_info().clone();
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    let client = redis::Client::open(info.set_tcp_settings(tcp)).unwrap();
    (client.get_multiplexed_async_connection().await.unwrap(), backend)
}

/// Pairs per second of this many tasks.
fn rate<F>(runtime: &Runtime, tasks: usize, round: Duration, pairs: impl Fn(usize) -> F) -> f64
where
    F: AsyncPairs,
{
    runtime.block_on(async {
        let stop = Arc::new(AtomicBool::new(false));
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
        done as f64 / started.elapsed().as_secs_f64()
    })
}

trait AsyncPairs: Send + 'static {
    fn pair(&mut self) -> impl Future<Output = ()> + Send;
}

struct Raw {
    connection: MultiplexedConnection,
    acquire: String,
    release: String,
    key: String,
    token_key: String,
}

fn raw_pairs(connection: MultiplexedConnection, n: usize) -> Raw {
    Raw {
        connection,
        acquire: redis::Script::new(ACQUIRE).get_hash().to_owned(),
        release: redis::Script::new(RELEASE).get_hash().to_owned(),
        key: format!("bench/raw/{n}"),
        token_key: format!("{{bench/raw/{n}}}:lh2:token"),
    }
}

impl AsyncPairs for Raw {
    async fn pair(&mut self) {
        let value = OwnerId::random().to_string();
        let mut acquire = redis::cmd("EVALSHA");
        acquire.arg(&self.acquire).arg(1).arg(&self.key).arg(&value).arg(30_000).arg(&self.token_key);
        let token: String = acquire.query_async(&mut self.connection).await.unwrap();
        assert!(token.parse::<u64>().is_ok());
        let mut release = redis::cmd("EVALSHA");
        release.arg(&self.release).arg(1).arg(&self.key).arg(&value);
        let freed: i64 = release.query_async(&mut self.connection).await.unwrap();
        assert_eq!(freed, 1);
    }
}

struct Ours {
    backend: Arc<RedisBackend>,
    request: Request,
}

fn our_pairs(backend: Arc<RedisBackend>, n: usize) -> Ours {
    let request = Request::new(LockKey::new(format!("bench/our/{n}")).unwrap()).with_label("bench");
    Ours { backend, request }
}

impl AsyncPairs for Ours {
    async fn pair(&mut self) {
        let request = self.request.as_new_owner();
        match Arc::clone(&self.backend).try_acquire(request).await.unwrap() {
            Attempt::Granted(lease) => lease.release().await.map(drop).unwrap(),
            Attempt::Contended(_) => panic!("nobody else has this key"),
        }
    }
}
