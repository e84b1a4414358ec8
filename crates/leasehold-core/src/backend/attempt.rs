//! [`Attempt`] and [`Contention`]: the outcome of one attempt.

use std::{
    fmt::{self, Debug},
    sync::Arc,
    time::Duration,
};

use crate::{
    backend::lease::{BoxFuture, Lease},
    fencing::FencingToken,
};

/// The outcome of one attempt.
#[derive(Debug)]
pub enum Attempt {
    /// The lock is acquired.
    Granted(Arc<dyn Lease>),
    /// Another acquisition holds the lock.
    Contended(Contention),
}

/// A refusal, with what the backend knows about when to try again.
#[derive(Default)]
pub struct Contention {
    /// The time until the holder's grant ends unless it is renewed: the fallback if no `wake`
    /// comes. Without it only `wake` ends the wait. Omit it only if nothing but a change that
    /// completes `wake` can let the next attempt succeed.
    pub retry_after: Option<Duration>,
    /// The largest token that the backend has seen for this key.
    pub last_token: Option<FencingToken>,
    /// A future that completes when another attempt makes sense. It was armed *before* the attempt
    /// was sent, so that no release in between is missed. Dropping it disarms it.
    pub wake: Option<BoxFuture<'static, ()>>,
}

impl Contention {
    /// Returns a refusal without a wake-up: the next attempt is made after this time.
    #[must_use]
    pub fn retry_after(duration: Duration) -> Self {
        Self {
            retry_after: Some(duration),
            ..Self::default()
        }
    }
}

impl Debug for Contention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contention")
            .field("retry_after", &self.retry_after)
            .field("last_token", &self.last_token)
            .field("wake", &self.wake.is_some())
            .finish()
    }
}
