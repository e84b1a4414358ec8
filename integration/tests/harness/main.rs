//! Tests of the harness: each fault takes effect, and affects nothing else.

mod postgres;
mod process;
mod proxy;
mod redis;
mod zookeeper;
