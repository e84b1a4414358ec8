//! [`NotificationBackoff`]: no attempt follows at once from a notification without a change.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use leasehold_core::AcquisitionId;
use tokio::time::Instant;

use crate::reply::ObservedHolder;

/// The pause after a needless attempt, doubled up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// A refusal that is older says nothing about what the next attempt follows from: waiters ask every
/// two seconds anyway.
const RECENT: Duration = Duration::from_secs(2);
/// How much the end of a grant seems to move if nobody moves it: the server's clock and its time to
/// live are rounded apart.
const ROUNDING: u64 = 5;
/// Up to so many waiters are remembered before those that are gone are looked for.
const FEW: usize = 64;

/// Delays the wake-ups of waiters to which notifications bring nothing new.
///
/// A server that has more waited-for keys than `tracking-table-max-keys` forgets some of them, and
/// says of each that it has changed. The waiter then asks, is refused, and is tracked again, for
/// which the server forgets another. Where two attempts in a row are refused for the same, with a
/// notification in between, the next one is heeded only after a pause.
#[derive(Debug, Default)]
pub(crate) struct NotificationBackoff {
    by_waiter: Mutex<Refusals>,
}

#[derive(Debug, Default)]
struct Refusals {
    last: HashMap<AcquisitionId, Refused>,
    /// How many may be remembered before old ones are removed.
    limit: usize,
    warned: bool,
}

#[derive(Debug)]
struct Refused {
    found: ObservedHolder,
    at: Instant,
    /// The waiter was notified since.
    notified: bool,
    pause: Duration,
}

impl NotificationBackoff {
    /// Notes that a waiter was notified, and asks for that. One that asks for another reason learns
    /// nothing about notifications.
    pub(crate) fn notified(&self, waiter: AcquisitionId) {
        if let Some(refused) = self.lock().last.get_mut(&waiter) {
            refused.notified = true;
        }
    }

    /// Notes a refusal. Returns for how long after it a notification must wait.
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
        // Nothing panics while it is held, but perhaps a subscriber; and then it is as good as
        // before.
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

    /// It is refused, and notified.
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
        // It was renewed.
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
