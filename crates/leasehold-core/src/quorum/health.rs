//! [`Health`]: whether a node answers.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::clock::Timestamp;

/// The pause between two questions to a node that does not answer, doubled up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// What is known of one node. One that failed or was silent for too long is *suspect*: it is asked
/// by one request at a time, so that a node which takes everything and answers nothing costs nobody
/// anything.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Readable without the lock.
    suspect: AtomicBool,
    trouble: Mutex<RetryBudget>,
}

#[derive(Debug, Default)]
struct RetryBudget {
    problem: String,
    probed: bool,
    next: Timestamp,
    pause: Duration,
}

impl Health {
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    /// Whether to ask it now. `true` for a suspect node makes this the one request; it must end
    /// with [`answered`](Self::answered) or [`failed`](Self::failed).
    pub(super) fn may_ask(&self, now: Timestamp) -> bool {
        if !self.is_suspect() {
            return true;
        }
        let mut trouble = self.lock();
        let may = !trouble.probed && now >= trouble.next;
        trouble.probed |= may;
        may
    }

    /// It answered, whatever the answer. Whether it had been suspect.
    pub(super) fn answered(&self) -> bool {
        if !self.is_suspect() {
            return false;
        }
        *self.lock() = RetryBudget::default();
        self.suspect.swap(false, Ordering::AcqRel)
    }

    /// It failed. Whether that is news.
    pub(super) fn failed(&self, now: Timestamp, problem: String) -> bool {
        let mut trouble = self.lock();
        trouble.problem = problem;
        trouble.probed = false;
        trouble.pause = (trouble.pause * 2).clamp(PAUSES.0, PAUSES.1);
        trouble.next = now + trouble.pause;
        !self.suspect.swap(true, Ordering::AcqRel)
    }

    /// It has not answered in time, and may still. Whether that is news.
    pub(super) fn late(&self, problem: impl FnOnce() -> String) -> bool {
        if self.is_suspect() {
            return false;
        }
        let mut trouble = self.lock();
        trouble.problem = problem();
        // The request that is late is the one that it is asked by.
        trouble.probed = true;
        !self.suspect.swap(true, Ordering::AcqRel)
    }

    /// What is wrong with it.
    pub(super) fn problem(&self) -> Option<String> {
        self.is_suspect().then(|| self.lock().problem.clone())
    }

    fn lock(&self) -> MutexGuard<'_, RetryBudget> {
        // Nothing panics while it is held.
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn a_silent_node_is_asked_no_more_until_it_answers_or_fails() {
        let health = Health::default();
        assert!(health.late(|| "silent".into()) && !health.late(|| "silent".into()));
        assert!(!health.may_ask(at(1_000_000)));
        assert!(!health.failed(at(0), "gone".into()));
        assert!(health.may_ask(at(10)));
        assert!(health.answered() && !health.answered());
    }
}
