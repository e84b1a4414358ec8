//! The etcd backend on real servers.

mod auth;
mod cluster;
mod cut;
mod deposed;
mod elections;
mod granted;
mod inspection;
mod interop;
mod large;
mod limits;
mod locks;
mod orphans;
mod partition;
mod proxied;
mod records;
mod relay;
mod releases;
mod remedies;
mod sessions;
mod support;
mod tls;
mod waiters_cost;
mod waiters_session;
mod waiting;
