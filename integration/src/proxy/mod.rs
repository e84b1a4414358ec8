//! A TCP proxy before any server, that cuts, swallows, holds and delays.
//!
//! It answers the handshake and the acknowledgements of TCP itself, whatever it does to the bytes:
//! a client's `TCP_USER_TIMEOUT` does not notice a black hole here, as it does where packets are
//! dropped.

mod counters;
mod direction;
mod flow;
mod relay;
mod tripwire;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

pub use counters::{Counters, Traffic};
pub use direction::Direction;
use flow::Flow;
use relay::{Order, Relay, Shared};
use tripwire::{Tripwire, Unit};

use crate::{HarnessError, Result};

/// Its own thread carries out an order within microseconds; more than this is a defect.
const OBEDIENCE: Duration = Duration::from_secs(10);

/// A picked port can be taken by another test before the proxy has it.
const PORTS_TRIED: usize = 5;

/// Stands before a server at an address of its own. Runs on its own thread, so that it works while
/// a test blocks or ends its own runtime. Dropping it closes everything.
///
/// A *chunk* is what arrives in one piece: on the loopback, what the sender wrote at once, up to 64
/// KiB.
#[derive(Debug)]
#[must_use = "dropping it closes all connections"]
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    orders: UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts one before `target`, which need not be there yet: while it is not, connections are
    /// taken and closed.
    ///
    /// # Errors
    /// It cannot listen.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (orders, inbox) = unbounded_channel();
        let (report, started) = mpsc::channel();
        let relay = Relay {
            target,
            shared: Arc::clone(&shared),
            orders: inbox,
        };
        let thread = thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let outcome = runtime.and_then(|runtime| {
                    let listener = runtime.block_on(listen_somewhere())?;
                    // The asker waits for the report, so it is there.
                    drop(report.send(listener.local_addr()));
                    runtime.block_on(relay.run(listener));
                    Ok(())
                });
                if let Err(error) = outcome {
                    drop(report.send(Err(error)));
                }
            });
        let no_proxy = |error| HarnessError::caused_by("cannot start a proxy", error);
        let thread = thread.map_err(no_proxy)?;
        let addr = started
            .recv()
            .map_err(|_| HarnessError::new("the proxy has panicked"))?
            .map_err(no_proxy)?;
        Ok(Self {
            addr,
            shared,
            orders,
            thread: Some(thread),
        })
    }

    /// Where clients connect. The same after a cut.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes all connections, in both directions, and refuses new ones. In effect when this
    /// returns.
    pub fn cut(&self) {
        self.order(|done| Order::Cut { done });
    }

    /// Closes all connections, in both directions, and takes new ones. In effect when this returns.
    pub fn disconnect(&self) {
        self.order(|done| Order::Disconnect { done });
    }

    /// Undoes all of the faults: listens again, lets everything through at once, and takes down a
    /// trip-wire. Connections that have lost bytes to a black hole are closed, for nothing good
    /// could follow on them.
    ///
    /// # Panics
    /// After a cut, if another program has taken the port in between.
    pub fn heal(&self) {
        self.order(|done| Order::Heal { done });
    }

    /// From now on swallows what is sent that way, and says nothing: also not that one end has
    /// closed. New connections are taken and treated the same.
    pub fn blackhole(&self, direction: Direction) {
        self.shared.set_flow(direction, Flow::Swallow);
    }

    /// From now on keeps back what is sent that way, until [`heal`](Self::heal) delivers it, late
    /// and in order.
    pub fn hold(&self, direction: Direction) {
        self.shared.set_flow(direction, Flow::Hold);
    }

    /// From now on what is sent that way arrives so much later. Pieces do not wait for each other,
    /// as on a long line.
    pub fn delay(&self, direction: Direction, by: Duration) {
        self.shared.set_delay(direction, by);
    }

    /// Lets `bytes` more through that way, over all connections, then closes all connections; new
    /// ones are taken. With 0 they are closed when the next byte arrives, which is not passed on.
    /// Replaces an earlier trip-wire.
    pub fn cut_after_bytes(&self, direction: Direction, bytes: u64) {
        self.shared
            .set_tripwire(Tripwire::new(direction, Unit::Bytes, bytes));
    }

    /// Lets `chunks` more through that way, over all connections, then closes all connections; new
    /// ones are taken. With 0 they are closed when the next chunk arrives, which is not passed on.
    /// Replaces an earlier trip-wire.
    ///
    /// From the client to the server, 0 is a request that never arrives and 1 is a reply that never
    /// does.
    pub fn cut_after_chunks(&self, direction: Direction, chunks: u64) {
        self.shared
            .set_tripwire(Tripwire::new(direction, Unit::Chunks, chunks));
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    fn order(&self, order: impl FnOnce(mpsc::Sender<()>) -> Order) {
        let (done, outcome) = mpsc::channel();
        assert!(
            self.orders.send(order(done)).is_ok(),
            "the proxy has panicked"
        );
        match outcome.recv_timeout(OBEDIENCE) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => panic!("the proxy did not obey within {OBEDIENCE:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                panic!("the proxy could not obey; its thread says why")
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Both fail only when the thread has panicked, and it said so then.
        drop(self.orders.send(Order::End));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

async fn listen_somewhere() -> std::io::Result<TcpListener> {
    let mut tries = 0;
    loop {
        let port = leasehold_testkit::free_port()?;
        tries += 1;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Err(_) if tries < PORTS_TRIED => {}
            outcome => return outcome,
        }
    }
}
