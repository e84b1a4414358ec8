//! [`ALL`]: the backends whose features are enabled, and their servers.

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "local")]
mod files;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redlock")]
mod redlock;
#[cfg(feature = "zookeeper")]
mod zookeeper;

#[cfg(feature = "server")]
use std::net::SocketAddr;

use leasehold_core::Ttl;
#[cfg(feature = "server")]
use leasehold_integration::proxy::Proxy;

#[cfg(feature = "server")]
use crate::fixture::Route;
use crate::fixture::{Backend, Lease};

const SHORT: u64 = 3_000;
const LONG: u64 = 3_600_000;

#[cfg(any(feature = "etcd", feature = "redis", feature = "zookeeper"))]
const AFTER_ITS_TTL: &str = "the servers do not see the death of a process";
#[cfg(any(feature = "local", feature = "postgres"))]
const AT_ONCE: &str = "the kernel or the server sees the death of a process";

/// All backends with faults. The locks of memory live and die with their process.
pub(crate) static ALL: &[Backend] = &[
    #[cfg(feature = "local")]
    files::FILE,
    #[cfg(feature = "redis")]
    redis::REDIS,
    #[cfg(feature = "redlock")]
    redlock::REDLOCK,
    #[cfg(feature = "etcd")]
    etcd::ETCD,
    #[cfg(feature = "zookeeper")]
    zookeeper::ZOOKEEPER,
    #[cfg(feature = "postgres")]
    postgres::POSTGRES,
];

fn ttl(lease: Lease) -> Ttl {
    Ttl::from_millis(match lease {
        Lease::Short => SHORT,
        Lease::Long => LONG,
    })
    .unwrap()
}

/// Returns options with which a busy machine is not mistaken for a failed server. Short leases need
/// the default time-outs.
#[cfg(feature = "redis")]
fn patience(lease: Lease) -> &'static str {
    match lease {
        Lease::Short => "timeout=1s",
        Lease::Long => "timeout=4s&connect-timeout=4s",
    }
}

/// Starts a proxy in front of each server.
#[cfg(feature = "server")]
fn route(servers: &[SocketAddr], url: impl Fn(&[SocketAddr]) -> String) -> Route {
    let proxies: Vec<_> = servers
        .iter()
        .map(|addr| Proxy::start(*addr).unwrap())
        .collect();
    let addresses: Vec<_> = proxies.iter().map(Proxy::addr).collect();
    Route {
        url: url(&addresses),
        proxies,
    }
}
