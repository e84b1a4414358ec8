//! Tests of the tests' own tools: what they claim to break is broken, and what they claim to leave
//! alone is.

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
