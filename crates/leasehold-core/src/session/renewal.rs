//! The renewal of a session.

use std::sync::{Arc, atomic::Ordering};

use crate::{
    clock::{Deadline, Timestamp},
    error::{Error, ErrorKind, Result},
    session::{
        reconcile,
        session::{Session, SessionDriver},
    },
    signal::LossReason,
};

/// An acquisition renews its session if the last renewal is older than this part of the TTL, so
/// that a new lock has nearly its whole TTL left.
const STALE_AFTER: u32 = 10;

impl<D: SessionDriver> Session<D> {
    /// Renews the session. Concurrent calls share one renewal.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Lost`] if the session has ended, which is final, and otherwise the
    /// driver's error.
    ///
    /// # Cancel safety
    /// Not cancel safe: the future must be driven to completion.
    pub async fn renew(&self) -> Result<()> {
        let asked = self.time.now();
        let mut last = self.renewal.lock().await;
        if let Some((sent, outcome)) = &*last
            && *sent >= asked
        {
            return outcome.clone();
        }
        if !self.is_live() {
            self.end(LossReason::Expired);
            return Err(over());
        }
        let sent = self.time.now();
        self.tried.store(sent.as_nanos(), Ordering::Relaxed);
        let outcome = match self.driver().renew(self.handle(), &self.time).await {
            Ok(deadline) => self.renewed_until(deadline, sent).await,
            Err(error) => {
                self.end_if_lost(&error);
                Err(error)
            }
        };
        *last = Some((sent, outcome.clone()));
        outcome
    }

    /// Moves the deadline after a renewal that was sent at `sent`, and reconciles.
    ///
    /// If reconciliation has failed for a whole TTL, it is tried before the deadline is moved, and
    /// the deadline stays if it fails again. The holders may have lost locks that the client cannot
    /// list.
    async fn renewed_until(&self, deadline: Deadline, sent: Timestamp) -> Result<()> {
        let overdue = self
            .lock()
            .unreconciled_since
            .is_some_and(|since| sent.since(since) >= self.ttl().as_duration());
        if overdue {
            reconcile::reconcile(self).await.map_err(|error| {
                let message =
                    "the session's locks could not be listed for a whole TTL; they are lost at their deadline";
                Error::new(ErrorKind::Unavailable, message).with_source(error)
            })?;
        }
        if !self.deadline.advance(deadline, self.time.now()) {
            self.end(LossReason::Expired);
            return Err(over());
        }
        self.renewed.store(sent.as_nanos(), Ordering::Relaxed);
        if !overdue {
            // `reconcile` logs the failure, and the next renewal takes it into account.
            drop(reconcile::reconcile(self).await);
        }
        // Reconciliation may have found that the session has ended.
        if self.is_live() { Ok(()) } else { Err(over()) }
    }

    /// Renews the session in the background, or before returning if less than half of its TTL is
    /// left.
    pub(super) async fn renew_if_stale(self: &Arc<Self>) -> Result<()> {
        let (now, ttl) = (self.time.now(), self.ttl().as_duration());
        let renewed = Timestamp::from_nanos(self.renewed.load(Ordering::Relaxed));
        if now.since(renewed) < ttl / STALE_AFTER {
            return Ok(());
        }
        if self.deadline.get().remaining(now) < ttl / 2 {
            return self.renew().await;
        }
        let tried = self.tried.swap(now.as_nanos(), Ordering::Relaxed);
        if now.since(Timestamp::from_nanos(tried)) >= ttl / STALE_AFTER {
            let session = Arc::clone(self);
            // The outcome is not needed: the acquisition reads the current deadline, and holders
            // renew.
            drop(tokio::spawn(async move { session.renew().await }));
        }
        Ok(())
    }
}

fn over() -> Error {
    Error::new(
        ErrorKind::Lost,
        "the session has ended: it was closed, or it was not renewed before its deadline",
    )
}
