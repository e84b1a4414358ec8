//! Threads for drivers that may never yield.
//!
//! A driver that reads its socket in a loop without a pause does not return from a poll while the
//! server sends faster than it reads. The runtime's thread is then lost to all other tasks, and
//! with it every time-out. So such a driver connects on a thread of its own, which is left behind
//! if it does not come back.

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

/// How many threads may be left behind at a time. Each may keep a core busy for as long as its
/// server sends.
const MOST: usize = 64;

static LEFT_BEHIND: AtomicUsize = AtomicUsize::new(0);

/// A thread for a driver that may never yield. Dropping this leaves the thread behind, to end when
/// it can.
///
/// ```
/// use leasehold_core::DriverThread;
///
/// let (answer, answered) = std::sync::mpsc::channel();
/// let thread = DriverThread::start("answers", move || drop(answer.send(7)))?;
/// assert_eq!(answered.recv(), Ok(7));
/// drop(thread);
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping it leaves the thread behind"]
pub struct DriverThread(Arc<Thread>);

/// Is dropped by the thread and by its owner.
#[derive(Debug, Default)]
struct Thread {
    /// One of the two has gone.
    half: AtomicBool,
}

impl Thread {
    fn is_second(&self) -> bool {
        self.half.swap(true, Ordering::AcqRel)
    }
}

/// Held by the thread until its end, also by a panic.
struct Running(Arc<Thread>);

impl DriverThread {
    /// Starts `work` on a thread of its own. Events of `tracing` go where those of the caller go.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if there are too many threads that were left behind and have not
    /// ended, or if the system starts no thread.
    pub fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<Self> {
        if LEFT_BEHIND.load(Ordering::Acquire) >= MOST {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{MOST} connections that were given up are still busy, because their servers send without a pause; look at \
                     what answers at the address"
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
                "the system starts no thread for a connection",
            )
            .with_source(error)
        })?;
        Ok(Self(thread))
    }
}

impl Drop for DriverThread {
    fn drop(&mut self) {
        // Counted before the thread can see that it was left behind.
        LEFT_BEHIND.fetch_add(1, Ordering::AcqRel);
        if self.0.is_second() {
            LEFT_BEHIND.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.is_second() {
            LEFT_BEHIND.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Does `work` on a thread of its own, with the I/O and the timers of the present runtime.
///
/// # For implementors
/// For a driver's work that may never yield, such as to connect. It may take as long as its own
/// time-outs allow. If one poll of it takes longer than `patience`, it is given up.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::{thread, time::Duration};
/// use leasehold_core::{ErrorKind, on_driver_thread};
///
/// let never_yields = async {
///     thread::sleep(Duration::from_secs(2));
///     Ok(())
/// };
/// let given_up = on_driver_thread(Duration::from_millis(50), never_yields).await;
/// assert_eq!(given_up.unwrap_err().kind(), ErrorKind::Unavailable);
/// # }
/// ```
///
/// # Errors
/// [`ErrorKind::Unavailable`] if one poll took longer than `patience`, or as
/// [`DriverThread::start`]; otherwise as `work`.
///
/// # Cancel safety
/// `work` is dropped, on its thread, when it next yields.
pub async fn on_driver_thread<T: Send + 'static>(
    patience: Duration,
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
            // Not taken any more if the caller has gone meanwhile.
            drop(answer.send(done));
        });
    })?;
    let mut before = 0;
    loop {
        match tokio::time::timeout(patience, &mut answered).await {
            Ok(Ok(done)) => return done,
            Ok(Err(_dropped)) => {
                return Err(Error::new(ErrorKind::Unavailable, "the runtime shuts down"));
            }
            Err(_elapsed) => {
                let now = polls.load(Ordering::Acquire);
                if now == before && now % 2 == 1 {
                    let message = format!(
                        "the server keeps the driver busy for more than {patience:?} without a pause"
                    );
                    return Err(Error::new(ErrorKind::Unavailable, message));
                }
                before = now;
            }
        }
    }
}

pin_project! {
    /// Counts its polls, and whether one is under way: then the number is odd.
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
    async fn work_that_never_yields_is_given_up() {
        let (done, wait) = mpsc::channel::<()>();
        let given_up = on_driver_thread(Duration::from_millis(20), async move {
            // Until the test is over.
            wait.recv().unwrap_or(());
            Ok(())
        });
        let error = given_up.await.unwrap_err();
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
            panic!("told to panic") as Result<()>
        });
        assert_eq!(panics.await.unwrap_err().kind(), ErrorKind::Indeterminate);
    }
}
