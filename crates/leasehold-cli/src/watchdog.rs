//! When a program must end for its lock's sake.

use std::time::Duration;

use leasehold::{LeaseInfo, LossReason};
use tokio::time::Instant;

/// The most that a program has between TERM and KILL once the lock is gone.
const LONGEST_GRACE: Duration = Duration::from_secs(1);
/// How often the deadline is looked at, at least: a sleep does not count the time that the machine
/// was suspended.
const LONGEST_NAP: Duration = Duration::from_secs(1);

/// What is to be done about the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Ask it to end.
    Terminate,
    /// End it.
    Kill,
}

/// Watches a lease: TERM with a third of the TTL left, KILL with a tenth left, or soon after the
/// lock was taken away.
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

    /// Whether an order was given.
    pub(crate) fn has_barked(&self) -> bool {
        self.terminated
    }

    /// The next order. May be dropped and called again; an order that was returned is not given
    /// again.
    pub(crate) async fn next(&mut self) -> Order {
        loop {
            if self.killed {
                std::future::pending::<()>().await;
            }
            let nap = match self.judge() {
                Ok(order) => return order,
                Err(nap) => nap,
            };
            let lost = self.lease.loss().is_some();
            tokio::select! {
                () = tokio::time::sleep(nap) => {}
                _ = self.lease.lost(), if !lost => {}
            }
        }
    }

    /// An order, or how long there is none.
    fn judge(&mut self) -> Result<Order, Duration> {
        let until_kill = match self.lease.loss() {
            // Over: another may hold it now.
            Some(LossReason::Expired) => Duration::ZERO,
            Some(_) => {
                let grace = (self.lease.ttl().as_duration() / 10).min(LONGEST_GRACE);
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
            return Ok(Order::Kill);
        }
        if until_term.is_zero() && !self.terminated {
            self.terminated = true;
            return Ok(Order::Terminate);
        }
        let next = if self.terminated {
            until_kill
        } else {
            until_term
        };
        // A timer may be early by what it rounds.
        Err(next.clamp(Duration::from_millis(1), LONGEST_NAP))
    }
}
