//! A thread that starts all child processes of the harness.
//!
//! A child asks the kernel to be killed when its parent dies, so that a killed test run leaves no
//! servers behind. Linux ties this to the *thread* that started the child (prctl(2),
//! `PR_SET_PDEATHSIG`), and threads of tests and runtimes end early. A thread that lives as long as
//! the process therefore starts all children.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Sender};
use std::sync::{LazyLock, Mutex};
use std::thread;

type Order = (Command, Sender<io::Result<Child>>);

static NURSERY: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
    let (orders, inbox) = mpsc::channel::<Order>();
    thread::Builder::new()
        .name("spawner".to_owned())
        .spawn(move || {
            for (mut command, reply) in inbox {
                // The caller waits for the reply, so the receiver exists.
                drop(reply.send(command.spawn()));
            }
        })
        .expect("cannot start a thread");
    Mutex::new(orders)
});

/// Starts `command` on the thread that lives as long as this process.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    let (reply, answer) = mpsc::channel();
    let orders = NURSERY
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .clone();
    orders.send((command, reply)).map_err(io::Error::other)?;
    answer.recv().map_err(io::Error::other)?
}
