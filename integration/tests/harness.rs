//! Tests of the harness: each fault takes effect, and affects nothing else.

#[path = "harness/postgres.rs"]
mod postgres;
#[path = "harness/process.rs"]
mod process;
#[path = "harness/proxy.rs"]
mod proxy;
#[path = "harness/redis.rs"]
mod redis;
#[path = "harness/zookeeper.rs"]
mod zookeeper;
