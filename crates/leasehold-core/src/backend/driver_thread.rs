//! Threads for drivers that may never yield.
//!
//! A driver that reads its socket in a loop without yielding does not return from a poll while the
//! server sends faster than the driver reads. It then blocks all other tasks of its runtime thread,
//! timeouts included. Such a driver therefore connects on a thread of its own, which is abandoned
//! if it does not return.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    error::{Error, ErrorKind, Result},
    panics::contained,
};

/// The maximum number of abandoned threads. Each may keep a core busy for as long as its server
/// sends.
const MAX_ABANDONED: usize = 64;

static ABANDONED: AtomicUsize = AtomicUsize::new(0);

/// A thread for a driver that may never yield. Dropping the handle abandons the thread, which ends
/// when its work ends.
///
/// ```
/// use leasehold_core::backend::support::DriverThread;
///
/// let (answer, answered) = std::sync::mpsc::channel();
/// let thread = DriverThread::start("answers", move || drop(answer.send(7)))?;
/// assert_eq!(answered.recv(), Ok(7));
/// drop(thread);
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping it abandons the thread"]
pub struct DriverThread(Arc<Thread>);

/// The state shared by the thread and its owner, both of which mark it when they are dropped.
#[derive(Debug, Default)]
struct Thread {
    /// Whether one of the two has been dropped.
    one_dropped: AtomicBool,
}

impl Thread {
    fn is_second(&self) -> bool {
        self.one_dropped.swap(true, Ordering::AcqRel)
    }
}

/// The thread's half. It is dropped when the thread ends, also by a panic.
struct Running(Arc<Thread>);

impl DriverThread {
    /// Starts `work` on a new thread. Its `tracing` events go to the subscriber of the caller.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Unavailable`] if too many abandoned threads are still running, or if
    /// the operating system cannot start a thread.
    pub fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<Self> {
        if ABANDONED.load(Ordering::Acquire) >= MAX_ABANDONED {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{MAX_ABANDONED} abandoned connections are still busy, because their servers send without a pause; check which \
                     server listens at the address"
                ),
            ));
        }
        let thread = Arc::<Thread>::default();
        let running = Running(Arc::clone(&thread));
        let events = tracing::dispatcher::get_default(Clone::clone);
        let started = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _running = running;
            tracing::dispatcher::with_default(&events, work);
        });
        let started = started.map(drop);
        started.map_err(|error| {
            Error::new(
                ErrorKind::Unavailable,
                "the operating system cannot start a thread for a connection",
            )
            .with_source(error)
        })?;
        Ok(Self(thread))
    }
}

impl Drop for DriverThread {
    fn drop(&mut self) {
        // Count the thread before it can observe that it was abandoned.
        ABANDONED.fetch_add(1, Ordering::AcqRel);
        if self.0.is_second() {
            ABANDONED.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.is_second() {
            ABANDONED.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Runs `work` on a thread of its own, with the I/O and the timers of the current runtime.
///
/// # For implementors
/// Use it for work of a driver that may never yield, such as connecting. The work may take as long
/// as its own timeouts allow. It is abandoned if one poll of it takes longer than `max_poll`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::{thread, time::Duration};
/// use leasehold_core::{ErrorKind, backend::support::on_driver_thread};
///
/// let never_yields = async {
///     thread::sleep(Duration::from_secs(2));
///     Ok(())
/// };
/// let abandoned = on_driver_thread(Duration::from_millis(50), never_yields).await;
/// assert_eq!(abandoned.unwrap_err().kind(), ErrorKind::Unavailable);
/// # }
/// ```
///
/// # Errors
/// Returns [`ErrorKind::Unavailable`] if one poll took longer than `max_poll`, and otherwise the
/// errors of [`DriverThread::start`] and of `work`.
///
/// # Cancel safety
/// If the future is dropped, `work` is dropped on its thread when it next yields.
pub async fn on_driver_thread<T: Send + 'static>(
    max_poll: Duration,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let (mut answer, mut answered) = oneshot::channel();
    let polls = Arc::<AtomicU64>::default();
    let (runtime, work) = (
        Handle::current(),
        Polled {
            work: contained(work),
            polls: Arc::clone(&polls),
        },
    );
    let _thread = DriverThread::start("leasehold connects", move || {
        runtime.block_on(async {
            let done = tokio::select! {
                biased;
                () = answer.closed() => return,
                done = work => done,
            };
            // This fails if the caller was dropped meanwhile.
            drop(answer.send(done));
        });
    })?;
    let mut before = 0;
    loop {
        match tokio::time::timeout(max_poll, &mut answered).await {
            Ok(Ok(done)) => return done,
            Ok(Err(_dropped)) => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the runtime is shutting down",
                ));
            }
            Err(_elapsed) => {
                let now = polls.load(Ordering::Acquire);
                if now == before && now % 2 == 1 {
                    let message = format!(
                        "the server keeps the driver busy for more than {max_poll:?} without a pause"
                    );
                    return Err(Error::new(ErrorKind::Unavailable, message));
                }
                before = now;
            }
        }
    }
}

pin_project! {
    /// A future that counts the start and the end of each poll. The count is odd during a poll.
    struct Polled<F> {
        #[pin]
        work: F,
        polls: Arc<AtomicU64>,
    }
}

impl<F: Future> Future for Polled<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.polls.fetch_add(1, Ordering::AcqRel);
        let polled = this.work.poll(cx);
        this.polls.fetch_add(1, Ordering::AcqRel);
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_that_never_yields_is_abandoned() {
        let (done, wait) = mpsc::channel::<()>();
        let abandoned = on_driver_thread(Duration::from_millis(20), async move {
            // Blocks until the test has ended.
            wait.recv().unwrap_or(());
            Ok(())
        });
        let error = abandoned.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("without a pause"), "{error}");
        drop(done);
    }

    #[tokio::test]
    async fn time_outs_of_the_caller_fire_while_work_does_not_yield() {
        let (done, wait) = mpsc::channel::<()>();
        let stuck = on_driver_thread(Duration::from_secs(3600), async move {
            wait.recv().unwrap_or(());
            Ok(())
        });
        tokio::time::timeout(Duration::from_millis(20), stuck)
            .await
            .unwrap_err();
        drop(done);
    }

    #[tokio::test]
    async fn work_that_yields_takes_as_long_as_it_likes() {
        let slow = async {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(7)
        };
        assert_eq!(
            on_driver_thread(Duration::from_millis(1), slow)
                .await
                .unwrap(),
            7
        );
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error() {
        let panics = on_driver_thread(Duration::from_secs(3600), async {
            panic!("made to panic") as Result<()>
        });
        assert_eq!(panics.await.unwrap_err().kind(), ErrorKind::Indeterminate);
    }
}
