//! The Redis backend on real servers.

mod connecting;
mod credentials;
mod declared_keys;
mod exclusive;
mod faults;
mod gathering;
mod many;
mod modes;
mod names;
mod records;
mod records_chaos;
mod restart;
mod starvation;
mod support;
mod tls;
mod tokens;
mod votes;
mod waiting;
