//! [`Signal`]: the state that a request, its lease and its guard share.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{clock::Timestamp, error::Error};

/// Why a lease was lost.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::LossReason;
///
/// let guard = client.mutex("item/42").lock().await?;
/// client.close().await?;
/// assert_eq!(guard.loss(), Some(LossReason::ClientClosed));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum LossReason {
    /// The deadline passed before a renewal succeeded. After a graceful revocation, none does.
    Expired,
    /// The backend no longer has the lock of this holder. It was revoked at once, overwritten,
    /// deleted or evicted.
    Replaced,
    /// The session of the lease ended.
    SessionEnded,
    /// The backend lost its data.
    BackendReset,
    /// The client was closed, which released the lock.
    ClientClosed,
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its deadline passed before a renewal succeeded",
            Self::Replaced => "the backend no longer has the lock of this holder",
            Self::SessionEnded => "its session ended",
            Self::BackendReset => "the backend lost its data",
            Self::ClientClosed => "the client was closed",
        })
    }
}

pub(crate) const REASONS: [LossReason; 5] = [
    LossReason::Expired,
    LossReason::Replaced,
    LossReason::SessionEnded,
    LossReason::BackendReset,
    LossReason::ClientClosed,
];

/// Another acquisition was known to hold the lock.
const CONTENDED: u16 = 0x400;
/// The backend has failed since its last answer.
const FAULTY: u16 = 0x200;
const HELD: u16 = 0x100;
const CANCELLED: u16 = 0x80;
const RELEASED: u16 = 0x40;
/// The low bits: zero, or the index of the reason in [`REASONS`] plus one.
const REASON: u16 = 0x0f;

/// The state of one acquisition and its lease, with a notification of its changes: contended,
/// failing, cancelled, held, lost or released.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    state: AtomicU16,
    changed: Notify,
    fault: Mutex<Option<Fault>>,
}

/// The faults since the backend last answered.
#[derive(Debug)]
struct Fault {
    since: Timestamp,
    last: Error,
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
        self.until(|state| (state & CANCELLED != 0).then_some(()))
            .await;
    }

    /// Records that the backend answered and that another acquisition holds the lock. This clears
    /// the recorded fault.
    pub(crate) fn set_contended(&self) {
        if self.state.fetch_or(CONTENDED, Ordering::AcqRel) & FAULTY != 0 {
            let mut fault = self.lock_fault();
            self.state.fetch_and(!FAULTY, Ordering::AcqRel);
            *fault = None;
        }
    }

    /// Returns whether the backend has ever given this answer.
    pub(crate) fn is_contended(&self) -> bool {
        self.state.load(Ordering::Acquire) & CONTENDED != 0
    }

    /// Records a fault. Returns the time of the first fault since the backend's last answer.
    pub(crate) fn note_fault(&self, error: Error, now: Timestamp) -> Timestamp {
        let mut fault = self.lock_fault();
        self.state.fetch_or(FAULTY, Ordering::AcqRel);
        let since = fault.as_ref().map_or(now, |fault| fault.since);
        *fault = Some(Fault { since, last: error });
        since
    }

    /// Returns the last fault, if the backend has not answered since.
    pub(crate) fn fault(&self) -> Option<Error> {
        self.fault_as(|fault| fault.last.clone())
    }

    fn fault_as<T>(&self, read: impl FnOnce(&Fault) -> T) -> Option<T> {
        let faulty = self.state.load(Ordering::Acquire) & FAULTY != 0;
        if faulty {
            self.lock_fault().as_ref().map(read)
        } else {
            None
        }
    }

    fn lock_fault(&self) -> MutexGuard<'_, Option<Fault>> {
        // No code panics while the mutex is locked.
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the lock was granted.
    pub(crate) fn set_held(&self) {
        self.state.fetch_or(HELD, Ordering::AcqRel);
    }

    /// Returns whether the lock is known to have been held after `since`, by this acquisition or
    /// by another.
    pub(crate) fn excludes_others_after(&self, since: Timestamp) -> bool {
        let state = self.state.load(Ordering::Acquire);
        match state & (HELD | CONTENDED) {
            CONTENDED => self
                .fault_as(|fault| fault.since)
                .is_none_or(|fault| fault > since),
            0 => false,
            _ => is_live(state),
        }
    }

    /// Marks the lease as lost. Returns `false` if it is already lost or released.
    pub(crate) fn lose(&self, reason: LossReason) -> bool {
        let code = REASONS
            .iter()
            .position(|r| *r == reason)
            .map_or(1, |at| at as u16 + 1);
        self.end(code)
    }

    /// Marks the lease as released. Returns `false` if it is already lost or released.
    pub(crate) fn release(&self) -> bool {
        self.end(RELEASED)
    }

    fn end(&self, code: u16) -> bool {
        let ended = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                is_live(state).then_some(state | code)
            })
            .is_ok();
        if ended {
            self.changed.notify_waiters();
        }
        ended
    }

    /// Returns whether the lease is neither lost nor released.
    pub(crate) fn is_live(&self) -> bool {
        is_live(self.state.load(Ordering::Acquire))
    }

    pub(crate) fn loss(&self) -> Option<LossReason> {
        loss_of(self.state.load(Ordering::Acquire))
    }

    /// Waits until the lease is lost or released. Returns the reason of a loss.
    pub(crate) async fn ended(&self) -> Option<LossReason> {
        self.until(|state| (!is_live(state)).then(|| loss_of(state)))
            .await
    }

    async fn until<T>(&self, read: impl Fn(u16) -> Option<T>) -> T {
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

fn is_live(state: u16) -> bool {
    state & (RELEASED | REASON) == 0
}

fn loss_of(state: u16) -> Option<LossReason> {
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
