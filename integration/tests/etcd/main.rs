//! The etcd backend on real servers.

mod auth;
mod cluster;
mod crowd;
mod cut;
mod deposed;
mod granted;
mod inspection;
mod interop;
mod killed;
mod large;
mod limits;
mod locks;
mod orphans;
mod partition;
mod proxied;
mod relay;
mod releases;
mod server;
mod sessions;
mod support;
mod tls;
mod waiting;
