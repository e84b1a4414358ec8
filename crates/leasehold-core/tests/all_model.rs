//! A model of `all`, explored exhaustively: every order in which callers in two processes take
//! local places, attempt, wait, are granted, release and give up. One of them locks one key after
//! the other. Wrong variants are explored too, and each must be detected.
//!
//! In the model any waiter may be next, where the real queues are in order. It therefore has more
//! behaviours, and a cycle of waiters is found if there is one. `all.rs` tests that the code does
//! what the model does.

use stateright::{Checker, HasDiscoveries, Model, Property};

const KEYS: usize = 3;

/// The process of each caller, and its keys as it names them.
const CALLERS: [(usize, &[usize]); 5] = [
    (0, &[0, 2]),
    (0, &[2, 1]),
    (1, &[1, 0]),
    (1, &[2, 0, 1]),
    (0, &[1, 2]),
];
/// The caller that locks one key after the other, in their order.
const SINGLE: usize = 4;

const NO_CYCLE: &str = "some caller can always continue";
const NO_PART: &str = "who gave up holds nothing";
const ALL: &str = "a guard has every key";
const FINISHED: &str = "all callers may finish";

/// A wrong variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// The keys are requested in the order in which the caller names them.
    Unsorted,
    /// Locks behind a refusal are kept while the refused one is waited for.
    KeepsLocks,
    /// Places in local queues behind a refusal are kept while the refused one is waited for.
    KeepsPlaces,
    /// A caller whose time limit is reached keeps what it has.
    KeepsPartAtLimit,
    /// A caller continues with the keys that it was granted.
    AcceptsPart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Takes the local place of the key at this position. If another has it, the keys before it
    /// that have a place are attempted first.
    Placing(usize),
    /// Attempts to lock the key at this position; the end of the keys that have a place, and the
    /// first refusal so far.
    Attempting(usize, usize, Option<usize>),
    /// Waits at the backend for the key at this position.
    Waiting(usize),
    /// Has a guard.
    Holding,
    Released,
    GaveUp,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// The callers that hold the keys.
    locks: [Option<usize>; KEYS],
    /// The callers at the heads of the local queues, by process.
    places: [[Option<usize>; KEYS]; 2],
    phases: [Phase; CALLERS.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Step(usize),
    GiveUp(usize),
}

/// The protocol, with time limits or without.
struct Protocol {
    limits: bool,
    bug: Option<Bug>,
}

impl Protocol {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Returns the keys of a caller in the order in which it requests them.
    fn keys(&self, caller: usize) -> Vec<usize> {
        let mut keys = CALLERS[caller].1.to_vec();
        if !self.has(Bug::Unsorted) {
            keys.sort_unstable();
        }
        keys
    }

    /// Returns whether a caller has a place whose lock it has not requested yet.
    fn has_place_without_lock(&self, state: &State, caller: usize) -> bool {
        self.keys(caller).into_iter().any(|key| {
            state.places[CALLERS[caller].0][key] == Some(caller) && state.locks[key] != Some(caller)
        })
    }

    /// Returns whether the next step of a caller is possible.
    fn can_step(&self, state: &State, caller: usize) -> bool {
        let keys = self.keys(caller);
        match state.phases[caller] {
            Phase::Placing(at) => {
                let place = state.places[CALLERS[caller].0][keys[at]];
                place.is_none_or(|other| other == caller)
                    || caller != SINGLE && self.has_place_without_lock(state, caller)
            }
            Phase::Waiting(at) => state.locks[keys[at]].is_none(),
            Phase::Attempting(..) | Phase::Holding => true,
            Phase::Released | Phase::GaveUp => false,
        }
    }

    fn step(&self, state: &mut State, caller: usize) {
        let (keys, process) = (self.keys(caller), CALLERS[caller].0);
        state.phases[caller] = match state.phases[caller] {
            Phase::Placing(at) => {
                let place = &mut state.places[process][keys[at]];
                let is_taken = place.is_some_and(|other| other != caller);
                if !is_taken {
                    *place = Some(caller);
                }
                let placed = at + usize::from(!is_taken);
                let missing: Vec<_> = (0..placed)
                    .filter(|at| state.locks[keys[*at]] != Some(caller))
                    .collect();
                match missing.as_slice() {
                    _ if caller == SINGLE => Phase::Waiting(at),
                    _ if !is_taken && placed < keys.len() => Phase::Placing(placed),
                    [only] => Phase::Waiting(*only),
                    [first, ..] => Phase::Attempting(*first, placed, None),
                    [] => Phase::Holding,
                }
            }
            Phase::Attempting(at, placed, refused) => {
                let lock = &mut state.locks[keys[at]];
                let refused = if lock.is_none_or(|other| other == caller) {
                    *lock = Some(caller);
                    refused
                } else {
                    refused.or(Some(at))
                };
                match refused {
                    _ if at + 1 < placed => Phase::Attempting(at + 1, placed, refused),
                    None if placed < keys.len() => Phase::Placing(placed),
                    None => Phase::Holding,
                    Some(_) if self.has(Bug::AcceptsPart) => Phase::Holding,
                    Some(refused) => {
                        self.give_back_behind(state, caller, &keys[refused + 1..]);
                        Phase::Waiting(refused)
                    }
                }
            }
            Phase::Waiting(at) => {
                state.locks[keys[at]] = Some(caller);
                if at + 1 < keys.len() {
                    Phase::Placing(at + 1)
                } else {
                    Phase::Holding
                }
            }
            Phase::Holding => {
                give_back(state, caller, &keys);
                Phase::Released
            }
            ended => ended,
        };
    }

    fn give_back_behind(&self, state: &mut State, caller: usize, keys: &[usize]) {
        let before = state.clone();
        give_back(state, caller, keys);
        if self.has(Bug::KeepsLocks) {
            *state = before;
        } else if self.has(Bug::KeepsPlaces) {
            state.places = before.places;
        }
    }
}

fn give_back(state: &mut State, caller: usize, keys: &[usize]) {
    for key in keys {
        for owner in [
            &mut state.locks[*key],
            &mut state.places[CALLERS[caller].0][*key],
        ] {
            if *owner == Some(caller) {
                *owner = None;
            }
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            locks: [None; KEYS],
            places: [[None; KEYS]; 2],
            phases: [Phase::Placing(0); CALLERS.len()],
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (caller, phase) in state.phases.iter().enumerate() {
            if self.can_step(state, caller) {
                actions.push(Action::Step(caller));
            }
            if self.limits && !matches!(phase, Phase::Holding | Phase::Released | Phase::GaveUp) {
                actions.push(Action::GiveUp(caller));
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Step(caller) => self.step(&mut next, caller),
            Action::GiveUp(caller) => {
                let locks = next.locks;
                give_back(&mut next, caller, CALLERS[caller].1);
                if self.has(Bug::KeepsPartAtLimit) {
                    next.locks = locks;
                }
                next.phases[caller] = Phase::GaveUp;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_CYCLE, |model: &Self, state: &State| {
                let callers = 0..CALLERS.len();
                let has_ended = |phase: &Phase| matches!(phase, Phase::Released | Phase::GaveUp);
                state.phases.iter().all(has_ended)
                    || callers.clone().any(|caller| model.can_step(state, caller))
            }),
            Property::always(NO_PART, |_: &Self, state: &State| {
                let gave_up = |caller: usize| state.phases[caller] == Phase::GaveUp;
                let mut owners = state.locks.iter().chain(state.places.iter().flatten());
                !owners.any(|owner| owner.is_some_and(gave_up))
            }),
            Property::always(ALL, |_: &Self, state: &State| {
                (0..CALLERS.len()).all(|caller| {
                    let mut keys = CALLERS[caller].1.iter();
                    state.phases[caller] != Phase::Holding
                        || keys.all(|key| state.locks[*key] == Some(caller))
                })
            }),
            Property::sometimes(FINISHED, |_: &Self, state: &State| {
                state.phases.iter().all(|phase| *phase == Phase::Released)
            }),
        ]
    }
}

/// Explores all states, or until each property has been decided.
fn explore(limits: bool, bug: Option<Bug>) -> impl Checker<Protocol> {
    let checker = Protocol { limits, bug }.checker();
    let checker = match bug {
        Some(_) => checker.finish_when(HasDiscoveries::AnyFailures),
        None => checker,
    };
    checker.spawn_dfs().join()
}

#[test]
fn no_caller_waits_in_a_cycle_or_keeps_a_part() {
    for limits in [false, true] {
        let checker = explore(limits, None);
        checker.assert_properties();
        // The callers meet: most of the states are beyond those of one caller after the other.
        assert!(checker.unique_state_count() > 1_000);
    }
}

#[test]
fn every_wrong_variant_is_detected() {
    for (bug, limits, property) in [
        (Bug::Unsorted, false, NO_CYCLE),
        (Bug::KeepsLocks, false, NO_CYCLE),
        (Bug::KeepsPlaces, false, NO_CYCLE),
        (Bug::KeepsPartAtLimit, true, NO_PART),
        (Bug::AcceptsPart, false, ALL),
    ] {
        let found = explore(limits, Some(bug)).discovery(property).is_some();
        assert!(found, "{bug:?} is not detected");
    }
}
