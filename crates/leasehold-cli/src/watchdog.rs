//! [`Watchdog`]: decides when a program must end because its lock is lost or about to be.

use std::time::Duration;

use leasehold::{LeaseInfo, LossReason};
use tokio::time::Instant;

/// The longest time that a program has between TERM and KILL once the lock is lost.
const MAX_GRACE: Duration = Duration::from_secs(1);
/// The longest time between two checks of the deadline. A timer does not count the time that the
/// machine was suspended.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// An action that ends the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask the program to end.
    Terminate,
    /// End the program.
    Kill,
}

/// A monitor of a lease.
///
/// It demands TERM when a third of the TTL is left and KILL when a tenth is left. After a loss
/// before the deadline it demands TERM at once and KILL after a short grace.
#[derive(Debug)]
pub(crate) struct Watchdog {
    lease: LeaseInfo,
    terminated: bool,
    killed: bool,
    kill_at: Option<Instant>,
}

impl Watchdog {
    pub(crate) fn new(lease: LeaseInfo) -> Self {
        Self {
            lease,
            terminated: false,
            killed: false,
            kill_at: None,
        }
    }

    /// Returns whether an action was demanded.
    pub(crate) fn has_acted(&self) -> bool {
        self.terminated
    }

    /// Waits for the next action. Each action is returned once.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn next(&mut self) -> Action {
        loop {
            if self.killed {
                std::future::pending::<()>().await;
            }
            let sleep = match self.check() {
                Ok(action) => return action,
                Err(sleep) => sleep,
            };
            let lost = self.lease.loss().is_some();
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                _ = self.lease.lost(), if !lost => {}
            }
        }
    }

    /// Returns the action that is due, or the time until the next check.
    fn check(&mut self) -> Result<Action, Duration> {
        let until_kill = match self.lease.loss() {
            // Another process may hold the lock now.
            Some(LossReason::Expired) => Duration::ZERO,
            Some(_) => {
                let grace = (self.lease.ttl().as_duration() / 10).min(MAX_GRACE);
                let at = *self.kill_at.get_or_insert_with(|| Instant::now() + grace);
                at.saturating_duration_since(Instant::now())
            }
            None => self
                .lease
                .remaining()
                .saturating_sub(self.lease.ttl().as_duration() / 10),
        };
        let until_term = match self.lease.loss() {
            Some(_) => Duration::ZERO,
            None => self
                .lease
                .remaining()
                .saturating_sub(self.lease.ttl().as_duration() / 3),
        };
        if until_kill.is_zero() {
            (self.terminated, self.killed) = (true, true);
            return Ok(Action::Kill);
        }
        if until_term.is_zero() && !self.terminated {
            self.terminated = true;
            return Ok(Action::Terminate);
        }
        let next = if self.terminated {
            until_kill
        } else {
            until_term
        };
        // A timer that rounds down fires early.
        Err(next.clamp(Duration::from_millis(1), MAX_SLEEP))
    }
}
