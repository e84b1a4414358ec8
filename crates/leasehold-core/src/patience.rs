//! [`Patience`]: time-outs that cost little.
//!
//! A timer of its own for each request may wake the runtime's driver each time that one is set: measured on etcd, 4 µs of
//! processor for each request, a fortieth of all; on Postgres, of two workers the other one is woken for every third request.
//! So one task looks at all that is awaited, as long as anything is.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use slab::Slab;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

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
    /// Until when, and whom to tell: dropped, it tells. Each is taken away by who awaits.
    until: Slab<(Instant, Option<oneshot::Sender<()>>)>,
    looking: bool,
}

/// No answer came in time.
#[derive(Clone, Copy, Debug)]
pub struct Elapsed;

impl Patience {
    /// The answer, if it comes within this time.
    ///
    /// # Errors
    /// [`Elapsed`] if it does not.
    ///
    /// # Cancel safety
    /// That of `answer`, which is dropped when its time is over.
    pub async fn within<T>(
        self: &Arc<Self>,
        patience: Duration,
        answer: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        let (sender, over) = oneshot::channel();
        let entry = self.enter(Instant::now() + patience, sender);
        tokio::select! {
            biased;
            answer = answer => {
                drop(entry);
                Ok(answer)
            }
            _ = over => Err(Elapsed),
        }
    }

    fn enter(self: &Arc<Self>, until: Instant, sender: oneshot::Sender<()>) -> Entry<'_> {
        let mut awaited = self.lock();
        let id = awaited.until.insert((until, Some(sender)));
        if !std::mem::replace(&mut awaited.looking, true) {
            // Ends when nothing has been awaited for a while.
            drop(tokio::spawn(look(Arc::clone(self))));
        }
        Entry { patience: self, id }
    }

    fn lock(&self) -> MutexGuard<'_, Awaited> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Entry<'a> {
    patience: &'a Patience,
    id: usize,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.patience.lock().until.try_remove(self.id);
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
    let mut looking = Looking { patience: Arc::clone(&patience), done: false };
    let mut idle_since = Instant::now();
    loop {
        sleep(TICK).await;
        let now = Instant::now();
        let mut awaited = patience.lock();
        for (_, (until, tell)) in &mut awaited.until {
            if *until <= now {
                *tell = None;
            }
        }
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
        assert!(took >= second * 3 / 2 && took <= second * 3 / 2 + TICK * 2, "{took:?}");
        assert!(patience.lock().until.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn it_stops_looking_when_nothing_is_awaited_and_looks_again_when_something_is() {
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
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(patience.within(TICK, pending::<()>())).unwrap_err();
            drop(runtime);
            assert!(!patience.lock().looking);
        }
    }
}
