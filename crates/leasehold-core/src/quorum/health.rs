//! [`Health`]: whether a node answers.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::clock::Timestamp;

/// The shortest and the longest delay between two requests to a node that does not answer. The
/// delay doubles.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// The health of one node.
///
/// A node that failed or did not answer in time is *suspect*. Only one request at a time is sent to
/// a suspect node, so that a node which accepts everything and answers nothing delays nobody.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Can be read without locking the mutex.
    suspect: AtomicBool,
    state: Mutex<SuspectState>,
}

#[derive(Debug, Default)]
struct SuspectState {
    problem: String,
    probed: bool,
    next: Timestamp,
    pause: Duration,
}

impl Health {
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    /// Returns whether to send a request to the node now. For a suspect node, `true` reserves its
    /// only request, which must end with [`answered`](Self::answered) or [`failed`](Self::failed).
    pub(super) fn may_ask(&self, now: Timestamp) -> bool {
        if !self.is_suspect() {
            return true;
        }
        let mut state = self.lock();
        let may = !state.probed && now >= state.next;
        state.probed |= may;
        may
    }

    /// Records an answer of any kind. Returns whether the node was suspect.
    pub(super) fn answered(&self) -> bool {
        if !self.is_suspect() {
            return false;
        }
        *self.lock() = SuspectState::default();
        self.suspect.swap(false, Ordering::AcqRel)
    }

    /// Records a failure. Returns whether the node becomes suspect by it.
    pub(super) fn failed(&self, now: Timestamp, problem: String) -> bool {
        let mut state = self.lock();
        state.problem = problem;
        state.probed = false;
        state.pause = (state.pause * 2).clamp(PAUSES.0, PAUSES.1);
        state.next = now + state.pause;
        !self.suspect.swap(true, Ordering::AcqRel)
    }

    /// Records that the node has not answered in time, although it still may. Returns whether the
    /// node becomes suspect by it.
    pub(super) fn late(&self, problem: impl FnOnce() -> String) -> bool {
        if self.is_suspect() {
            return false;
        }
        let mut state = self.lock();
        state.problem = problem();
        // The late request counts as the one that the suspect node may have.
        state.probed = true;
        !self.suspect.swap(true, Ordering::AcqRel)
    }

    /// Returns the problem of a suspect node.
    pub(super) fn problem(&self) -> Option<String> {
        self.is_suspect().then(|| self.lock().problem.clone())
    }

    fn lock(&self) -> MutexGuard<'_, SuspectState> {
        // No code panics while the mutex is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn failed_node_is_probed_by_one_request_with_backoff() {
        let health = Health::default();
        assert!(health.may_ask(at(0)) && health.may_ask(at(0)));
        assert!(health.failed(at(0), "refused".into()));
        assert!(!health.may_ask(at(9)));
        assert!(health.may_ask(at(10)) && !health.may_ask(at(10)));
        assert!(!health.failed(at(12), "refused".into()));
        assert!(!health.may_ask(at(31)) && health.may_ask(at(32)));
        assert_eq!(health.problem().as_deref(), Some("refused"));
        assert!(health.answered());
        assert!(health.may_ask(at(32)) && health.may_ask(at(32)) && health.problem().is_none());
    }

    #[test]
    fn silent_node_is_skipped_until_it_answers_or_fails() {
        let health = Health::default();
        assert!(health.late(|| "silent".into()) && !health.late(|| "silent".into()));
        assert!(!health.may_ask(at(1_000_000)));
        assert!(!health.failed(at(0), "gone".into()));
        assert!(health.may_ask(at(10)));
        assert!(health.answered() && !health.answered());
    }
}
