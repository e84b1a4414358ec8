//! A TCP proxy that cuts, swallows, holds back and delays traffic to any server.
//!
//! The proxy's kernel still completes TCP handshakes and acknowledges data. Unlike with dropped
//! packets, a client's `TCP_USER_TIMEOUT` therefore does not notice a black hole.

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

/// The limit for an order to take effect. It takes microseconds, so more than this is a defect.
const EFFECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Another test may take a chosen port before the proxy binds it.
const PORTS_TRIED: usize = 5;

/// A TCP proxy with an address of its own. It runs on its own thread, so it keeps working while a
/// test blocks or shuts down its runtime. Dropping it closes everything.
///
/// A *chunk* is the data of one read: on the loopback, usually what the sender wrote at once, up to
/// 64 KiB.
#[derive(Debug)]
#[must_use = "dropping it closes all connections"]
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    orders: UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy for `target`. While the target is not reachable, connections are accepted and
    /// closed.
    ///
    /// # Errors
    /// No port can be bound.
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
                    // The caller waits for the report, so the receiver exists.
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

    /// Returns the address for clients. It stays the same after a cut.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes all connections in both directions and refuses new ones. In effect when this returns.
    pub fn cut(&self) {
        self.order(|done| Order::Cut { done });
    }

    /// Closes all connections in both directions and accepts new ones. In effect when this returns.
    pub fn disconnect(&self) {
        self.order(|done| Order::Disconnect { done });
    }

    /// Removes all faults: listens again, forwards everything immediately, and removes a trip-wire.
    /// Connections that have lost bytes to a black hole are closed, because their streams are
    /// broken.
    ///
    /// # Panics
    /// Panics if another program has taken the port after a cut.
    pub fn heal(&self) {
        self.order(|done| Order::Heal { done });
    }

    /// Swallows everything sent in this direction from now on, including the end of a connection.
    /// New connections are accepted and treated the same.
    pub fn blackhole(&self, direction: Direction) {
        self.shared.set_flow(direction, Flow::Swallow);
    }

    /// Holds back everything sent in this direction until [`heal`](Self::heal) delivers it in
    /// order.
    pub fn hold(&self, direction: Direction) {
        self.shared.set_flow(direction, Flow::Hold);
    }

    /// Delays everything sent in this direction from now on. Chunks do not wait for each other, as
    /// on a long-distance line.
    pub fn delay(&self, direction: Direction, by: Duration) {
        self.shared.set_delay(direction, by);
    }

    /// Forwards `bytes` more in this direction, over all connections, then closes all connections
    /// and accepts new ones. With 0, connections are closed when the next byte arrives, which is
    /// not forwarded. Replaces an earlier trip-wire.
    pub fn cut_after_bytes(&self, direction: Direction, bytes: u64) {
        self.shared
            .set_tripwire(Tripwire::new(direction, Unit::Bytes, bytes));
    }

    /// Forwards `chunks` more in this direction, over all connections, then closes all connections
    /// and accepts new ones. With 0, connections are closed when the next chunk arrives, which is
    /// not forwarded. Replaces an earlier trip-wire.
    ///
    /// From the client to the server, 0 loses a request and 1 loses its reply.
    pub fn cut_after_chunks(&self, direction: Direction, chunks: u64) {
        self.shared
            .set_tripwire(Tripwire::new(direction, Unit::Chunks, chunks));
    }

    /// Returns the statistics up to now.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }

    fn order(&self, order: impl FnOnce(mpsc::Sender<()>) -> Order) {
        let (done, outcome) = mpsc::channel();
        assert!(
            self.orders.send(order(done)).is_ok(),
            "the proxy has panicked"
        );
        match outcome.recv_timeout(EFFECT_TIMEOUT) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => {
                panic!("the proxy did not execute an order within {EFFECT_TIMEOUT:?}")
            }
            Err(RecvTimeoutError::Disconnected) => {
                panic!("the proxy could not execute an order; its thread printed the reason")
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Both calls fail only if the thread has panicked, which printed a message.
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
