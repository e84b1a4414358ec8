use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::counters::Counters;
use super::direction::{Direction, Way};
use super::flow::{Flow, Lines};
use super::tripwire::{Tripwire, Verdict};

const CHUNK: usize = 64 * 1024;

/// The capacity, in chunks, of one direction of a connection. Large enough for any delay in a test.
const IN_FLIGHT: usize = 1024;

/// An order to the proxy's thread. `done` is notified when it is in effect.
#[derive(Debug)]
pub(crate) enum Order {
    Cut { done: Sender<()> },
    Disconnect { done: Sender<()> },
    Heal { done: Sender<()> },
    End,
}

/// State shared by the handle and the proxy's thread.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    lines: watch::Sender<Lines>,
    tripwire: Mutex<Option<Tripwire>>,
    counters: Mutex<Counters>,
    tripped: Notify,
}

impl Shared {
    pub(crate) fn set_flow(&self, direction: Direction, flow: Flow) {
        self.change(direction, |lines, way| lines[way].flow = flow);
    }

    pub(crate) fn set_delay(&self, direction: Direction, delay: Duration) {
        self.change(direction, |lines, way| lines[way].delay = delay);
    }

    pub(crate) fn set_tripwire(&self, tripwire: Tripwire) {
        *lock(&self.tripwire) = Some(tripwire);
    }

    pub(crate) fn counters(&self) -> Counters {
        *lock(&self.counters)
    }

    fn change(&self, direction: Direction, change: impl Fn(&mut Lines, Way)) {
        self.lines.send_modify(|lines| {
            Way::ALL
                .into_iter()
                .filter(|&way| direction.covers(way))
                .for_each(|way| change(lines, way));
        });
    }

    fn count(&self, count: impl FnOnce(&mut Counters)) {
        count(&mut lock(&self.counters));
    }

    /// Returns the verdict of the trip-wire on a chunk, and removes the trip-wire if it has
    /// triggered.
    fn judge(&self, way: Way, chunk: usize) -> Verdict {
        let mut tripwire = lock(&self.tripwire);
        let verdict = tripwire
            .as_mut()
            .map_or(Verdict::Pass, |tripwire| tripwire.judge(way, chunk));
        if verdict != Verdict::Pass {
            *tripwire = None;
        }
        verdict
    }
}

/// The state of the proxy's thread.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) target: SocketAddr,
    pub(crate) shared: Arc<Shared>,
    pub(crate) orders: UnboundedReceiver<Order>,
}

impl Relay {
    pub(crate) async fn run(mut self, listener: TcpListener) {
        let addr = listener
            .local_addr()
            .expect("a bound listener has an address");
        let mut listener = Some(listener);
        let mut links = JoinSet::new();
        let shared = Arc::clone(&self.shared);
        loop {
            // Orders are handled before connections that arrive at the same time.
            tokio::select! {
                biased;
                order = self.orders.recv() => {
                    let done = match order {
                        Some(Order::Cut { done }) => {
                            listener = None;
                            links.shutdown().await;
                            done
                        }
                        Some(Order::Disconnect { done }) => {
                            links.shutdown().await;
                            done
                        }
                        Some(Order::Heal { done }) => {
                            if listener.is_none() {
                                let again = TcpListener::bind(addr).await;
                                listener = Some(again.expect("another program has taken the proxy's port"));
                            }
                            *lock(&shared.tripwire) = None;
                            shared.lines.send_replace(Lines::default());
                            done
                        }
                        Some(Order::End) | None => return,
                    };
                    // The receiver is gone only if the handle has timed out, which it reported
                    // itself.
                    done.send(()).ok();
                }
                () = shared.tripped.notified() => links.shutdown().await,
                accepted = accept(listener.as_ref()) => {
                    // The client disconnected before it was accepted.
                    let Ok(client) = accepted else { continue };
                    links.spawn(Link::new(&shared).run(client, self.target));
                }
                Some(_) = links.join_next(), if !links.is_empty() => {}
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// A client's connection and the matching connection to the server.
struct Link {
    shared: Arc<Shared>,
    /// Whether a black hole has swallowed bytes of this link.
    lossy: AtomicBool,
}

impl Link {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.count(|counters| {
            counters.connections += 1;
            counters.open += 1;
        });
        Self {
            shared: Arc::clone(shared),
            lossy: AtomicBool::new(false),
        }
    }

    async fn run(self, client: TcpStream, target: SocketAddr) {
        let Ok(server) = TcpStream::connect(target).await else {
            return;
        };
        // Small chunks are forwarded as they arrived.
        if client
            .set_nodelay(true)
            .and_then(|()| server.set_nodelay(true))
            .is_err()
        {
            return;
        }
        let (client_says, to_client) = client.into_split();
        let (server_says, to_server) = server.into_split();
        let up = self.pump(Way::Up, client_says, to_server);
        let down = self.pump(Way::Down, server_says, to_client);
        tokio::select! {
            // Both directions have ended normally, or the first that broke ends the other.
            _ = async { tokio::try_join!(up, down) } => {}
            () = self.healed_after_loss() => {}
        }
    }

    /// Forwards data as the lines and the trip-wire allow.
    async fn pump(
        &self,
        way: Way,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
    ) -> Result<Ends, Broken> {
        let (sender, mut on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
        let reading = async move {
            let mut buffer = vec![0; CHUNK];
            // A reset connection is treated like a closed one.
            while let Ok(read @ 1..) = from.read(&mut buffer).await {
                if sender
                    .send((Instant::now(), buffer[..read].to_vec()))
                    .await
                    .is_err()
                {
                    break;
                }
            }
            drop(sender);
            from
        };
        let writing = async {
            while let Some((came, chunk)) = on_the_way.recv().await {
                if !self.let_through(way, came).await {
                    self.shared
                        .count(|counters| counters.traffic(way).swallowed += chunk.len() as u64);
                    continue;
                }
                let verdict = self.shared.judge(way, chunk.len());
                let passing = match verdict {
                    Verdict::Pass => chunk.len(),
                    Verdict::CutAfter(bytes) => bytes,
                };
                // Counted before it is sent, so that a test that has the answer sees the count.
                if passing > 0 {
                    self.shared.count(|counters| {
                        let traffic = counters.traffic(way);
                        traffic.chunks += 1;
                        traffic.bytes += passing as u64;
                    });
                }
                let written = to.write_all(&chunk[..passing]).await;
                if verdict != Verdict::Pass {
                    self.shared.count(|counters| counters.trips += 1);
                    self.shared.tripped.notify_one();
                    return Err(Broken);
                }
                if written.is_err() {
                    // The other end has gone. This end notices only if the opposite direction is
                    // let through.
                    if !self.let_through(way.back(), Instant::now()).await {
                        std::future::pending::<()>().await;
                    }
                    return Err(Broken);
                }
            }
            // The end of the stream is delayed or swallowed like any byte.
            if self.let_through(way, Instant::now()).await {
                to.shutdown().await.map_err(|_| Broken)
            } else {
                Ok(())
            }
        };
        let (from, outcome) = tokio::join!(reading, writing);
        outcome.map(|()| (from, to))
    }

    /// Waits until data that arrived at `came` may be forwarded; returns `false` if it is
    /// swallowed.
    async fn let_through(&self, way: Way, came: Instant) -> bool {
        let mut lines = self.shared.lines.subscribe();
        loop {
            let line = lines.borrow_and_update()[way];
            let due = came + line.delay;
            match line.flow {
                Flow::Swallow => {
                    self.lossy.store(true, Ordering::Relaxed);
                    return false;
                }
                Flow::Pass if due <= Instant::now() => return true,
                // The sender is in `self`, so the channel cannot be closed.
                Flow::Pass => tokio::select! {
                    () = sleep_until(due) => {}
                    _ = lines.changed() => {}
                },
                Flow::Hold => drop(lines.changed().await),
            }
        }
    }

    /// Waits until swallowing has stopped; never returns if nothing was swallowed.
    async fn healed_after_loss(&self) {
        let mut lines = self.shared.lines.subscribe();
        loop {
            let swallowing = {
                let lines = lines.borrow_and_update();
                Way::ALL
                    .into_iter()
                    .any(|way| lines[way].flow == Flow::Swallow)
            };
            if !swallowing && self.lossy.load(Ordering::Relaxed) {
                return;
            }
            drop(lines.changed().await);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.count(|counters| counters.open -= 1);
    }
}

/// The halves stay open until the link ends, because dropping one would notify its peer.
type Ends = (OwnedReadHalf, OwnedWriteHalf);

/// One direction of a link has failed.
struct Broken;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
