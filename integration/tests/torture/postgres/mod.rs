//! PostgreSQL: what is tested of every backend, and what only this one can suffer.

mod courtesy;
mod crash;
mod crowd;
mod demoted;
mod dropped;
mod failed;
mod inspection;
mod interop;
mod lent;
mod limits;
mod log;
mod own;
mod partition;
mod pooler;
mod process;
mod reconcile;
mod role;
mod same_key;
mod sequence;
mod session;
mod settings;
mod standby;
mod support;
mod tls;
mod token;
mod wake;
