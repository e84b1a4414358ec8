//! [`Watchdog`]: decides when a program must end because one of its locks is lost or about to be.

use std::time::Duration;

use leasehold::{AllInfo, LeaseInfo, LossReason, Ttl};
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

/// A monitor of the leases of a program.
///
/// It demands TERM when a third of the TTL is left and KILL when a tenth is left. After a loss
/// before the deadline it demands TERM at once and KILL after a short grace.
#[derive(Debug)]
pub(crate) struct Watchdog {
    leases: AllInfo,
    terminated: bool,
    killed: bool,
    kill_at: Option<Instant>,
}

impl Watchdog {
    pub(crate) fn new(leases: AllInfo) -> Self {
        Self {
            leases,
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
            let lost = self.leases.loss().is_some();
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                _ = self.leases.lost(), if !lost => {}
            }
        }
    }

    /// Returns the action that is due, or the time until the next check.
    fn check(&mut self) -> Result<Action, Duration> {
        let leases = self.leases.leases();
        // All leases have the same TTL.
        let ttl = leases.first().map_or_else(Ttl::default, LeaseInfo::ttl);
        let ttl = ttl.as_duration();
        let held = leases.iter().filter(|lease| lease.loss().is_none());
        let remaining = held.map(LeaseInfo::remaining).min().unwrap_or(ttl);
        let (before_term, before_kill) = (
            remaining.saturating_sub(ttl / 3),
            remaining.saturating_sub(ttl / 10),
        );
        let losses = leases.iter().filter_map(LeaseInfo::loss);
        // An expired lease is the most urgent one: another process may hold its lock now.
        let loss = losses.max_by_key(|reason| *reason == LossReason::Expired);
        let (until_term, until_kill) = match loss {
            Some(LossReason::Expired) => (Duration::ZERO, Duration::ZERO),
            Some(_) => {
                let grace = (ttl / 10).min(MAX_GRACE);
                let at = *self.kill_at.get_or_insert_with(|| Instant::now() + grace);
                let grace = at.saturating_duration_since(Instant::now());
                (Duration::ZERO, grace.min(before_kill))
            }
            None => (before_term, before_kill),
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
