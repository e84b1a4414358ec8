//! The properties: those that must always hold, and those that must be reachable, or else the
//! exploration shows nothing.

use leasehold_core::quorum::Majority;
use stateright::Property;

use crate::{
    protocol::{Protocol, considers_held},
    scope::{Bug, Scope},
    state::{Phase, State, Voting},
};

pub(crate) const UNIQUE: &str = "tokens are unique";
pub(crate) const ORDERED: &str = "tokens are ordered by time";
pub(crate) const EXCLUSIVE: &str = "at most one attempt holds the lock";
pub(crate) const UNBROKEN: &str = "an overtaken attempt never holds the lock again";
pub(crate) const NOTHING_KEPT: &str = "an ended attempt releases its nodes";

pub(crate) fn of<const A: usize>(scope: &Scope) -> Vec<Property<Protocol<A>>> {
    let mut all = vec![
        Property::always(UNIQUE, |_, state: &State<A>| unique(state)),
        Property::always(ORDERED, |_, state: &State<A>| ordered(state)),
        Property::always(NOTHING_KEPT, |_, state: &State<A>| nothing_kept(state)),
    ];
    if scope.clocks {
        all.push(Property::always(
            EXCLUSIVE,
            |protocol: &Protocol<A>, state: &State<A>| exclusive(protocol, state),
        ));
    }
    if scope.clocks {
        all.push(Property::always(UNBROKEN, |_, state: &State<A>| {
            (0..A).all(|attempt| {
                !state.attempts[attempt].overtaken
                    || !considers_held(state, attempt, Majority::of(3))
            })
        }));
    }
    if scope.bug.is_some() {
        return all;
    }
    all.push(Property::sometimes(
        "every attempt is granted",
        |_, state: &State<A>| state.attempts.iter().all(|attempt| attempt.granted),
    ));
    all.push(Property::sometimes(
        "a token in one round trip",
        |_, state: &State<A>| {
            state.attempts.iter().any(|attempt| {
                attempt.phase == Phase::Held && attempt.token != 0 && attempt.earlier == 0
            })
        },
    ));
    all.push(Property::sometimes(
        "a token that was written back",
        |_, state: &State<A>| {
            state
                .attempts
                .iter()
                .any(|attempt| attempt.granted && attempt.earlier.count_ones() == 1)
        },
    ));
    if scope.floors.len() > 1 || scope.duplicates > 0 {
        all.push(Property::sometimes(
            "a write-back in two rounds",
            |_, state: &State<A>| {
                state
                    .attempts
                    .iter()
                    .any(|attempt| attempt.granted && attempt.earlier.count_ones() == 2)
            },
        ));
    }
    if scope.clocks && scope.renewals > 0 {
        all.push(Property::sometimes("a renewal", |_, state: &State<A>| {
            (0..A).any(|attempt| {
                state.attempts[attempt].passed == 1
                    && considers_held(state, attempt, Majority::of(3))
            })
        }));
    }
    if scope.restarts > 0 {
        all.push(Property::sometimes(
            "a grant with a node that was readmitted",
            |_, state: &State<A>| {
                let voting = state.nodes.iter().all(|node| node.voting == Voting::Full);
                let holds = |attempt: &usize| {
                    state.attempts[*attempt].phase == Phase::Held
                        && state
                            .nodes
                            .iter()
                            .all(|node| node.holder as usize == attempt + 1)
                };
                state.restarts == 0 && voting && (0..A).any(|attempt| holds(&attempt))
            },
        ));
    }
    all
}

fn unique<const A: usize>(state: &State<A>) -> bool {
    let tokens = |attempt: usize| {
        Some(state.attempts[attempt])
            .filter(|it| it.granted && it.token != 0)
            .map(|it| it.token)
    };
    (0..A).all(|first| {
        (0..first).all(|second| tokens(first).is_none() || tokens(first) != tokens(second))
    })
}

fn ordered<const A: usize>(state: &State<A>) -> bool {
    let promised =
        |attempt: usize| state.attempts[attempt].granted && state.attempts[attempt].token != 0;
    (0..A).filter(|later| promised(*later)).all(|later| {
        let (token, after) = (state.attempts[later].token, state.attempts[later].after);
        (0..A)
            .filter(|earlier| after & (1 << earlier) != 0 && promised(*earlier))
            .all(|earlier| token > state.attempts[earlier].token)
    })
}

fn exclusive<const A: usize>(protocol: &Protocol<A>, state: &State<A>) -> bool {
    let holders = (0..A).filter(|attempt| match protocol.scope.bug {
        Some(Bug::MajorityOfAnswered) => considers_held(state, *attempt, Majority::of(1)),
        Some(Bug::DeadlineFromAnswer) => state.attempts[*attempt].phase == Phase::Held,
        _ => considers_held(state, *attempt, Majority::of(3)),
    });
    holders.count() <= 1
}

/// If no release is pending, other attempts must wait for an expiry.
fn nothing_kept<const A: usize>(state: &State<A>) -> bool {
    state
        .nodes
        .iter()
        .filter(|node| node.holder != 0)
        .all(|node| {
            let holder = state.attempts[usize::from(node.holder) - 1];
            holder.phase != Phase::Over || holder.releases
        })
}
