//! [`Trouble`]: faults that a waiter rides out.

use std::time::Duration;

use leasehold_core::{Error, Moment, Request, Result};

/// The pause after a fault while waiting, doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Faults since the last answer.
pub(crate) struct Trouble {
    since: Option<Moment>,
    pause: Duration,
}

impl Default for Trouble {
    fn default() -> Self {
        Self { since: None, pause: FIRST_PAUSE / 2 }
    }
}

impl Trouble {
    /// Goes on for up to a TTL: a restart of the server should not send every waiter home.
    pub(crate) fn ride_out(&mut self, error: Error, request: &Request) -> Result<()> {
        let now = request.now();
        let since = *self.since.get_or_insert(now);
        if !error.is_retryable() || now.since(since) >= request.ttl().as_duration() {
            return Err(error);
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }

    /// How long to wait before the next try.
    pub(crate) fn pause(&self) -> Duration {
        self.pause
    }
}
