//! [`Alone`]: who was alone the last time may know that it is alone again, without looking.
//!
//! The server numbers the children of a directory one after the other. So if a node with number M
//! had nobody before it, is gone, and ours is M + 1, then nobody came in between, and ours is the
//! only one: the listing that the recipe asks for would show nothing else.
//!
//! Unless the directory was removed meanwhile and made again, and its new numbers have reached M +
//! 1 by the work of others. That takes a transaction for each number, because nobody creates two
//! nodes of one lock in one transaction, and some more for the directory. Every transaction has the
//! next czxid: if too few lie between the two nodes, it did not happen.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use crate::keys::{Directory, Sequence};

/// How many locks are remembered.
const MOST: usize = 10_000;
/// The removal of ours, and one that removes a directory, makes it again, and creates its number 0.
/// The others up to M come on top.
const REMADE: i64 = 2;

/// What is known of locks that were last held without anybody before.
#[derive(Debug, Default)]
pub(crate) struct Alone {
    locks: Mutex<HashMap<Directory, Last>>,
    /// How many transactions lay between two nodes of one lock the last time: as many as will the
    /// next time, most likely.
    usual: AtomicI64,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    sequence: Sequence,
    czxid: i64,
    /// Whether it is certainly gone.
    gone: bool,
}

impl Alone {
    /// Whether the next node may be known to be alone.
    pub(crate) fn may_tell(&self, directory: &Directory) -> bool {
        let usual = self.usual.load(Ordering::Relaxed);
        self.lock()
            .get(directory)
            .is_some_and(|last| last.gone && usual < needed(*last))
    }

    /// Whether a node of this number, created by this transaction, is certainly alone.
    pub(crate) fn tells(&self, directory: &Directory, sequence: Sequence, czxid: i64) -> bool {
        let mut locks = self.lock();
        let told = locks.get(directory).is_some_and(|last| {
            self.usual.store(between(*last, czxid), Ordering::Relaxed);
            last.gone && follows(*last, sequence, czxid)
        });
        if !told {
            locks.remove(directory);
        }
        told
    }

    /// A node is there that has nobody before it.
    pub(crate) fn first(&self, directory: &Directory, sequence: Sequence, czxid: i64) {
        let mut locks = self.lock();
        if locks.len() >= MOST && !locks.contains_key(directory) {
            locks.clear();
        }
        let last = locks.insert(
            directory.clone(),
            Last {
                sequence,
                czxid,
                gone: false,
            },
        );
        if let Some(last) = last.filter(|last| last.sequence != sequence) {
            self.usual.store(between(last, czxid), Ordering::Relaxed);
        }
    }

    /// That node is gone.
    pub(crate) fn gone(&self, directory: &Directory, sequence: Sequence) {
        if let Some(last) = self
            .lock()
            .get_mut(directory)
            .filter(|last| last.sequence == sequence)
        {
            last.gone = true;
        }
    }

    /// The node that is first now had to wait, and took further numbers when it moved: the next one
    /// tells nothing.
    pub(crate) fn forget(&self, directory: &Directory) {
        self.lock().remove(directory);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Directory, Last>> {
        // Nothing panics while it is held.
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many transactions lie between its creation and this one.
fn between(last: Last, czxid: i64) -> i64 {
    czxid.saturating_sub(last.czxid).saturating_sub(1)
}

/// How many there are at least if the directory was made again and others have created the numbers
/// 0 to M.
fn needed(last: Last) -> i64 {
    i64::from(last.sequence.0) + REMADE
}

fn follows(last: Last, sequence: Sequence, czxid: i64) -> bool {
    let number = i64::from(last.sequence.0);
    sequence.is_ordered()
        && i64::from(sequence.0) == number + 1
        && (1..needed(last)).contains(&between(last, czxid))
}

#[cfg(test)]
mod tests {
    use leasehold_core::LockKey;

    use super::*;
    use crate::{config::ExclusiveNodes, keys::Names};

    fn directory() -> Directory {
        Names {
            root: "".into(),
            exclusive: ExclusiveNodes::Mutex,
        }
        .directory(&LockKey::new("k").unwrap(), false)
    }

    fn tells(last: i32, next: i32, czxids: i64) -> bool {
        let alone = Alone::default();
        alone.first(&directory(), Sequence::of(last), 1_000);
        assert!(!alone.may_tell(&directory()), "it is held");
        alone.gone(&directory(), Sequence::of(last));
        assert!(alone.may_tell(&directory()));
        alone.tells(&directory(), Sequence::of(next), 1_000 + czxids)
    }

    #[test]
    fn only_the_very_next_number_tells() {
        assert!(tells(7, 8, 2));
        for next in [7, 9, 0, -1] {
            assert!(!tells(7, next, 2), "{next}");
        }
        assert!(
            !tells(i32::MAX - 1, i32::MAX, 2) && !tells(-3, -2, 2),
            "the end of the numbers is looked at"
        );
    }

    #[test]
    fn a_directory_that_may_have_been_made_again_tells_nothing() {
        // Ours goes, the directory goes and comes back with another's node: two in between, and
        // then ours is 1.
        assert!(tells(0, 1, 2) && !tells(0, 1, 3));
        assert!(tells(100, 101, 102) && !tells(100, 101, 103));
        assert!(!tells(100, 101, 1 << 32), "another leader");
    }

    #[test]
    fn where_much_else_goes_on_nobody_hopes_to_be_told() {
        let alone = Alone::default();
        for (number, czxid, hopes) in [(0, 1_000, true), (1, 1_050, false), (60, 1_100, true)] {
            alone.first(&directory(), Sequence::of(number), czxid);
            alone.gone(&directory(), Sequence::of(number));
            assert_eq!(alone.may_tell(&directory()), hopes, "{number}");
        }
    }

    #[test]
    fn what_may_still_be_there_tells_nothing() {
        let alone = Alone::default();
        alone.first(&directory(), Sequence::of(3), 10);
        alone.gone(&directory(), Sequence::of(2));
        assert!(!alone.tells(&directory(), Sequence::of(4), 12));
        alone.gone(&directory(), Sequence::of(3));
        assert!(!alone.may_tell(&directory()), "it was forgotten");
    }
}
