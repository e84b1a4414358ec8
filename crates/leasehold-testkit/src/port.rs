//! Ports for the servers and proxies of tests.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::{Mutex, PoisonError},
};

/// Below the ports that Linux gives to outgoing connections (32768 and up), and still below them
/// with the 10 000 that Redis Cluster adds for its bus. A client that keeps connecting to a server
/// that is down can otherwise be given the server's own port as its local one, connect to itself,
/// and keep the server from coming back.
const RANGE: Range<u16> = 12_000..22_000;

/// A process takes this many at a time.
const BLOCK: u16 = 50;

/// What this process has taken. It keeps all of it until it ends: a server that was killed finds
/// its port free again.
static OURS: Mutex<Ours> = Mutex::new(Ours {
    claims: Vec::new(),
    left: 0..0,
});

struct Ours {
    /// One for each block: names that no other process of this network namespace can bind
    /// meanwhile.
    claims: Vec<UnixListener>,
    left: Range<u16>,
}

/// A port on the loopback address that nothing listens on, and that no process that asks here is
/// given as long as this one lives. Whoever does not ask here may still take it: who finds it taken
/// asks again.
///
/// # Errors
/// No free port was found: [`io::ErrorKind::AddrInUse`].
pub fn free_port() -> io::Result<u16> {
    let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(port) = ours
            .left
            .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        {
            return Ok(port);
        }
        let (claim, block) = claim_block()?;
        ours.claims.push(claim);
        ours.left = block;
    }
}

/// A block that no process has, looked for from anywhere: ports that were in use a moment ago rest.
fn claim_block() -> io::Result<(UnixListener, Range<u16>)> {
    let blocks = RANGE.len() / usize::from(BLOCK);
    let first = fastrand::usize(0..blocks);
    let starts = RANGE
        .step_by(usize::from(BLOCK))
        .cycle()
        .skip(first)
        .take(blocks);
    let claimed = starts.into_iter().find_map(|start| {
        let name =
            SocketAddr::from_abstract_name(format!("leasehold-testkit/ports/{start}")).ok()?;
        Some((UnixListener::bind_addr(&name).ok()?, start..start + BLOCK))
    });
    claimed.ok_or_else(|| {
        let taken = format!("no free port in {RANGE:?}: other tests have taken all of it");
        io::Error::new(io::ErrorKind::AddrInUse, taken)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{BLOCK, claim_block, free_port};

    #[test]
    fn no_port_is_given_twice_though_nobody_listens_on_it() {
        let ports: Vec<_> = (0..3 * BLOCK).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), ports.len());
    }

    #[test]
    fn no_block_is_claimed_twice_while_its_claim_lives() {
        let (first, block) = claim_block().unwrap();
        let others: Vec<_> = (0..20).map(|_| claim_block().unwrap()).collect();
        assert!(others.iter().all(|(_, other)| *other != block));
        drop(first);
    }
}
