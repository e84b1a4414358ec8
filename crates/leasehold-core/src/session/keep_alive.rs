//! The task that keeps one session alive while acquisitions wait in it, and closes it when it is
//! idle.

use std::{
    sync::{Weak, atomic::Ordering},
    time::Duration,
};

use crate::{
    clock::Timestamp,
    panics::contained,
    session::session::{Session, SessionDriver},
    signal::LossReason,
};

/// A session is renewed when this part of its TTL has passed. Where a lock is held, the renewal
/// task renews the session slightly earlier.
const RENEW_AFTER: u32 = 3;
/// The delay after a failed renewal, as a part of the TTL.
const RETRY_AFTER: u32 = 20;
/// The time from an uncertain operation to the first reconciliation.
const FIRST_CHECK: Duration = Duration::from_millis(500);
/// Timers do not count the time of a suspend, so the clock is read at least this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

enum Action {
    Sleep(Duration),
    Renew,
    Close,
    End,
}

/// Renews a session while acquisitions wait in it and after uncertain operations. Closes it when it
/// is idle or has ended.
pub(super) async fn keep<D: SessionDriver>(session: Weak<Session<D>>) {
    loop {
        let Some(session) = session.upgrade() else {
            return;
        };
        let sleep = match session.next_action() {
            Action::Sleep(sleep) => sleep,
            Action::Renew => {
                if let Err(error) = contained(session.renew()).await {
                    tracing::debug!(target: "leasehold", %error, "session not renewed");
                }
                continue;
            }
            Action::Close | Action::End => {
                // The server may still have the session: closing it frees its locks at once.
                if let Err(error) = contained(session.close(LossReason::Expired)).await {
                    tracing::debug!(target: "leasehold", %error, "session not closed; it expires");
                }
                return;
            }
        };
        drop(session);
        tokio::time::sleep(sleep).await;
    }
}

impl<D: SessionDriver> Session<D> {
    /// Decides what to do now.
    fn next_action(&self) -> Action {
        let (now, ttl) = (self.time.now(), self.ttl().as_duration());
        let state = self.lock();
        if state.end.is_some() || self.deadline.get().is_past(now) {
            return Action::End;
        }
        if state.claims.is_empty() && now.since(state.idle_since) >= ttl {
            return Action::Close;
        }
        let longest = (ttl / 10).clamp(Duration::from_millis(1), LONGEST_SLEEP);
        let renewed = Timestamp::from_nanos(self.renewed.load(Ordering::Relaxed));
        let tried = Timestamp::from_nanos(self.tried.load(Ordering::Relaxed));
        let retry = if tried > renewed {
            tried + ttl / RETRY_AFTER
        } else {
            renewed
        };
        let renewal = (state.pending > 0).then(|| (renewed + ttl / RENEW_AFTER).max(retry));
        let check = state
            .uncertain_since
            .and_then(|since| self.next_check(since, tried));
        match renewal.into_iter().chain(check).min() {
            Some(due) if due <= now => Action::Renew,
            Some(due) => Action::Sleep(due.since(now).min(longest)),
            None => Action::Sleep(longest),
        }
    }

    /// Returns when to reconcile after an uncertain operation at `since` and a reconciliation at
    /// `last`. The request may arrive as late as the server or the network likes, so the time since
    /// the operation doubles. `None` once the usual renewals are as frequent.
    pub(super) fn next_check(&self, since: Timestamp, last: Timestamp) -> Option<Timestamp> {
        let age = last.since(since);
        (age < self.ttl().as_duration() / RENEW_AFTER).then(|| since + (2 * age).max(FIRST_CHECK))
    }
}
