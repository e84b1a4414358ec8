//! Faulty or hostile servers. Their answers are huge, endless, slow or malformed, or end at any
//! byte.
//!
//! With every such server, all calls end, the caller's own timeouts take effect, nothing panics,
//! and memory stays within [`LIMIT`](support::LIMIT). A child process with one thread, the program
//! `converse`, talks to each server. The exceptions are in [`known`], each with its reason.

mod etcd;
mod known;
mod postgres;
mod redis;
mod redlock;
mod server;
mod support;
mod zookeeper;
