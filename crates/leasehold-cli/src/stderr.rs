//! Standard error, without waiting for whoever reads it: a pipe that nobody empties must not keep
//! the command from its work.

use std::{
    io::{self, Write},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use leasehold::text::Escaped;

/// Lines that wait to be written. More are lost.
const ROOM: usize = 4096;
/// How long the end of the command waits at most for its last lines to be written.
const PATIENCE: Duration = Duration::from_secs(1);

static LINES: OnceLock<Sender<Order>> = OnceLock::new();
static WAITING: AtomicUsize = AtomicUsize::new(0);

enum Order {
    Write(Vec<u8>),
    /// Tell when all before it is written.
    Flush(Sender<()>),
}

/// Writes what is given in one piece as one line, soon. What does not print is escaped: names,
/// labels and the texts of servers are in it.
#[derive(Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if WAITING.fetch_add(1, Ordering::Relaxed) < ROOM {
            let text = String::from_utf8_lossy(bytes);
            let line = text.strip_suffix('\n').unwrap_or(&text);
            order(Order::Write(format!("{}\n", Escaped(line)).into_bytes()));
        } else {
            WAITING.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until all is written, but not for ever.
pub(crate) fn flush() {
    if LINES.get().is_some() {
        let (done, written) = channel();
        order(Order::Flush(done));
        // Late or never: nobody reads.
        written.recv_timeout(PATIENCE).ok();
    }
}

fn order(order: Order) {
    let lines = LINES.get_or_init(|| {
        let (lines, orders) = channel();
        // A machine that has no room for a thread gets no words.
        drop(
            thread::Builder::new()
                .name(String::from("stderr"))
                .spawn(move || obey(&orders)),
        );
        lines
    });
    drop(lines.send(order));
}

fn obey(orders: &Receiver<Order>) {
    for order in orders {
        match order {
            Order::Write(bytes) => {
                // A closed standard error must not end what runs under the lock.
                drop(io::stderr().write_all(&bytes));
                WAITING.fetch_sub(1, Ordering::Relaxed);
            }
            Order::Flush(done) => drop(done.send(())),
        }
    }
}
