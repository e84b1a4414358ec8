//! One state: three nodes, some attempts, and the messages between them.
//!
//! A request that was sent may arrive at any later time, so that it is not stored. A lost request
//! never arrives. An answer is stored at its node until the attempt counts it, which may be never.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

pub(crate) const NODES: usize = 3;

/// The number of an attempt from 1, or 0 for none.
pub(crate) type Who = u8;

/// The token of a node and its owner. Token 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    pub(crate) token: u8,
    pub(crate) owner: Who,
}

/// The votes that a node may cast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Voting {
    /// On locks and tokens.
    #[default]
    Full,
    /// None: the node restarted, and its grace period has not passed.
    Grace,
    /// On locks only: the tokens of the other nodes are not copied yet.
    Locks,
}

/// The outcome of a write-back that was sent to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Raised {
    #[default]
    Unanswered,
    Accepted,
    Higher(u8),
}

/// The relation between one attempt and one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    /// Whether the acquisition's request has arrived and was granted. If it arrives again, it is a
    /// duplicate.
    pub(crate) came: bool,
    /// The token in the answer to the acquisition, or 0 if there is none yet.
    pub(crate) granted: u8,
    /// Whether the node could vote on tokens when it sent that answer.
    pub(crate) fenced: bool,
    /// Whether the attempt has counted the answer.
    pub(crate) member: bool,
    /// The deadline until which the node is locked for the attempt at least: that of the
    /// acquisition (1) or of the renewal (2), or 0 for none. A node counts the TTL from the arrival
    /// of a request, so that no later request makes it earlier.
    pub(crate) until: u8,
    /// The latest of these deadlines that the attempt knows.
    pub(crate) known: u8,
    pub(crate) raised: Raised,
}

/// One node with its links to all attempts. Nodes are identical: permuting them gives the same
/// state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node<const A: usize> {
    pub(crate) mark: Mark,
    pub(crate) holder: Who,
    pub(crate) voting: Voting,
    /// The token that a node being readmitted has copied so far.
    pub(crate) copied: Mark,
    /// Whether the node being readmitted has asked this one.
    pub(crate) asked: bool,
    pub(crate) links: [Link; A],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    #[default]
    Idle,
    Asking,
    /// A token is being written back.
    Writing,
    Held,
    /// The attempt has released every node, or has given up.
    Over,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attempt {
    pub(crate) phase: Phase,
    /// The token that is written back, or with which the lock was granted. It is 0 if there is
    /// none, or none with a promise.
    pub(crate) token: u8,
    /// The tokens of earlier rounds as a bit set. Their write-backs may still arrive.
    pub(crate) earlier: u16,
    /// The deadlines that were sent (1 by the acquisition, 2 by the renewal), and those that have
    /// passed.
    pub(crate) sent: u8,
    pub(crate) passed: u8,
    /// Whether the renewal has extended the lease, so that requests to acquire nodes again are
    /// pending.
    pub(crate) extended: bool,
    /// The attempts that had been granted before this one started, as a bit set.
    pub(crate) after: u8,
    /// Whether a release of all nodes is pending.
    pub(crate) releases: bool,
    /// Whether the attempt was ever granted.
    pub(crate) granted: bool,
    /// Whether another attempt was granted before this one had released.
    pub(crate) overtaken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct State<const A: usize> {
    pub(crate) nodes: [Node<A>; NODES],
    pub(crate) attempts: [Attempt; A],
    /// The number of requests that may still arrive twice, of attempts that may renew, and of nodes
    /// that may restart.
    pub(crate) duplicates: u8,
    pub(crate) renewals: u8,
    pub(crate) restarts: u8,
}

impl<const A: usize> State<A> {
    pub(crate) fn new(duplicates: u8, renewals: u8, restarts: u8) -> Self {
        let node = Node {
            mark: Mark::default(),
            holder: 0,
            voting: Voting::Full,
            copied: Mark::default(),
            asked: false,
            links: [Link::default(); A],
        };
        Self {
            nodes: [node; NODES],
            attempts: [Attempt::default(); A],
            duplicates,
            renewals,
            restarts,
        }
    }

    /// Returns the same state for all states that differ only in the names of nodes and attempts.
    pub(crate) fn representative(&self) -> Self {
        permutations::<A>()
            .into_iter()
            .map(|names| self.renamed(&names))
            .min()
            .unwrap_or(*self)
    }

    fn renamed(&self, names: &[usize; A]) -> Self {
        let rename = |who: Who| {
            if who == 0 {
                0
            } else {
                names[usize::from(who) - 1] as u8 + 1
            }
        };
        let mut renamed = *self;
        for (old, new) in names.iter().enumerate() {
            let mut attempt = self.attempts[old];
            let after = (0..A).filter(|other| attempt.after & (1 << other) != 0);
            attempt.after = after.map(|other| 1 << names[other]).sum();
            renamed.attempts[*new] = attempt;
        }
        for (node, old) in renamed.nodes.iter_mut().zip(&self.nodes) {
            node.holder = rename(old.holder);
            node.mark.owner = rename(old.mark.owner);
            node.copied.owner = rename(old.copied.owner);
            for (was, is) in names.iter().enumerate() {
                node.links[*is] = old.links[was];
            }
        }
        renamed.nodes.sort_unstable();
        renamed
    }
}

fn permutations<const A: usize>() -> Vec<[usize; A]> {
    let mut all = vec![std::array::from_fn(|index| index)];
    for first in 0..A {
        for index in 0..all.len() {
            for second in first + 1..A {
                let mut swapped = all[index];
                swapped.swap(first, second);
                all.push(swapped);
            }
        }
    }
    all
}

/// The whole state in a few words, because hashing is most of the work.
impl<const A: usize> Hash for State<A> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for node in &self.nodes {
            let mut word = Word::default();
            word.put(node.mark.token, 4)
                .put(node.mark.owner, 2)
                .put(node.holder, 2)
                .put(node.voting as u8, 2);
            word.put(node.copied.token, 4)
                .put(node.copied.owner, 2)
                .put(node.asked.into(), 1);
            for link in &node.links {
                let (kind, higher) = match link.raised {
                    Raised::Unanswered => (0, 0),
                    Raised::Accepted => (1, 0),
                    Raised::Higher(token) => (2, token),
                };
                word.put(link.came.into(), 1)
                    .put(link.granted, 4)
                    .put(link.fenced.into(), 1)
                    .put(link.member.into(), 1);
                word.put(link.until, 2)
                    .put(link.known, 2)
                    .put(kind, 2)
                    .put(higher, 4);
            }
            hasher.write_u128(word.0);
        }
        let mut word = Word::default();
        for attempt in &self.attempts {
            word.put(attempt.phase as u8, 3)
                .put(attempt.token, 4)
                .put(attempt.sent, 2)
                .put(attempt.passed, 2);
            word.put(attempt.after, 3)
                .put(attempt.releases.into(), 1)
                .put(attempt.granted.into(), 1)
                .put(attempt.overtaken.into(), 1)
                .put(attempt.extended.into(), 1);
            word.put((attempt.earlier >> 8) as u8, 8)
                .put(attempt.earlier as u8, 8);
        }
        word.put(self.duplicates, 2)
            .put(self.renewals, 2)
            .put(self.restarts, 2);
        hasher.write_u128(word.0);
    }
}

#[derive(Default)]
struct Word(u128);

impl Word {
    fn put(&mut self, value: u8, bits: u32) -> &mut Self {
        // Checked in release builds too: two states in one word would hide one of them.
        assert!(
            bits == 8 || value < 1 << bits,
            "{value} needs more than {bits} bits"
        );
        self.0 = self.0 << bits | u128::from(value);
        self
    }
}

impl<const A: usize> fmt::Display for State<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            write!(
                f,
                "[{} F=({},{})",
                Holder(node.holder),
                node.mark.token,
                Holder(node.mark.owner)
            )?;
            match node.voting {
                Voting::Full => write!(f, "] ")?,
                voting => write!(f, " {voting:?}] ")?,
            }
        }
        for (index, attempt) in self
            .attempts
            .iter()
            .enumerate()
            .filter(|(_, attempt)| attempt.phase != Phase::Idle)
        {
            write!(f, " {}: {:?}", Holder(index as Who + 1), attempt.phase)?;
            if attempt.token != 0 {
                write!(f, " {}", attempt.token)?;
            }
            if attempt.passed > 0 && attempt.phase != Phase::Over {
                write!(
                    f,
                    ", {} of {} deadlines passed",
                    attempt.passed, attempt.sent
                )?;
            }
        }
        Ok(())
    }
}

/// The attempts are named A, B and C.
struct Holder(Who);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["-", "A", "B", "C"][usize::from(self.0)])
    }
}
