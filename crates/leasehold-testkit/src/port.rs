//! [`free_port`]: ports for the servers and proxies of tests.

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

/// The ports to choose from.
///
/// They are below the ports that Linux assigns to outgoing connections (32768 and up), even with
/// the 10 000 that Redis Cluster adds for its bus. Otherwise a client that reconnects to a stopped
/// server could get the server's port as its local port, connect to itself, and prevent the server
/// from starting again.
const RANGE: Range<u16> = 12_000..22_000;

/// The number of ports that a process reserves at a time.
const BLOCK: u16 = 50;

/// The ports that this process has reserved. It keeps them until it ends, so that a server that was
/// killed can use its port again.
static OURS: Mutex<Ours> = Mutex::new(Ours {
    claims: Vec::new(),
    left: 0..0,
});

struct Ours {
    /// A bound socket name for each block, which no other process of this network namespace can
    /// bind.
    claims: Vec<UnixListener>,
    left: Range<u16>,
}

/// Returns a port on the loopback address that nothing listens on.
///
/// No other process that calls this function gets the port while this process is alive. A process
/// that chooses its ports in another way may still take it; call the function again in that case.
///
/// ```
/// let port = leasehold_testkit::free_port()?;
/// let listener = std::net::TcpListener::bind(("127.0.0.1", port))?;
/// # drop(listener);
/// # std::io::Result::Ok(())
/// ```
///
/// # Errors
/// Returns [`io::ErrorKind::AddrInUse`] if there is no free port.
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

/// Reserves a block that no process has. The search starts at a random block, so that recently used
/// ports are not reused at once.
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
        let taken = format!("no free port in {RANGE:?}: other tests have reserved all of them");
        io::Error::new(io::ErrorKind::AddrInUse, taken)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{BLOCK, claim_block, free_port};

    #[test]
    fn no_port_is_returned_twice_although_nothing_listens_on_it() {
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
