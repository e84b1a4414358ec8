//! What is true at one moment: three nodes, some attempts, and the messages under way between them.
//!
//! A request that was sent can arrive at any later time, so it needs no place of its own: lost is
//! one that never arrives. An answer is kept where it was given until the attempt takes it, or
//! never does.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

pub(crate) const NODES: usize = 3;

/// An attempt's number from 1; 0 is nobody.
pub(crate) type Who = u8;

/// F of a node: token and owner. Token 0: none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    pub(crate) token: u8,
    pub(crate) owner: Who,
}

/// A node's right to vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// On locks and tokens.
    #[default]
    Full,
    /// It restarted, and waits for what it forgot to expire.
    Grace,
    /// On locks only: its tokens are not yet copied from the others.
    Locks,
}

/// What has come of a write-back that was sent to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Raised {
    #[default]
    Unanswered,
    Accepted,
    Higher(u8),
}

/// Between one attempt and one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    /// The acquisition's request has arrived and was granted: when it comes once more, it is a
    /// duplicate.
    pub(crate) came: bool,
    /// The answer to the acquisition: the token. 0: none yet.
    pub(crate) granted: u8,
    /// Whether the node could vote on tokens when it gave that answer.
    pub(crate) fenced: bool,
    /// The attempt has taken the answer and counts the node.
    pub(crate) member: bool,
    /// Up to which deadline, at least, the node holds for the attempt: that of the acquisition (1)
    /// or of the renewal (2). 0: it never did. A node counts the TTL from when a request arrives,
    /// so none that comes later makes it less.
    pub(crate) until: u8,
    /// Up to which of these the attempt knows.
    pub(crate) known: u8,
    pub(crate) raised: Raised,
}

/// One node, with its links to all attempts. Nodes are alike: a permutation of them is the same
/// state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node<const A: usize> {
    pub(crate) mark: Mark,
    pub(crate) holder: Who,
    pub(crate) standing: Standing,
    /// What a node that rejoins has copied so far.
    pub(crate) copied: Mark,
    /// The node that rejoins has asked this one.
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
    /// It has released every node, or given up.
    Over,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attempt {
    pub(crate) phase: Phase,
    /// The token that is written back, or that it was granted with. 0: none, or one that nothing is
    /// promised of.
    pub(crate) token: u8,
    /// The tokens of earlier rounds, a bit each: their write-backs may still arrive.
    pub(crate) earlier: u16,
    /// Which deadlines were sent (1 by the acquisition, 2 by the renewal), and which of them have
    /// passed.
    pub(crate) sent: u8,
    pub(crate) passed: u8,
    /// Its renewal has extended it, so that requests to heal are on their way.
    pub(crate) extended: bool,
    /// The attempts that had been granted before this one started, a bit each.
    pub(crate) after: u8,
    /// What it has not been granted, or has no more, is on its way back.
    pub(crate) releases: bool,
    /// It was granted once.
    pub(crate) granted: bool,
    /// Another was granted while it had not yet released.
    pub(crate) overtaken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct State<const A: usize> {
    pub(crate) nodes: [Node<A>; NODES],
    pub(crate) attempts: [Attempt; A],
    /// How many requests may still arrive a second time, attempts renew, and nodes restart.
    pub(crate) duplicates: u8,
    pub(crate) renewals: u8,
    pub(crate) restarts: u8,
}

impl<const A: usize> State<A> {
    pub(crate) fn new(duplicates: u8, renewals: u8, restarts: u8) -> Self {
        let node = Node {
            mark: Mark::default(),
            holder: 0,
            standing: Standing::Full,
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

    /// The same for all states that differ only in the names of nodes and attempts.
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

/// A few words for the whole state: hashing is most of the work.
impl<const A: usize> Hash for State<A> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for node in &self.nodes {
            let mut word = Word::default();
            word.put(node.mark.token, 4)
                .put(node.mark.owner, 2)
                .put(node.holder, 2)
                .put(node.standing as u8, 2);
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
        // Also in release: two states in one word would hide one of them.
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
            match node.standing {
                Standing::Full => write!(f, "] ")?,
                standing => write!(f, " {standing:?}] ")?,
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

/// Attempts are called A, B and C.
struct Holder(Who);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["-", "A", "B", "C"][usize::from(self.0)])
    }
}
