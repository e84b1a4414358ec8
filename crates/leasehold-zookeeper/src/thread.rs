//! The thread of a connection.
//!
//! The driver reads its socket in a loop that does not yield while bytes arrive. On the runtime, a
//! server that sends events without a pause would occupy a worker thread, and no time-out on it
//! would fire. So each connection has a thread of its own, on which the driver also waits for its
//! socket. It costs no more than the driver's task on the runtime, because there another thread of
//! the driver waits for the socket and wakes the task.

use std::{pin::pin, time::Duration};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use leasehold_core::{Result, backend::support::DriverThread};
use spawns_core::{Spawn, Task};
use tokio::sync::{mpsc, oneshot};
use zookeeper_client::{Client, Error as Driver};

/// The tasks that the driver starts. They run on the thread that starts them.
struct Tasks(mpsc::UnboundedSender<Task>);

impl Spawn for Tasks {
    fn spawn(&self, task: Task) {
        // Without a receiver the thread ends, and no task would run on it.
        drop(self.0.send(task));
    }
}

/// Starts to connect, on a new thread that drives the session. Both end when the returned values
/// are dropped, or with the runtime.
///
/// The thread pauses once the runtime has run nothing for two thirds of `session`. No lock is
/// renewed then, and the server must free them as if the process had stopped.
pub(crate) fn connect(
    session: Duration,
    connecting: impl Future<Output = Result<Client, Driver>> + Send + 'static,
) -> Result<(DriverThread, oneshot::Receiver<Result<Client, Driver>>)> {
    let (answer, answered) = oneshot::channel();
    let (beat, beats) = mpsc::channel(1);
    let thread = DriverThread::start("leasehold session", move || {
        let (tasks, started) = mpsc::unbounded_channel();
        let tasks = Tasks(tasks);
        let _spawner = spawns_core::enter(&tasks);
        async_io::block_on(while_heard(
            drive(connecting, answer, started),
            beats,
            session * 2 / 3,
        ));
    })?;
    drop(tokio::spawn(beat_on(beat, session / 6)));
    Ok((thread, answered))
}

/// Notifies the thread that the runtime runs, until the thread ends.
async fn beat_on(beat: mpsc::Sender<()>, pause: Duration) {
    while !beat.is_closed() {
        // A beat that was not received yet has the same effect.
        beat.try_send(()).unwrap_or(());
        tokio::select! {
            () = beat.closed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Drives `work` until it or the runtime ends. Pauses once no beat of the runtime has come for
/// `limit`.
///
/// A paused future is not dropped, because the driver panics if its session ends before its client.
async fn while_heard(
    work: impl Future<Output = ()>,
    mut beats: mpsc::Receiver<()>,
    limit: Duration,
) {
    let mut work = pin!(work);
    loop {
        let beat = tokio::select! {
            biased;
            () = &mut work => return,
            beat = beats.recv() => beat,
            _ = async_io::Timer::after(limit) => beats.recv().await,
        };
        if beat.is_none() {
            return;
        }
    }
}

async fn drive(
    connecting: impl Future<Output = Result<Client, Driver>>,
    mut answer: oneshot::Sender<Result<Client, Driver>>,
    mut started: mpsc::UnboundedReceiver<Task>,
) {
    let mut running = FuturesUnordered::new();
    let connected = {
        let mut connecting = pin!(connecting.fuse());
        loop {
            tokio::select! {
                biased;
                () = answer.closed() => return,
                Some(task) = started.recv() => running.push(Box::into_pin(task.future)),
                connected = &mut connecting => break connected,
                Some(()) = running.next(), if !running.is_empty() => {}
            }
        }
    };
    // Without a receiver the client is dropped, and the session ends.
    drop(answer.send(connected));
    while !(running.is_empty() && started.is_empty()) {
        tokio::select! {
            biased;
            Some(task) = started.recv() => running.push(Box::into_pin(task.future)),
            Some(()) = running.next(), if !running.is_empty() => {}
        }
    }
}
