//! An exploration of the decision: every order of events that two or three replicas can see, while
//! they crash, pause, lose the answers of their writes, and have different clocks. Wrong variants
//! are explored too, and each must be detected.
//!
//! Run it with `cargo test --release -p leasehold-core --lib once::model`. With debug assertions
//! the same properties are explored in smaller scopes. With `LEASEHOLD_TRACE=1` and `--nocapture`,
//! a short trace of each wrong variant is printed.
//!
//! The model has one record and one lock, as the contract promises them: a write takes effect only
//! while its writer holds the lock, and the lock of a dead or paused replica expires at some time.
//! Time passes in steps of one period of the schedule, or of half of one. The record is kept as its
//! text.

mod protocol;
mod scope;
mod truth;
mod world;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use stateright::{Checker, HasDiscoveries, Model};

use crate::once::{
    model::{
        protocol::Protocol,
        scope::{Asks, Bug, PERIOD, Scope},
        truth::{AGAIN, FELL, LOST, OFTEN, OVERLAPPED, SOON},
        world::World,
    },
    policies::{Missed, Overlap, Policies, Retry},
};

/// Explores all states, in a smaller scope if the compiler has not optimised.
fn explore(name: &str, full: &Scope, small: &Scope) {
    let scope = if cfg!(debug_assertions) { small } else { full };
    let begun = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let protocol = Protocol {
        scope: scope.clone(),
    };
    let checker = protocol.checker().threads(threads);
    let checker = if scope.clocks.iter().all(|clock| *clock == 0) {
        checker
            .symmetry_fn(World::representative)
            .spawn_dfs()
            .join()
    } else {
        checker.spawn_dfs().join()
    };
    println!(
        "{name}: {} states, {} steps, up to {} in a row, {:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed()
    );
    for (property, path) in checker.discoveries() {
        if checker.discovery_classification(property).to_string() == "counterexample" {
            let record = path.last_state().record.clone();
            let steps = path.into_actions();
            panic!("{name}: violated: {property}: {steps:?}, which leaves {record:?}");
        }
    }
    checker.assert_properties();
}

/// Explores a wrong variant breadth first until the property is violated.
fn must_be_found(bug: Bug, scope: &Scope, broken: &'static str) {
    let protocol = Protocol {
        scope: Scope {
            bug: Some(bug),
            ..scope.clone()
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
    let steps = path.into_actions();
    println!(
        "{bug:?}: after {} steps, this is violated: {broken}",
        steps.len()
    );
    if std::env::var_os("LEASEHOLD_TRACE").is_some() {
        for step in steps {
            println!("  {step:?}");
        }
    }
}

/// Two replicas on the store's clock, one of which crashes once, and loses one answer.
fn plain() -> Scope {
    Scope {
        replicas: 2,
        clocks: [0; 3],
        asks: Asks::Due,
        last: 2,
        steps: 1,
        crashes: 1,
        answers: 1,
        pauses: 1,
        failures: 0,
        losses: 0,
        policies: Policies {
            retry: Retry {
                crashes: 1,
                failures: 0,
                delay: Duration::ZERO,
            },
            ..Policies::default()
        },
        bug: None,
    }
}

fn with(scope: &Scope, change: impl FnOnce(&mut Scope)) -> Scope {
    let mut scope = scope.clone();
    change(&mut scope);
    scope
}

#[test]
fn latest_is_decided_once_with_crashes_and_pauses() {
    let full = with(&plain(), |scope| {
        scope.last = 3;
        scope.crashes = 2;
        scope.failures = 1;
    });
    explore("latest", &full, &plain());
}

#[test]
fn latest_is_decided_once_by_three_replicas() {
    // One writes or works, and two were paused.
    let small = with(&plain(), |scope| {
        scope.replicas = 3;
        scope.pauses = 2;
        scope.answers = 0;
    });
    let full = with(&small, |scope| {
        scope.last = 3;
        scope.crashes = 2;
    });
    explore("three replicas", &full, &small);
}

#[test]
fn queued_occurrences_are_all_run_or_exhausted() {
    let small = with(&plain(), |scope| {
        scope.policies.missed = Missed::All { limit: 10 };
        scope.policies.overlap = Overlap::Queue;
        scope.policies.retry.failures = 1;
        scope.policies.retry.delay = PERIOD;
        scope.failures = 1;
    });
    let full = with(&small, |scope| {
        scope.last = 3;
        scope.crashes = 2;
        scope.answers = 0;
    });
    explore("all", &full, &small);
}

#[test]
fn limited_catching_up_skips_only_what_is_older() {
    let small = with(&plain(), |scope| {
        scope.policies.missed = Missed::All { limit: 2 };
        scope.last = 4;
        scope.answers = 0;
        scope.pauses = 0;
    });
    let full = with(&small, |scope| {
        scope.pauses = 1;
        scope.answers = 1;
    });
    explore("the last two", &full, &small);
}

#[test]
fn missed_occurrences_are_skipped_after_the_grace() {
    let small = with(&plain(), |scope| {
        scope.policies.missed = Missed::Skip;
        scope.policies.grace = PERIOD / 4;
        scope.steps = 2;
        scope.answers = 0;
    });
    let full = with(&small, |scope| {
        scope.last = 3;
        scope.failures = 1;
        scope.policies.retry.failures = 1;
    });
    explore("skip", &full, &small);
}

#[test]
fn failures_and_crashes_count_apart() {
    let small = with(&plain(), |scope| {
        scope.policies.retry.failures = 1;
        scope.failures = 2;
        scope.answers = 0;
    });
    let full = with(&small, |scope| {
        scope.answers = 1;
        scope.last = 3;
    });
    explore("failures", &full, &small);
}

#[test]
fn nothing_runs_twice_with_neither_crashes_nor_failures_left() {
    let small = with(&plain(), |scope| {
        scope.policies.retry = Retry::never();
        scope.failures = 1;
    });
    let full = with(&small, |scope| {
        scope.last = 3;
        scope.crashes = 2;
        scope.answers = 2;
        scope.pauses = 2;
    });
    explore("at most once", &full, &small);
}

#[test]
fn different_clocks_decide_once_though_early() {
    let small = with(&plain(), |scope| {
        scope.clocks = [1, -1, 0];
        scope.answers = 0;
    });
    let full = with(&small, |scope| {
        scope.replicas = 3;
        scope.answers = 1;
    });
    explore("different clocks", &full, &small);
}

#[test]
fn different_clocks_lose_nothing_when_all_are_run() {
    let small = with(&plain(), |scope| {
        scope.clocks = [1, -1, 0];
        scope.answers = 0;
        scope.policies.missed = Missed::All { limit: 10 };
    });
    let full = with(&small, |scope| {
        scope.last = 3;
        scope.failures = 1;
        scope.policies.retry.failures = 1;
    });
    explore("different clocks, all", &full, &small);
}

#[test]
fn loss_of_data_repeats_at_most_what_was_forgotten() {
    let small = with(&plain(), |scope| {
        scope.losses = 1;
        scope.answers = 0;
    });
    let full = with(&small, |scope| {
        scope.answers = 1;
        scope.last = 3;
    });
    explore("data loss", &full, &small);
}

#[test]
fn least_gap_without_a_schedule_is_kept() {
    let small = with(&plain(), |scope| {
        scope.asks = Asks::Present;
        scope.policies.at_least = PERIOD * 2;
        scope.last = 3;
    });
    let full = with(&small, |scope| {
        scope.last = 4;
        scope.failures = 1;
        scope.policies.retry.failures = 1;
    });
    explore("without a schedule", &full, &small);
}

#[test]
fn named_occurrences_are_decided_once() {
    let small = with(&plain(), |scope| {
        scope.asks = Asks::Named;
        scope.answers = 0;
        scope.pauses = 0;
        scope.failures = 1;
    });
    let full = with(&small, |scope| {
        scope.pauses = 1;
        scope.policies.retry.failures = 1;
    });
    explore("named", &full, &small);
}

#[test]
fn given_instants_are_decided_once() {
    let small = with(&plain(), |scope| {
        scope.asks = Asks::Instants;
        scope.answers = 0;
    });
    let full = with(&small, |scope| {
        scope.last = 3;
        scope.clocks = [1, 0, 0];
    });
    explore("given instants", &full, &small);
}

#[test]
fn recording_the_end_before_the_work_loses_occurrences() {
    must_be_found(Bug::DoneBeforeWork, &plain(), LOST);
}

#[test]
fn instants_of_ones_own_clock_run_again() {
    must_be_found(Bug::OwnClock, &plain(), AGAIN);
}

#[test]
fn a_watermark_that_follows_the_clock_falls() {
    let scope = with(&plain(), |scope| scope.clocks = [1, 0, 0]);
    must_be_found(Bug::WatermarkFollowsClock, &scope, FELL);
    must_be_found(Bug::WatermarkFollowsClock, &scope, AGAIN);
}

#[test]
fn crashes_that_are_not_counted_repeat_without_end() {
    let scope = with(&plain(), |scope| scope.crashes = 2);
    must_be_found(Bug::CrashesNotCounted, &scope, OFTEN);
}

#[test]
fn a_claim_that_is_not_confirmed_begins_too_often() {
    let scope = with(&plain(), |scope| scope.policies.retry = Retry::never());
    must_be_found(Bug::BeginsUnconfirmed, &scope, OFTEN);
}

#[test]
fn overlapping_occurrences_that_are_not_skipped_run() {
    must_be_found(Bug::OverlapNotSkipped, &plain(), OVERLAPPED);
}

#[test]
fn writes_that_are_not_fenced_decide_for_others() {
    must_be_found(Bug::WritesNotFenced, &plain(), LOST);
}

#[test]
fn a_gap_that_is_not_kept_is_found() {
    let scope = with(&plain(), |scope| {
        scope.asks = Asks::Present;
        scope.policies.at_least = PERIOD * 2;
    });
    must_be_found(Bug::GapNotKept, &scope, SOON);
}
