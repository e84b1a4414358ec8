//! [`Hostile`]: a server that misbehaves, alone or before a real one.

use std::{
    fmt,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How often a thread looks whether it should end.
const GLANCE: Duration = Duration::from_millis(20);
const PIECE: usize = 64 * 1024;

/// Makes the n-th block of an endless stream.
pub(crate) type Blocks = Arc<dyn Fn(u64) -> Vec<u8> + Send + Sync>;
/// A whole conversation by hand.
pub(crate) type Play = Arc<dyn Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync>;

/// The behaviour of a server on each connection.
#[derive(Clone)]
pub(crate) enum Conduct {
    /// Sends this once asked something, then blocks without end.
    Flood(Vec<u8>, Blocks),
    /// Sends this once asked something, then nothing.
    Say(Vec<u8>),
    Play(Play),
    /// Relays to the real server, and does something to what passes.
    Relay(SocketAddr, Fault),
}

/// A change to a real conversation.
#[derive(Clone)]
pub(crate) enum Fault {
    None,
    /// Closes after so many bytes of the server, which are passed on.
    CutDown(u64),
    /// Closes after so many bytes of the client.
    CutUp(u64),
    /// Changes the byte at this place of what the server says.
    Flip(u64, u8),
    /// Passes on so many pieces of the server, then floods.
    Flood(u64, Blocks),
    /// Passes on a byte at a time, each after this pause.
    Drip(Duration),
}

/// Returns the same block for ever, filled up to a large piece.
pub(crate) fn endless(block: &[u8]) -> Blocks {
    let piece = block.repeat((PIECE / block.len().max(1)).max(1));
    Arc::new(move |_| piece.clone())
}

/// Ends when it is dropped.
pub(crate) struct Hostile {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    /// The longest that a client and a server said on one connection.
    up: AtomicU64,
    down: AtomicU64,
}

impl Hostile {
    pub(crate) fn start(conduct: Conduct) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let accepting = thread::spawn(move || {
            let mut links = Vec::new();
            while !of_thread.ends() {
                match listener.accept() {
                    Ok((client, _)) => {
                        let (conduct, shared) = (conduct.clone(), Arc::clone(&of_thread));
                        // That the client closes is how most connections end.
                        links.push(thread::spawn(move || drop(shared.serve(client, &conduct))));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) => panic!("cannot accept: {error}"),
                }
            }
            for link in links {
                drop(link.join());
            }
        });
        Self {
            addr,
            shared,
            accepting: Some(accepting),
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The longest that a client and the server said on one connection.
    pub(crate) fn said(&self) -> (u64, u64) {
        (
            self.shared.up.load(Ordering::Relaxed),
            self.shared.down.load(Ordering::Relaxed),
        )
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        drop(self.accepting.take().map(JoinHandle::join));
    }
}

impl fmt::Debug for Hostile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hostile")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn ends(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    fn serve(self: Arc<Self>, mut client: TcpStream, conduct: &Conduct) -> std::io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_nodelay(true)?;
        client.set_read_timeout(Some(GLANCE))?;
        client.set_write_timeout(Some(GLANCE))?;
        match conduct {
            Conduct::Flood(first, blocks) => {
                self.read(&mut client, &mut [0; 4096])?;
                self.write(&mut client, first)?;
                self.flood(&client, blocks)
            }
            Conduct::Say(all) => {
                self.read(&mut client, &mut [0; 4096])?;
                self.write(&mut client, all)?;
                self.discard(client)
            }
            Conduct::Play(play) => {
                client.set_read_timeout(Some(Duration::from_secs(20)))?;
                play(&mut client)?;
                self.discard(client)
            }
            Conduct::Relay(target, fault) => {
                let server = TcpStream::connect(target)?;
                server.set_nodelay(true)?;
                server.set_read_timeout(Some(GLANCE))?;
                server.set_write_timeout(Some(GLANCE))?;
                let (shared, fault_of_up) = (Arc::clone(&self), fault.clone());
                let (from, to) = (client.try_clone()?, server.try_clone()?);
                let up = thread::spawn(move || drop(shared.up(from, to, &fault_of_up)));
                let down = self.down(server, client, fault);
                drop(up.join());
                down
            }
        }
    }

    /// Passes on what the client says. Both ends are closed when one is.
    fn up(&self, mut from: TcpStream, mut to: TcpStream, fault: &Fault) -> std::io::Result<()> {
        let passed = self.pass_up(&mut from, &mut to, fault);
        for end in [from, to] {
            drop(end.shutdown(Shutdown::Both));
        }
        passed
    }

    fn pass_up(
        &self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        fault: &Fault,
    ) -> std::io::Result<()> {
        let (mut piece, mut said) = (vec![0; PIECE], 0);
        loop {
            let read = self.read(from, &mut piece)?;
            let piece = &piece[..read];
            let cut = if let Fault::CutUp(bytes) = fault {
                bytes.saturating_sub(said)
            } else {
                u64::MAX
            };
            let passing = usize::try_from(cut).unwrap_or(usize::MAX).min(read);
            self.write(to, &piece[..passing])?;
            said += read as u64;
            self.up.fetch_max(said, Ordering::Relaxed);
            if passing < read {
                return Ok(());
            }
        }
    }

    fn down(&self, mut from: TcpStream, mut to: TcpStream, fault: &Fault) -> std::io::Result<()> {
        let passed = self.pass_down(&mut from, &mut to, fault);
        for end in [from, to] {
            drop(end.shutdown(Shutdown::Both));
        }
        passed
    }

    fn pass_down(
        &self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        fault: &Fault,
    ) -> std::io::Result<()> {
        let (mut piece, mut said, mut pieces) = (vec![0; PIECE], 0, 0);
        loop {
            if let Fault::Flood(after, blocks) = fault
                && pieces == *after
            {
                return self.flood(to, blocks);
            }
            let read = self.read(from, &mut piece)?;
            let piece = &mut piece[..read];
            match fault {
                Fault::CutDown(bytes) if said + read as u64 > *bytes => {
                    let passing = usize::try_from(bytes - said).unwrap_or(usize::MAX);
                    return self.write(to, &piece[..passing]);
                }
                Fault::Flip(at, mask) if (said..said + read as u64).contains(at) => {
                    piece[usize::try_from(at - said).unwrap_or(0)] ^= mask;
                    self.write(to, piece)?;
                }
                Fault::Drip(pause) => {
                    for byte in piece {
                        thread::sleep(*pause);
                        self.write(to, &[*byte])?;
                    }
                }
                _ => self.write(to, piece)?,
            }
            said += read as u64;
            pieces += 1;
            self.down.fetch_max(said, Ordering::Relaxed);
        }
    }

    /// Sends without end, and takes whatever comes.
    fn flood(&self, client: &TcpStream, blocks: &Blocks) -> std::io::Result<()> {
        let (mut reading, mut writing) = (client.try_clone()?, client.try_clone()?);
        thread::scope(|scope| {
            scope.spawn(move || while self.read(&mut reading, &mut [0; 4096]).is_ok() {});
            for n in 0.. {
                let block = blocks(n);
                if block.is_empty() {
                    thread::sleep(GLANCE);
                }
                let written = self.write(&mut writing, &block);
                if written.is_err() {
                    drop(writing.shutdown(Shutdown::Both));
                    return written;
                }
            }
            Ok(())
        })
    }

    fn discard(&self, mut client: TcpStream) -> std::io::Result<()> {
        client.set_read_timeout(Some(GLANCE))?;
        loop {
            self.read(&mut client, &mut [0; 4096])?;
        }
    }

    /// An error at the end of the stream, and when the server ends.
    fn read(&self, from: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match from.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if is_time_out(&error) && !self.ends() => {}
                read => return read,
            }
        }
    }

    fn write(&self, to: &mut TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
        if self.ends() {
            return Err(ErrorKind::TimedOut.into());
        }
        while !bytes.is_empty() {
            match to.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if is_time_out(&error) && !self.ends() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn is_time_out(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
