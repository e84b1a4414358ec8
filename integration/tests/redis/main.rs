//! The Redis backend on real servers.

mod connecting;
mod credentials;
mod declared_keys;
mod exclusive;
mod faults;
mod gathering;
mod modes;
mod names;
mod starvation;
mod support;
mod tls;
mod tokens;
mod votes;
mod waiting;
