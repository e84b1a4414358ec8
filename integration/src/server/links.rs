//! [`PeerLinks`]: relays between the members of an etcd cluster.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{HarnessError, Result};

/// The interval at which an idle relay checks whether it was cut.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The header with which the dialling member identifies itself in a connection's first request.
const FROM: &[u8] = b"x-server-from: ";
/// Longer than the head of any request.
const HEAD: usize = 16 * 1024;

/// One relay in front of each member's peer port, which identifies the dialling member. One member
/// can be cut off from the rest in both directions, while clients reach all of them.
#[derive(Debug)]
pub struct PeerLinks {
    shared: Arc<Shared>,
    listeners: Vec<SocketAddr>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Maps member ids (hexadecimal) to indices, and lists the members that are cut off.
    cut: Mutex<Cut>,
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Cut {
    ids: Vec<String>,
    off: HashSet<usize>,
}

impl PeerLinks {
    /// Starts relays to these peer ports.
    ///
    /// # Errors
    /// No port is free.
    pub(super) fn start(peer_ports: &[u16]) -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let mut listeners = Vec::new();
        for (at, port) in peer_ports.iter().copied().enumerate() {
            let failed = |error| HarnessError::caused_by("cannot listen between members", error);
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
            listeners.push(listener.local_addr().map_err(failed)?);
            let shared = Arc::clone(&shared);
            // The thread ends at the first connection after the end, which `drop` makes.
            thread::spawn(move || {
                while let Ok((dialled, _)) = listener.accept() {
                    if shared.ended.load(Ordering::Acquire) {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || relay(&shared, dialled, at, port));
                }
            });
        }
        Ok(Self { shared, listeners })
    }

    /// Returns the port at which other members reach this one.
    pub(super) fn port(&self, at: usize) -> u16 {
        self.listeners[at].port()
    }

    pub(super) fn know(&self, ids: Vec<String>) {
        self.shared.lock().ids = ids;
    }

    /// Blocks all traffic between this member and the rest from now on. Connections stay open and
    /// silent.
    pub fn cut_off(&self, member: usize) {
        self.shared.lock().off.insert(member);
    }

    /// Restores all traffic.
    pub fn heal(&self) {
        self.shared.lock().off.clear();
    }
}

impl Drop for PeerLinks {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        for listener in &self.listeners {
            drop(TcpStream::connect(listener));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Cut> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cut(&self, from: &str, to: usize) -> bool {
        let cut = self.lock();
        cut.off.contains(&to)
            || cut
                .ids
                .iter()
                .position(|id| id == from)
                .is_some_and(|from| cut.off.contains(&from))
    }
}

/// Relays both directions of one connection.
fn relay(shared: &Arc<Shared>, mut dialled: TcpStream, to: usize, port: u16) {
    let Some((head, from)) = head(&mut dialled) else {
        return;
    };
    let Ok(mut member) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
        return;
    };
    let link = Arc::new(Link {
        shared: Arc::clone(shared),
        from,
        to,
    });
    if !link.waits_until_open() || member.write_all(&head).is_err() {
        return;
    }
    let (Ok(back_from), Ok(back_to)) = (member.try_clone(), dialled.try_clone()) else {
        return;
    };
    let back = Arc::clone(&link);
    let backwards = thread::spawn(move || back.pass(back_from, back_to));
    link.pass(dialled, member);
    // The thread ends with the other direction.
    drop(backwards.join());
}

struct Link {
    shared: Arc<Shared>,
    from: String,
    to: usize,
}

impl Link {
    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        if from.set_read_timeout(Some(POLL_INTERVAL)).is_err() {
            return;
        }
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    if self.shared.ended.load(Ordering::Acquire) {
                        break;
                    }
                    continue;
                }
                Err(_) => break,
            };
            if !self.waits_until_open() || to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        // An error means that the connection is already gone.
        drop(from.shutdown(Shutdown::Both));
        drop(to.shutdown(Shutdown::Both));
    }

    /// Holds back data while the link is cut. Returns `false` when the relays have ended.
    fn waits_until_open(&self) -> bool {
        while self.shared.is_cut(&self.from, self.to) {
            if self.shared.ended.load(Ordering::Acquire) {
                return false;
            }
            thread::sleep(POLL_INTERVAL);
        }
        true
    }
}

/// Returns the head of the first request, and the id of its sender.
fn head(dialled: &mut TcpStream) -> Option<(Vec<u8>, String)> {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match dialled.read(&mut buffer) {
            Ok(read) if read > 0 && head.len() < HEAD => head.extend_from_slice(&buffer[..read]),
            _ => return None,
        }
    }
    let lines = head.split(|byte| *byte == b'\n');
    let from = lines
        .filter(|line| line.len() > FROM.len())
        .find_map(|line| {
            let (name, value) = line.split_at(FROM.len());
            name.eq_ignore_ascii_case(FROM)
                .then(|| String::from_utf8_lossy(value).trim().to_owned())
        });
    // A request for the version has no sender.
    Some((head, from.unwrap_or_default()))
}
