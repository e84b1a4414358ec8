//! [`NotificationBackoff`]: delays attempts after notifications that report no change.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use leasehold_core::AcquisitionId;
use tokio::time::Instant;

use crate::reply::ObservedHolder;

/// The first and the longest delay. The delay doubles with each needless attempt.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// The age from which a refusal is ignored. Waiters make an attempt every two seconds anyway, so an
/// older refusal says nothing about notifications.
const RECENT: Duration = Duration::from_secs(2);
/// The largest difference, in milliseconds, between two readings of an unchanged expiry. The server
/// rounds its clock and the time to live separately.
const ROUNDING: u64 = 5;
/// The smallest number of remembered waiters at which old ones are removed.
const FEW: usize = 64;

/// A record of refusals that delays notifications which bring a waiter nothing new.
///
/// A server that tracks more keys than `tracking-table-max-keys` allows forgets some of them, and
/// reports each of these as changed. The notified waiter makes an attempt, is refused, and is
/// tracked again, which makes the server forget another key. If two attempts in a row are refused
/// because of the same holder, with a notification in between, the next notification is therefore
/// delayed.
#[derive(Debug, Default)]
pub(crate) struct NotificationBackoff {
    by_waiter: Mutex<Refusals>,
}

#[derive(Debug, Default)]
struct Refusals {
    last: HashMap<AcquisitionId, Refused>,
    /// The number of remembered waiters at which old ones are removed.
    limit: usize,
    warned: bool,
}

#[derive(Debug)]
struct Refused {
    found: ObservedHolder,
    at: Instant,
    /// Whether the waiter was notified after the refusal.
    notified: bool,
    pause: Duration,
}

impl NotificationBackoff {
    /// Records that a waiter makes its next attempt because it was notified. An attempt for another
    /// reason says nothing about notifications.
    pub(crate) fn notified(&self, waiter: AcquisitionId) {
        if let Some(refused) = self.lock().last.get_mut(&waiter) {
            refused.notified = true;
        }
    }

    /// Records a refusal and returns for how long after it a notification is delayed.
    pub(crate) fn refused(&self, waiter: AcquisitionId, found: ObservedHolder) -> Duration {
        let now = Instant::now();
        let mut refusals = self.lock();
        if refusals.last.len() >= refusals.limit {
            refusals.last.retain(|_, refused| now - refused.at < RECENT);
            refusals.limit = FEW.max(2 * refusals.last.len());
        }
        let before = refusals
            .last
            .get(&waiter)
            .filter(|before| now - before.at < RECENT);
        let pause = match before {
            Some(before) if before.notified && before.found.is_like(&found) => {
                (before.pause * 2).clamp(PAUSES.0, PAUSES.1)
            }
            _ => Duration::ZERO,
        };
        if pause == PAUSES.1 && !std::mem::replace(&mut refusals.warned, true) {
            tracing::warn!(
                "the server notifies waiters although nothing has changed, so they are notified up to a second late; if more \
                 keys are waited for than its `tracking-table-max-keys` allows, raise that"
            );
        }
        refusals.last.insert(
            waiter,
            Refused {
                found,
                at: now,
                notified: false,
                pause,
            },
        );
        pause
    }

    fn lock(&self) -> MutexGuard<'_, Refusals> {
        // Only a `tracing` subscriber can panic while the lock is held, and it leaves the state
        // intact.
        self.by_waiter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl ObservedHolder {
    fn is_like(&self, other: &Self) -> bool {
        self.holder == other.holder && self.ends.abs_diff(other.ends) <= ROUNDING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(holder: &str, ends: i64) -> ObservedHolder {
        ObservedHolder {
            holder: holder.into(),
            ends,
        }
    }

    /// Records a refusal and then a notification.
    fn refused(
        backoff: &NotificationBackoff,
        waiter: AcquisitionId,
        found: ObservedHolder,
    ) -> Duration {
        let pause = backoff.refused(waiter, found);
        backoff.notified(waiter);
        pause
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_asks_without_a_notification_does_not_pause() {
        let (backoff, waiter) = (NotificationBackoff::default(), AcquisitionId::random());
        for _ in 0..10 {
            assert_eq!(backoff.refused(waiter, found("a", 1_000)), Duration::ZERO);
        }
        backoff.notified(waiter);
        backoff.notified(AcquisitionId::random());
        assert_eq!(backoff.refused(waiter, found("a", 1_000)), PAUSES.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_is_refused_for_the_same_again_pauses_longer() {
        let (backoff, waiter) = (NotificationBackoff::default(), AcquisitionId::random());
        let pause = |ends| refused(&backoff, waiter, found("a", ends)).as_millis();
        assert_eq!(
            (pause(1_000), pause(1_001), pause(999), pause(1_000)),
            (0, 10, 20, 40)
        );
        for _ in 0..10 {
            pause(1_000);
        }
        assert_eq!(pause(1_000), 1_000);
        // The holder has renewed the lock.
        assert_eq!((pause(2_000), pause(2_000)), (0, 10));
        assert_eq!(
            backoff.refused(AcquisitionId::random(), found("a", 2_000)),
            Duration::ZERO
        );
        assert_eq!(refused(&backoff, waiter, found("b", 2_000)), Duration::ZERO);
        assert_eq!(refused(&backoff, waiter, found("b", 2_000)), PAUSES.0);
        tokio::time::advance(RECENT).await;
        assert_eq!(refused(&backoff, waiter, found("b", 2_000)), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_that_are_gone_are_forgotten() {
        let backoff = NotificationBackoff::default();
        for _ in 0..1_000 {
            tokio::time::advance(Duration::from_millis(100)).await;
            backoff.refused(AcquisitionId::random(), found("a", 1));
        }
        let remembered = backoff.by_waiter.lock().unwrap().last.len();
        assert!(remembered <= FEW, "{remembered}");
    }
}
