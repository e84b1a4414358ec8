//! What an attempt of unknown outcome may have left is removed, by its owner.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use leasehold_core::{Request, Result};
use redis::Pipeline;

use crate::{
    connection::Link,
    error::Effect,
    holder::Holder,
    keys::{Keys, Kind},
    lease,
    live::Live,
};

/// Between tries while the server cannot be reached, doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long beyond two TTLs to go on trying. A server that was stopped answers what it had received before when it goes
/// on, and only then does a grant's TTL begin.
const PATIENCE: Duration = Duration::from_secs(60);

/// Attempts whose outcome is unknown.
#[derive(Default)]
pub(crate) struct Orphans {
    list: Mutex<Orphaned>,
}

#[derive(Default)]
struct Orphaned {
    requests: Vec<Request>,
    working: bool,
}

impl Orphans {
    /// Removes what this request may have left, in the background.
    pub(crate) fn add(self: &Arc<Self>, link: &Arc<Link>, request: &Request) {
        let mut list = self.lock();
        list.requests.push(request.clone());
        if !std::mem::replace(&mut list.working, true) {
            drop(tokio::spawn(work(Arc::clone(self), Arc::clone(link))));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Orphaned> {
        // Nothing panics while it is held.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn work(orphans: Arc<Orphans>, link: Arc<Link>) {
    let mut pause = FIRST_PAUSE;
    let mut waited = Duration::ZERO;
    loop {
        let request = {
            let mut list = orphans.lock();
            match list.requests.pop() {
                Some(request) => request,
                None => {
                    list.working = false;
                    return;
                }
            }
        };
        let done = match link.live().await {
            Ok(live) => undo(&link, &live, &request).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => {
                tracing::debug!(key = %request.key(), owner = %request.owner(), "undid an attempt of unknown outcome");
                pause = FIRST_PAUSE;
                waited = Duration::ZERO;
            }
            Err(error) if error.is_retryable() && waited < request.ttl().as_duration() * 2 + PATIENCE => {
                orphans.lock().requests.push(request);
                tokio::time::sleep(pause).await;
                waited += pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => {
                tracing::warn!(key = %request.key(), %error, "could not undo an attempt; it expires within its TTL");
            }
        }
    }
}

async fn undo(link: &Link, live: &Live, request: &Request) -> Result<()> {
    lease::release(link, live, request).await?;
    stop_waiting(link, live, request, Holder::of(request)).await
}

/// Removes the registration of a waiter.
pub(crate) async fn stop_waiting(link: &Link, live: &Live, request: &Request, holder: Holder<'_>) -> Result<()> {
    let keys = Keys::new(&link.config.prefix, request.key());
    let mut pipeline = Pipeline::with_capacity(2);
    for kind in Kind::registrations(request.mode()) {
        pipeline.cmd("ZREM").arg(keys.derived(*kind)).arg(holder.parts());
    }
    let answers = live.send_all(&pipeline).await;
    let answers =
        answers.and_then(|answers| answers.into_iter().try_for_each(|answer| answer.extract_error().map(drop)));
    answers.map_err(|error| link.failed(live, error, "stop waiting", Effect::Writes))
}

impl fmt::Debug for Orphans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orphans").finish_non_exhaustive()
    }
}
