//! What one acquisition and its guard tell each other: cancelled, lost, released, and then whether anybody waits.

use std::{
    fmt,
    sync::atomic::{AtomicU8, Ordering},
};

use tokio::sync::Notify;

/// Why a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// Its deadline came before a renewal did.
    Expired,
    /// The backend no longer knows us as the holder: broken by an operator, overwritten, deleted or evicted.
    Replaced,
    /// The session that the lease belonged to is over.
    SessionEnded,
    /// The backend lost its memory.
    BackendReset,
    /// The client was closed and gave the lock back.
    ClientClosed,
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its deadline came before a renewal did",
            Self::Replaced => "the backend no longer knows us as the holder",
            Self::SessionEnded => "the session that it belonged to is over",
            Self::BackendReset => "the backend lost its memory",
            Self::ClientClosed => "the client was closed",
        })
    }
}

const REASONS: [LossReason; 5] = [
    LossReason::Expired,
    LossReason::Replaced,
    LossReason::SessionEnded,
    LossReason::BackendReset,
    LossReason::ClientClosed,
];

const CANCELLED: u8 = 0x80;
const RELEASED: u8 = 0x40;
const NOBODY_WAITS: u8 = 0x20;
/// The low bits: zero, or one more than the reason's place in [`REASONS`].
const REASON: u8 = 0x0f;

/// One byte of state and one place to wait for its changes, shared by a request, its lease and its guard.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    state: AtomicU8,
    changed: Notify,
}

impl Signal {
    pub(crate) fn cancel(&self) {
        self.state.fetch_or(CANCELLED, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.state.load(Ordering::Acquire) & CANCELLED != 0
    }

    pub(crate) async fn cancelled(&self) {
        self.until(|state| (state & CANCELLED != 0).then_some(())).await;
    }

    /// Marks as lost, unless it is lost or released already. Whether this call did it.
    pub(crate) fn lose(&self, reason: LossReason) -> bool {
        let code = REASONS.iter().position(|r| *r == reason).map_or(1, |at| at as u8 + 1);
        self.end(code)
    }

    /// Marks as released, unless it is lost or released already. Whether this call did it.
    pub(crate) fn release(&self) -> bool {
        self.end(RELEASED)
    }

    pub(crate) fn set_nobody_waits(&self) {
        // Nobody waits for this change.
        self.state.fetch_or(NOBODY_WAITS, Ordering::AcqRel);
    }

    pub(crate) fn nobody_waits(&self) -> bool {
        self.state.load(Ordering::Acquire) & NOBODY_WAITS != 0
    }

    fn end(&self, code: u8) -> bool {
        let ended = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                (state & (RELEASED | REASON) == 0).then_some(state | code)
            })
            .is_ok();
        if ended {
            self.changed.notify_waiters();
        }
        ended
    }

    /// Neither lost nor released.
    pub(crate) fn is_live(&self) -> bool {
        self.state.load(Ordering::Acquire) & (RELEASED | REASON) == 0
    }

    pub(crate) fn loss(&self) -> Option<LossReason> {
        loss_of(self.state.load(Ordering::Acquire))
    }

    /// Completes when it is lost or released.
    pub(crate) async fn ended(&self) -> Option<LossReason> {
        self.until(|state| (state & (RELEASED | REASON) != 0).then(|| loss_of(state))).await
    }

    async fn until<T>(&self, read: impl Fn(u8) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before the state is read, so that no change in between is missed.
            changed.as_mut().enable();
            if let Some(value) = read(self.state.load(Ordering::Acquire)) {
                return value;
            }
            changed.await;
        }
    }
}

fn loss_of(state: u8) -> Option<LossReason> {
    let code = usize::from(state & REASON);
    code.checked_sub(1).and_then(|at| REASONS.get(at).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts() {
        for reason in REASONS {
            let signal = Signal::default();
            assert!(signal.is_live());
            assert!(signal.lose(reason));
            assert!(!signal.lose(LossReason::Expired));
            assert!(!signal.release());
            assert_eq!(signal.loss(), Some(reason));
        }
        let signal = Signal::default();
        assert!(signal.release());
        assert!(!signal.lose(LossReason::Expired));
        assert_eq!(signal.loss(), None);
        assert!(!signal.is_live() && !signal.is_cancelled());
        signal.cancel();
        assert!(signal.is_cancelled());
    }
}
