//! [`Patience`]: time-outs that cost little.
//!
//! A timer of its own for each request may wake the runtime's driver each time that one is set:
//! measured on etcd, 4 µs of processor for each request, a fortieth of all; on Postgres, of two
//! workers the other one is woken for every third request. So one task looks at all that is
//! awaited, as long as anything is.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use pin_project_lite::pin_project;
use slab::Slab;
use tokio::time::{Instant, sleep};

use crate::panics::contain;

/// How often it looks: a time-out may come so much late.
const TICK: Duration = Duration::from_millis(20);
/// For how long it goes on looking when nothing is awaited: then the next need not start it.
const LINGER: Duration = Duration::from_secs(2);

/// Time-outs of the many requests of a backend.
///
/// They cost less than timers of the runtime, and come up to 20 ms late.
#[derive(Debug, Default)]
pub struct Patience(Mutex<Awaited>);

#[derive(Debug, Default)]
struct Awaited {
    /// Each is taken away by who awaits.
    until: Slab<(Instant, Waiter)>,
    looking: bool,
}

/// Who awaits an answer.
#[derive(Debug)]
enum Waiter {
    Waits(Waker),
    /// Its time is over.
    Over,
}

/// No answer came in time.
#[derive(Clone, Copy, Debug)]
pub struct Elapsed;

impl Patience {
    /// The answer, if it comes within this time of the first poll; [`Elapsed`] if it does not.
    ///
    /// To be polled within a runtime of tokio with its time enabled.
    ///
    /// # Cancel safety
    /// That of `answer`, which is to be dropped when its time is over.
    pub fn within<F: Future>(self: &Arc<Self>, patience: Duration, answer: F) -> Within<'_, F> {
        Within {
            answer,
            patience,
            entry: Entry { of: self, id: None },
        }
    }

    fn enter(self: &Arc<Self>, until: Instant, waker: Waker) -> usize {
        let mut awaited = self.lock();
        if !std::mem::replace(&mut awaited.looking, true) {
            // Ends when nothing has been awaited for a while.
            drop(tokio::spawn(look(Arc::clone(self))));
        }
        awaited.until.insert((until, Waiter::Waits(waker)))
    }

    fn lock(&self) -> MutexGuard<'_, Awaited> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pin_project! {
    /// See [`Patience::within`]. A type of its own, because an async function would keep the
    /// answer's future twice.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Within<'a, F> {
        #[pin]
        answer: F,
        patience: Duration,
        entry: Entry<'a>,
    }
}

impl<F: Future> Future for Within<'_, F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(answer) = this.answer.poll(cx) {
            this.entry.leave();
            return Poll::Ready(Ok(answer));
        }
        if this.entry.is_over(*this.patience, cx.waker()) {
            Poll::Ready(Err(Elapsed))
        } else {
            Poll::Pending
        }
    }
}

/// Its place among the awaited, once it waits.
#[derive(Debug)]
struct Entry<'a> {
    of: &'a Arc<Patience>,
    id: Option<usize>,
}

impl Entry<'_> {
    /// Whether its time is over. Otherwise the waker is told when it is.
    fn is_over(&mut self, patience: Duration, waker: &Waker) -> bool {
        let Some(id) = self.id else {
            self.id = Some(self.of.enter(Instant::now() + patience, waker.clone()));
            return false;
        };
        let mut awaited = self.of.lock();
        match &mut awaited.until[id].1 {
            Waiter::Over => true,
            Waiter::Waits(known) => {
                known.clone_from(waker);
                false
            }
        }
    }

    fn leave(&mut self) {
        if let Some(id) = self.id.take() {
            let left = self.of.lock().until.remove(id);
            // Not under the mutex: it holds a waker.
            drop(left);
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// If the runtime that looked ends, the next request looks on its own.
struct Looking {
    patience: Arc<Patience>,
    done: bool,
}

impl Drop for Looking {
    fn drop(&mut self) {
        if !self.done {
            self.patience.lock().looking = false;
        }
    }
}

async fn look(patience: Arc<Patience>) {
    let mut looking = Looking {
        patience: Arc::clone(&patience),
        done: false,
    };
    let mut idle_since = Instant::now();
    loop {
        sleep(TICK).await;
        let now = Instant::now();
        for waiter in over(&patience, now) {
            // Who cannot be woken keeps no other waiting.
            contain(|| waiter.wake());
        }
        let mut awaited = patience.lock();
        if !awaited.until.is_empty() {
            idle_since = now;
        } else if now.duration_since(idle_since) >= LINGER {
            // Under the mutex: who enters next sees that nobody looks.
            awaited.looking = false;
            looking.done = true;
            return;
        }
    }
}

/// Those whose time is over, to be woken.
fn over(patience: &Patience, now: Instant) -> Vec<Waker> {
    let mut awaited = patience.lock();
    let late = awaited
        .until
        .iter_mut()
        .filter(|(_, (until, _))| *until <= now);
    let wakers =
        late.filter_map(
            |(_, (_, waiter))| match std::mem::replace(waiter, Waiter::Over) {
                Waiter::Waits(waker) => Some(waker),
                Waiter::Over => None,
            },
        );
    wakers.collect()
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_time_is_given_and_a_late_one_is_not_awaited() {
        let patience = Arc::new(Patience::default());
        let second = Duration::from_secs(1);
        assert_eq!(patience.within(second, ready(7)).await.unwrap(), 7);
        let begun = Instant::now();
        let slow = patience.within(second, async {
            sleep(second / 2).await;
            8
        });
        assert_eq!(slow.await.unwrap(), 8);
        patience.within(second, pending::<()>()).await.unwrap_err();
        let took = begun.elapsed();
        assert!(
            took >= second * 3 / 2 && took <= second * 3 / 2 + TICK * 2,
            "{took:?}"
        );
        assert!(patience.lock().until.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn timer_task_stops_when_idle_and_starts_again() {
        let patience = Arc::new(Patience::default());
        for _ in 0..2 {
            patience.within(TICK, pending::<()>()).await.unwrap_err();
            assert!(patience.lock().looking);
            sleep(LINGER + TICK * 2).await;
            assert!(!patience.lock().looking);
        }
    }

    #[test]
    fn a_runtime_that_ends_leaves_it_ready_for_the_next() {
        let patience = Arc::new(Patience::default());
        for _ in 0..2 {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap();
            runtime
                .block_on(patience.within(TICK, pending::<()>()))
                .unwrap_err();
            drop(runtime);
            assert!(!patience.lock().looking);
        }
    }
}
