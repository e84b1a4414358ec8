//! [`LockOrder`]: warnings of tasks that lock the same keys in different orders.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{key::LockKey, lease::held_lease::HeldLease, panics::contain, runtime::Asker};

/// The number of pairs of keys that are remembered; the oldest are forgotten. It bounds the memory,
/// and the time of a search.
const MAX_PAIRS: usize = 10_000;
/// The number of locks of a task that are recorded. It bounds the time of an acquisition of a task
/// that holds thousands.
const MAX_HELD: usize = 16;
/// Tasks without locks are not forgotten while there are fewer than this.
const MIN_SWEEP: usize = 64;

/// The order in which the tasks of a client lock keys.
///
/// When a task waits for a key while it holds another, the pair is remembered. Two tasks can wait
/// for each other forever if the pairs contain a cycle, whether or not they have met.
#[derive(Debug, Default)]
pub(crate) struct LockOrder(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The first locks that each task was granted. Those that have ended are removed later.
    held: HashMap<Asker, Vec<Weak<HeldLease>>>,
    /// The number of tasks at which those without locks are forgotten.
    sweep_at: usize,
    pairs: Pairs,
}

impl LockOrder {
    /// Records that the current task is about to wait for `keys`, which it acquires in this order.
    pub(crate) fn waits_for(&self, backend: &'static str, keys: &[&LockKey]) {
        let held = self.held_by(Asker::current());
        let mut warnings = Vec::new();
        {
            let pairs = &mut self.0.lock().unwrap_or_else(PoisonError::into_inner).pairs;
            let under = held.iter().flat_map(|held| {
                let key = held.request.key();
                keys.iter().map(move |then| (key, *then))
            });
            let in_turn = keys.windows(2).map(|pair| (pair[0], pair[1]));
            for (first, then) in under.chain(in_turn) {
                if pairs.add(first, then) {
                    warnings.push((first.clone(), then.clone()));
                }
            }
        }
        for (first, then) in warnings {
            contain(|| {
                tracing::warn!(
                    target: "leasehold",
                    backend,
                    "`{then}` is locked while `{first}` is held, and elsewhere `{first}` while `{then}` is held, \
                     directly or through other locks: two such tasks can wait for each other forever; \
                     lock them together with `LockClient::all`"
                );
            });
        }
    }

    /// Records that the current task was granted a lock. The permits of a semaphore are not
    /// recorded, because several tasks may hold them.
    pub(crate) fn granted(&self, lease: &Arc<HeldLease>) {
        if lease.request.mode().is_permit() {
            return;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = state.held.entry(lease.asker).or_default();
        own.retain(|held| held.strong_count() > 0);
        if own.len() < MAX_HELD {
            own.push(Arc::downgrade(lease));
        }
        if state.held.len() >= state.sweep_at.max(MIN_SWEEP) {
            state
                .held
                .retain(|_, held| held.iter().any(|held| held.strong_count() > 0));
            state.sweep_at = 2 * state.held.len();
        }
    }

    fn held_by(&self, asker: Asker) -> Vec<Arc<HeldLease>> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = state.held.get(&asker).into_iter().flatten();
        own.filter_map(Weak::upgrade)
            .filter(|held| held.is_held())
            .collect()
    }
}

/// Pairs of keys of which the second was waited for while the first was held.
#[derive(Debug, Default)]
struct Pairs {
    after: HashMap<LockKey, HashSet<LockKey>>,
    oldest: VecDeque<(LockKey, LockKey)>,
    /// The pairs of which the log has a warning, in the order of the keys.
    warned: HashSet<(LockKey, LockKey)>,
}

impl Pairs {
    /// Adds a pair. Returns whether it closes a cycle of which there was no warning yet.
    fn add(&mut self, first: &LockKey, then: &LockKey) -> bool {
        let is_new = first != then
            && self
                .after
                .entry(first.clone())
                .or_default()
                .insert(then.clone());
        if !is_new {
            return false;
        }
        self.oldest.push_back((first.clone(), then.clone()));
        if self.oldest.len() > MAX_PAIRS {
            self.forget_oldest();
        }
        self.leads_to(then, first) && self.warned.insert(sorted(first, then))
    }

    fn forget_oldest(&mut self) {
        let Some((first, then)) = self.oldest.pop_front() else {
            return;
        };
        self.warned.remove(&sorted(&first, &then));
        if let Some(after) = self.after.get_mut(&first) {
            after.remove(&then);
            if after.is_empty() {
                self.after.remove(&first);
            }
        }
    }

    /// Returns whether the pairs lead from one key to another.
    fn leads_to(&self, from: &LockKey, to: &LockKey) -> bool {
        let (mut seen, mut next) = (HashSet::from([from]), vec![from]);
        while let Some(key) = next.pop() {
            if key == to {
                return true;
            }
            let after = self.after.get(key).into_iter().flatten();
            next.extend(after.filter(|key| seen.insert(key)));
        }
        false
    }
}

fn sorted(one: &LockKey, other: &LockKey) -> (LockKey, LockKey) {
    let (one, other) = (one.clone(), other.clone());
    if one <= other {
        (one, other)
    } else {
        (other, one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: impl AsRef<[u8]>) -> LockKey {
        LockKey::new(name).unwrap()
    }

    #[test]
    fn a_cycle_is_found_once_through_any_number_of_pairs() {
        let mut pairs = Pairs::default();
        assert!(!pairs.add(&key("a"), &key("a")), "a key has no order");
        assert!(!pairs.add(&key("a"), &key("b")));
        assert!(!pairs.add(&key("b"), &key("c")));
        assert!(!pairs.add(&key("a"), &key("c")), "this is the same order");
        assert!(pairs.add(&key("c"), &key("a")));
        assert!(!pairs.add(&key("c"), &key("a")), "there was a warning");
        assert!(pairs.add(&key("b"), &key("a")), "this is another pair");
    }

    #[test]
    fn the_oldest_pairs_are_forgotten() {
        let mut pairs = Pairs::default();
        assert!(!pairs.add(&key("a"), &key("b")));
        for n in 0..MAX_PAIRS {
            assert!(!pairs.add(&key("first"), &key(format!("key/{n}"))));
        }
        assert_eq!(pairs.oldest.len(), MAX_PAIRS);
        assert!(!pairs.after.contains_key(&key("a")));
        assert!(!pairs.add(&key("b"), &key("a")));
    }
}
