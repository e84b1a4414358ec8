//! Lines on standard error that never block: a pipe that nobody reads must not stop the command.

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

use leasehold::backend::text::Escaped;

/// The most lines that wait to be written. Further lines are dropped.
const CAPACITY: usize = 4096;
/// How long [`flush`] waits at most.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static QUEUE: OnceLock<Sender<Job>> = OnceLock::new();
static QUEUED_LINES: AtomicUsize = AtomicUsize::new(0);

enum Job {
    Write(Vec<u8>),
    /// Reply when all lines before this job are written.
    Flush(Sender<()>),
}

/// A writer whose every write becomes one line, which a thread of its own writes soon.
///
/// Characters that do not print are escaped, because names, labels and messages of servers come
/// from other programs.
#[derive(Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if QUEUED_LINES.fetch_add(1, Ordering::Relaxed) < CAPACITY {
            let text = String::from_utf8_lossy(bytes);
            let line = text.strip_suffix('\n').unwrap_or(&text);
            enqueue(Job::Write(format!("{}\n", Escaped(line)).into_bytes()));
        } else {
            QUEUED_LINES.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes `message` as one line, without waiting. A prefix marks it as a message of this command.
pub(crate) fn report(message: &str) {
    let line = format!("leasehold: {}\n", message.replace(['\n', '\r'], " "));
    drop(Stderr.write_all(line.as_bytes()));
}

/// Waits until all lines are written, for a second at most.
pub(crate) fn flush() {
    if QUEUE.get().is_some() {
        let (done, written) = channel();
        enqueue(Job::Flush(done));
        // A time-out means that nobody reads.
        written.recv_timeout(FLUSH_TIMEOUT).ok();
    }
}

fn enqueue(job: Job) {
    let queue = QUEUE.get_or_init(|| {
        let (queue, jobs) = channel();
        // Without a thread there are no messages, and the program still runs.
        drop(
            thread::Builder::new()
                .name(String::from("stderr"))
                .spawn(move || execute(&jobs)),
        );
        queue
    });
    drop(queue.send(job));
}

fn execute(jobs: &Receiver<Job>) {
    for job in jobs {
        match job {
            Job::Write(bytes) => {
                // A closed standard error must not end the program that holds the lock.
                drop(io::stderr().write_all(&bytes));
                QUEUED_LINES.fetch_sub(1, Ordering::Relaxed);
            }
            Job::Flush(done) => drop(done.send(())),
        }
    }
}
