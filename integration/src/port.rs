//! Ports for servers and proxies.

use std::net::{Ipv4Addr, TcpListener};

use crate::{HarnessError, Result};

/// Below the ports that Linux gives to outgoing connections (32768 and up), and still below them with the 10 000 that
/// Redis Cluster adds for its bus. A client that keeps connecting to a server that is down can otherwise be given the
/// server's own port as its local one, connect to itself, and keep the server from coming back.
const RANGE: std::ops::Range<u16> = 12_000..22_000;

/// Random picks before giving up; with a tenth of the range in use all of them fail once in 10^64.
const PICKS: usize = 64;

/// A port on the loopback address that nothing listens on. Nothing reserves it: who finds it taken picks another.
///
/// # Errors
/// No free port was found.
pub fn free_port() -> Result<u16> {
    (0..PICKS)
        .map(|_| rand::random_range(RANGE))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .ok_or_else(|| HarnessError::new(format!("no free port in {RANGE:?}")))
}
