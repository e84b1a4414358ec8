//! A model of the quorum's protocol, explored exhaustively: every order of events that three nodes
//! and two attempts can see (with three attempts, fewer events). Wrong variants of the protocol are
//! explored too, and each must be detected.
//!
//! Run it with `cargo test --release -p leasehold-core --test quorum_model`. With debug assertions
//! the same properties are explored in smaller scopes. With `LEASEHOLD_TRACE=1` and `--nocapture`,
//! a short trace of each wrong variant is printed. `docs/redlock-proof.md` describes the model and
//! its limits.

mod properties;
mod protocol;
mod scope;
mod state;
mod step;

use std::{collections::BTreeSet, time::Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::{
    properties::{EXCLUSIVE, NOTHING_KEPT, ORDERED, UNBROKEN, UNIQUE},
    protocol::Protocol,
    scope::{Bug, Scope},
    state::State,
};

/// The protocol alone, with messages that are lost or late.
const QUIET: Scope = Scope {
    clocks: false,
    floors: &[0],
    duplicates: 0,
    renewals: 0,
    restarts: 0,
    bug: None,
};
/// A floor of 3 is above every token that two attempts reach without it, even if all nodes agree.
const HOSTILE: &[u8] = &[0, 2];

/// Explores all states, in smaller scopes if the compiler has not optimised.
fn explore<const A: usize>(name: &str, full: Scope, small: Scope) {
    let scope = if cfg!(debug_assertions) { small } else { full };
    let begun = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let protocol = Protocol::<A> { scope }
        .checker()
        .threads(threads)
        .symmetry_fn(State::representative);
    let checker = protocol.spawn_dfs().join();
    println!(
        "{name}: {} states, {} steps, up to {} in a row, {:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed()
    );
    for (property, path) in checker.discoveries() {
        if checker.discovery_classification(property).to_string() == "counterexample" {
            panic!("{name}: violated: {property}: {:#?}", path.into_actions());
        }
    }
    checker.assert_properties();
}

/// Explores a wrong variant breadth first until the property is violated. The trace is short, but
/// not always the shortest.
fn must_be_found<const A: usize>(bug: Bug, scope: Scope, broken: &'static str) {
    let protocol = Protocol::<A> {
        scope: Scope {
            bug: Some(bug),
            ..scope
        },
    };
    let until = HasDiscoveries::AllOf(BTreeSet::from([broken]));
    let checker = protocol.checker().finish_when(until).spawn_bfs().join();
    let Some(path) = checker.discovery(broken) else {
        panic!(
            "{bug:?}: in {} states, this still holds: {broken}",
            checker.unique_state_count()
        );
    };
    let trace = path.into_vec();
    println!(
        "{bug:?}: after {} steps, this is violated: {broken}",
        trace.len() - 1
    );
    if std::env::var_os("LEASEHOLD_TRACE").is_some() {
        for (state, step) in &trace {
            println!(
                "  {state}{}",
                step.map(|step| format!("\n    {step}")).unwrap_or_default()
            );
        }
    }
}

#[test]
fn tokens_are_ordered_with_duplicate_requests_and_any_expiry() {
    let full = Scope {
        floors: HOSTILE,
        duplicates: 1,
        ..QUIET
    };
    explore::<2>(
        "duplicates",
        full,
        Scope {
            floors: HOSTILE,
            ..QUIET
        },
    );
}

#[test]
fn tokens_are_ordered_with_reacquired_nodes_and_any_expiry() {
    let full = Scope {
        floors: HOSTILE,
        renewals: 2,
        ..QUIET
    };
    explore::<2>(
        "reacquisition",
        full,
        Scope {
            renewals: 1,
            ..QUIET
        },
    );
}

#[test]
fn tokens_are_ordered_with_duplicates_and_reacquired_nodes() {
    let full = Scope {
        duplicates: 1,
        renewals: 1,
        ..QUIET
    };
    explore::<2>("duplicates and reacquisition", full, QUIET);
}

#[test]
fn one_holder_at_a_time_with_clocks_and_restarts() {
    let full = Scope {
        clocks: true,
        floors: HOSTILE,
        duplicates: 1,
        renewals: 2,
        restarts: 1,
        ..QUIET
    };
    explore::<2>(
        "clocks and a restart",
        full,
        Scope {
            floors: &[0],
            renewals: 1,
            ..full
        },
    );
}

#[test]
fn one_valid_holder_with_clocks_duplicates_and_reacquired_nodes() {
    // This scope is a part of the previous one, and small enough to be explored in debug builds.
    let full = Scope {
        clocks: true,
        floors: HOSTILE,
        duplicates: 1,
        renewals: 2,
        ..QUIET
    };
    explore::<2>(
        "clocks",
        full,
        Scope {
            floors: &[0],
            ..full
        },
    );
}

#[test]
fn three_attempts_have_unique_and_ordered_tokens() {
    if cfg!(debug_assertions) {
        // Three attempts without clocks have too many states. With clocks, the same tokens are
        // chosen.
        let scope = Scope {
            clocks: true,
            ..QUIET
        };
        return explore::<3>("three attempts", scope, scope);
    }
    explore::<3>("three attempts", QUIET, QUIET);
}

#[test]
fn three_attempts_with_clocks_exclude_each_other() {
    let small = Scope {
        clocks: true,
        ..QUIET
    };
    let renewing = Scope {
        floors: HOSTILE,
        renewals: 3,
        ..small
    };
    let restarting = Scope {
        restarts: 1,
        renewals: 1,
        ..small
    };
    for (name, full) in [
        ("floors and renewals", renewing),
        ("a renewal and a restart", restarting),
    ] {
        explore::<3>(&format!("three attempts, {name}"), full, small);
    }
}

#[test]
fn without_a_write_back_tokens_repeat() {
    must_be_found::<2>(Bug::NoWriteBack, QUIET, UNIQUE);
}

#[test]
fn with_a_write_back_that_is_not_strict_tokens_repeat() {
    must_be_found::<2>(Bug::NonStrictWriteBack, QUIET, UNIQUE);
    // Checking the holder does not help if tokens are copied to a node that another attempt holds.
    must_be_found::<2>(
        Bug::NonStrictOwnWriteBack,
        Scope {
            clocks: true,
            floors: HOSTILE,
            restarts: 1,
            ..QUIET
        },
        UNIQUE,
    );
}

#[test]
fn majority_of_answering_nodes_does_not_exclude() {
    must_be_found::<2>(
        Bug::MajorityOfAnswered,
        Scope {
            clocks: true,
            ..QUIET
        },
        EXCLUSIVE,
    );
    must_be_found::<2>(Bug::MajorityOfAnswered, QUIET, UNIQUE);
}

#[test]
fn unreleased_partial_wins_block_until_they_expire() {
    must_be_found::<2>(
        Bug::NoReleaseOfPartialWins,
        Scope {
            clocks: true,
            ..QUIET
        },
        NOTHING_KEPT,
    );
}

#[test]
fn node_that_votes_after_data_loss_admits_two_holders() {
    let restart = Scope {
        clocks: true,
        restarts: 1,
        ..QUIET
    };
    must_be_found::<2>(Bug::VotesAfterDataLoss, restart, EXCLUSIVE);
    must_be_found::<2>(Bug::VotesAfterDataLoss, restart, UNIQUE);
}

#[test]
fn grace_period_by_a_set_clock_admits_two_holders() {
    let restart = Scope {
        clocks: true,
        restarts: 1,
        ..QUIET
    };
    must_be_found::<2>(Bug::GraceBySetClock, restart, EXCLUSIVE);
    must_be_found::<2>(Bug::GraceBySetClock, restart, UNIQUE);
}

#[test]
fn vote_after_grace_without_others_tokens_repeats_a_token() {
    must_be_found::<2>(
        Bug::NoTokenCopy,
        Scope {
            clocks: true,
            restarts: 1,
            ..QUIET
        },
        UNIQUE,
    );
    must_be_found::<2>(
        Bug::NoTokenCopy,
        Scope {
            clocks: true,
            restarts: 1,
            ..QUIET
        },
        ORDERED,
    );
}

#[test]
fn tokens_that_are_copied_before_the_grace_is_over_are_too_old() {
    must_be_found::<2>(
        Bug::TokenCopyBeforeGrace,
        Scope {
            clocks: true,
            restarts: 1,
            ..QUIET
        },
        UNIQUE,
    );
}

#[test]
fn token_copied_with_its_owner_may_be_the_wrong_owners() {
    must_be_found::<3>(
        Bug::OwnerCopied,
        Scope {
            clocks: true,
            restarts: 1,
            ..QUIET
        },
        UNIQUE,
    );
}

#[test]
fn node_reacquired_after_a_break_hides_another_holder() {
    must_be_found::<2>(
        Bug::ReacquiredAfterABreak,
        Scope {
            clocks: true,
            renewals: 1,
            ..QUIET
        },
        UNBROKEN,
    );
}

#[test]
fn duplicate_request_that_shortens_a_lock_admits_two_holders() {
    let scope = Scope {
        clocks: true,
        duplicates: 1,
        renewals: 1,
        ..QUIET
    };
    must_be_found::<2>(Bug::DuplicateShortens, scope, EXCLUSIVE);
}

#[test]
fn a_deadline_that_counts_from_the_answer_outlives_the_lock() {
    must_be_found::<2>(
        Bug::DeadlineFromAnswer,
        Scope {
            clocks: true,
            ..QUIET
        },
        EXCLUSIVE,
    );
}
