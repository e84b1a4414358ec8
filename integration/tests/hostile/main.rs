//! Servers that are broken or hostile: what they send is huge, endless, slow, malformed, or ends at
//! any byte.
//!
//! Whatever a server sends, every call ends, the caller's own time-outs fire, nothing panics, and
//! the memory stays within [`LIMIT`](support::LIMIT). Each conversation is one of a child process,
//! the program `converse`, which runs on one thread. The exceptions are in [`known`], each with its
//! reason.

mod etcd;
mod known;
mod postgres;
mod redis;
mod redlock;
mod server;
mod support;
mod zookeeper;
