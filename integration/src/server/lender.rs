use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::PostgresServer;
use crate::{HarnessError, Result};

/// A pooler in transaction mode that lets a test choose the backend of each transaction. Prepared
/// statements follow the client, as with `PgBouncer` since 1.24, so clients cannot see which
/// backend they use. It models the freedom that any real pooler has.
///
/// Backends are numbered from 0 and connected on first use. A transaction, or a statement outside
/// of one, waits until its backend is free. Dropping the pooler ends it; state that clients have
/// left in a backend remains until then.
#[derive(Debug)]
#[must_use = "dropping it closes all connections"]
pub struct LendingPooler {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

/// A request for a backend. Clients are numbered from 0 in the order in which they connect, and so
/// are the transactions of each client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loan {
    /// The client.
    pub client: usize,
    /// The number of the client's earlier transactions.
    pub earlier: usize,
}

type Lend = Box<dyn FnMut(Loan) -> usize + Send>;

struct Shared {
    server: SocketAddr,
    lend: Mutex<Lend>,
    backends: Mutex<Vec<Arc<Mutex<Option<Backend>>>>>,
    clients: AtomicUsize,
    closed: AtomicBool,
}

impl LendingPooler {
    /// Starts a pooler for `server`. Each client has its own backend at first, as in session mode.
    ///
    /// # Errors
    /// No port can be bound.
    pub fn start(server: &PostgresServer) -> Result<Self> {
        let no_pooler = |error| HarnessError::caused_by("cannot start a pooler", error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(no_pooler)?;
        let addr = listener.local_addr().map_err(no_pooler)?;
        let shared = Arc::new(Shared {
            server: server.addr(),
            lend: Mutex::new(Box::new(|loan| loan.client)),
            backends: Mutex::default(),
            clients: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        // Each thread ends with its connection, this one with the pooler.
        thread::spawn(move || {
            for client in listener.incoming().map_while(io::Result::ok) {
                if serving.closed.load(Ordering::Acquire) {
                    return;
                }
                let shared = Arc::clone(&serving);
                thread::spawn(move || {
                    // An error means that the client or the backend has disconnected, which ends
                    // both.
                    drop(shared.serve(client));
                });
            }
        });
        Ok(Self { addr, shared })
    }

    /// Sets the function that chooses the backend of each loan.
    pub fn lend(&self, lend: impl FnMut(Loan) -> usize + Send + 'static) {
        *lock(&self.shared.lend) = Box::new(lend);
    }

    /// Resets a backend, as poolers may do after a transaction. Does nothing for an unused backend.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn reset(&self, backend: usize) -> Result<()> {
        let backend = self.shared.backend(backend);
        let mut lent = lock(&backend);
        lent.as_mut()
            .map_or(Ok(()), Backend::reset)
            .map_err(|error| HarnessError::caused_by("cannot reset", error))
    }

    /// Returns the number of clients so far, which is the number of the next one.
    pub fn clients(&self) -> usize {
        self.shared.clients.load(Ordering::Acquire)
    }

    /// Returns the `postgres://` URL of the pooler.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.addr)
    }
}

impl Drop for LendingPooler {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        // Wakes the listening thread.
        drop(TcpStream::connect(self.addr));
        for backend in lock(&self.shared.backends).drain(..) {
            if let Some(backend) = backend
                .try_lock()
                .ok()
                .and_then(|mut backend| backend.take())
            {
                backend.stream.shutdown(Shutdown::Both).unwrap_or_default();
            }
        }
    }
}

/// A connection to the server.
struct Backend {
    stream: TcpStream,
    /// The parameters that the server sent when the connection was opened.
    greeting: Vec<u8>,
    prepared: HashSet<Vec<u8>>,
}

/// A message: its type, and the body after the length.
type Message = (u8, Vec<u8>);

impl Shared {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        loop {
            let startup = read_body(&mut client)?;
            match startup
                .first_chunk::<4>()
                .map(|code| u32::from_be_bytes(*code))
            {
                // Refuses TLS and GSS encryption.
                Some(80_877_103 | 80_877_104) => client.write_all(b"N")?,
                Some(196_608) => break,
                _ => return Ok(()),
            }
        }
        let number = self.clients.fetch_add(1, Ordering::AcqRel);
        let mut answer = message(b'R', &0_u32.to_be_bytes());
        answer.extend(Backend::connect(self.server)?.greeting);
        answer.extend(message(b'K', &[0; 8]));
        answer.extend(message(b'Z', b"I"));
        client.write_all(&answer)?;
        let mut statements = HashMap::new();
        for earlier in 0.. {
            let mut turn = read_turn(&mut client)?;
            let backend = (lock(&self.lend))(Loan {
                client: number,
                earlier,
            });
            let backend = self.backend(backend);
            let mut lent = lock(&backend);
            let mut backend = match lent.take() {
                Some(backend) => backend,
                None => Backend::connect(self.server)?,
            };
            // Runs until the transaction ends. A failure drops the backend.
            while backend.run(number, turn, &mut statements, &mut client)? != b'I' {
                turn = read_turn(&mut client)?;
            }
            *lent = Some(backend);
        }
        Ok(())
    }

    fn backend(&self, number: usize) -> Arc<Mutex<Option<Backend>>> {
        let mut backends = lock(&self.backends);
        if backends.len() <= number {
            backends.resize_with(number + 1, Arc::default);
        }
        Arc::clone(&backends[number])
    }
}

impl Backend {
    fn connect(server: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        let mut startup = 196_608_u32.to_be_bytes().to_vec();
        startup.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        let mut length = (startup.len() as u32 + 4).to_be_bytes().to_vec();
        length.extend(startup);
        stream.write_all(&length)?;
        let mut greeting = Vec::new();
        loop {
            match read_message(&mut stream)? {
                (b'S', parameter) => greeting.extend(message(b'S', &parameter)),
                (b'Z', _) => {
                    return Ok(Self {
                        stream,
                        greeting,
                        prepared: HashSet::new(),
                    });
                }
                (b'E', _) => return Err(io::ErrorKind::ConnectionRefused.into()),
                _ => {}
            }
        }
    }

    fn reset(&mut self) -> io::Result<()> {
        self.stream.write_all(&message(b'Q', b"DISCARD ALL\0"))?;
        self.prepared.clear();
        while read_message(&mut self.stream)?.0 != b'Z' {}
        Ok(())
    }

    /// Sends the client's messages and forwards the answers. Returns the transaction state
    /// afterwards.
    fn run(
        &mut self,
        client: usize,
        turn: Vec<Message>,
        statements: &mut HashMap<Vec<u8>, Vec<u8>>,
        to: &mut TcpStream,
    ) -> io::Result<u8> {
        // Statements that the server is asked to prepare, and whether the client asked for them.
        let mut preparing: VecDeque<(Vec<u8>, bool)> = VecDeque::new();
        let mut asked = Vec::new();
        let renamed = |name: &[u8]| [format!("{client} ").as_bytes(), name].concat();
        for (kind, mut body) in turn {
            match kind {
                b'P' if body[0] != 0 => {
                    let (name, rest) = split(&body);
                    statements.insert(name.to_vec(), rest.to_vec());
                    let renamed = renamed(name);
                    body = [&renamed, &[0][..], rest].concat();
                    self.prepared.insert(renamed.clone());
                    preparing.push_back((renamed, true));
                }
                b'P' => preparing.push_back((Vec::new(), true)),
                // In a Bind message, the portal's name precedes the statement's.
                b'B' | b'D' | b'C' if kind == b'B' || body[0] == b'S' => {
                    let before = if kind == b'B' {
                        split(&body).0.len() + 1
                    } else {
                        1
                    };
                    let (name, rest) = split(&body[before..]);
                    if !name.is_empty() {
                        let renamed = renamed(name);
                        if kind != b'C' && self.prepared.insert(renamed.clone()) {
                            let carried = [&renamed, &[0][..], &statements[name]].concat();
                            asked.extend(message(b'P', &carried));
                            preparing.push_back((renamed.clone(), false));
                        }
                        body = [&body[..before], &renamed, &[0], rest].concat();
                    }
                }
                _ => {}
            }
            asked.extend(message(kind, &body));
        }
        self.stream.write_all(&asked)?;
        let mut answer = Vec::new();
        loop {
            let (kind, body) = read_message(&mut self.stream)?;
            if kind == b'1' && !preparing.pop_front().is_none_or(|(_, by_client)| by_client) {
                continue;
            }
            answer.extend(message(kind, &body));
            if kind == b'Z' {
                // After an error the server skips the remaining messages.
                self.prepared
                    .retain(|name| preparing.iter().all(|(skipped, _)| skipped != name));
                to.write_all(&answer)?;
                return Ok(body[0]);
            }
        }
    }
}

/// Reads the client's messages up to a Sync or a simple query.
fn read_turn(client: &mut TcpStream) -> io::Result<Vec<Message>> {
    let mut turn = Vec::new();
    loop {
        let message = read_message(client)?;
        let kind = message.0;
        turn.push(message);
        match kind {
            b'S' | b'Q' => return Ok(turn),
            // The client terminates the connection.
            b'X' => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
    }
}

fn read_message(stream: &mut TcpStream) -> io::Result<Message> {
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    Ok((kind[0], read_body(stream)?))
}

fn read_body(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[kind], &length[..], body].concat()
}

/// Splits `text` at the first zero byte.
fn split(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(text.len());
    (&text[..end], text.get(end + 1..).unwrap_or_default())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}
