//! The etcd backend on real servers.

#[path = "etcd/auth.rs"]
mod auth;
#[path = "etcd/cluster.rs"]
mod cluster;
#[path = "etcd/crowd.rs"]
mod crowd;
#[path = "etcd/cut.rs"]
mod cut;
#[path = "etcd/deposed.rs"]
mod deposed;
#[path = "etcd/granted.rs"]
mod granted;
#[path = "etcd/inspection.rs"]
mod inspection;
#[path = "etcd/interop.rs"]
mod interop;
#[path = "etcd/killed.rs"]
mod killed;
#[path = "etcd/large.rs"]
mod large;
#[path = "etcd/limits.rs"]
mod limits;
#[path = "etcd/locks.rs"]
mod locks;
#[path = "etcd/orphans.rs"]
mod orphans;
#[path = "etcd/partition.rs"]
mod partition;
#[path = "etcd/proxied.rs"]
mod proxied;
#[path = "etcd/relay.rs"]
mod relay;
#[path = "etcd/releases.rs"]
mod releases;
#[path = "etcd/server.rs"]
mod server;
#[path = "etcd/sessions.rs"]
mod sessions;
#[path = "etcd/support.rs"]
mod support;
#[path = "etcd/tls.rs"]
mod tls;
#[path = "etcd/waiting.rs"]
mod waiting;
