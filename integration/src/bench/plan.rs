//! [`Plan`]: what is measured, and for how long.

use std::time::Duration;

use clap::ValueEnum;

use super::{
    arguments::Arguments,
    backend::{Backend, BackendName},
    runtime::RuntimeKind,
    scenario::Scenario,
    subject::Subject,
};

/// What is measured, and for how long.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) backends: Vec<BackendName>,
    pub(super) scenarios: Vec<Scenario>,
    /// Nothing for all.
    only: Vec<String>,
    pub(super) runtimes: &'static [RuntimeKind],
    /// Rounds of `pair`, `handoff` and `counter`. Many short ones rather than few long ones: what
    /// disturbs the machine then disturbs all subjects of a round alike. Odd, so that a median is
    /// one of them.
    pub(super) rounds: usize,
    /// How long one round of `pair` warms up, and how long it is measured.
    pub(super) pair: (Duration, Duration),
    /// Numbers of tasks in `pair`.
    pub(super) tasks: Vec<usize>,
    /// Hand-offs in a round, and those of a subject that polls.
    pub(super) handoffs: (usize, usize),
    /// Leases in `held`, and for how many seconds.
    pub(super) held: (usize, u64),
    /// Hand-offs measured within a crowd.
    pub(super) crowd_handoffs: usize,
    /// Times that the one beside a crowd locks.
    pub(super) lone_turns: usize,
    /// Seconds of `contenders`.
    pub(super) contenders_for: u64,
    /// Rounds of `stopped`, and how long each is measured.
    pub(super) stops: usize,
    pub(super) stopped_for: Duration,
}

impl Plan {
    pub(super) fn new(arguments: &Arguments) -> Self {
        let Arguments {
            backends,
            scenarios,
            quick,
            runtime,
            tasks,
            subjects,
            ..
        } = arguments;
        let millis = Duration::from_millis;
        let all = Self {
            backends: or_all(backends),
            scenarios: or_all(scenarios),
            only: subjects.clone(),
            runtimes: runtime.kinds(),
            rounds: 21,
            pair: (millis(40), millis(120)),
            tasks: if tasks.is_empty() {
                vec![1, 16, 64, 256]
            } else {
                tasks.clone()
            },
            handoffs: (60, 5),
            held: (10_000, 20),
            crowd_handoffs: 5_000,
            lone_turns: 200,
            contenders_for: 5,
            stops: 5,
            stopped_for: millis(3_000),
        };
        if !quick {
            return all;
        }
        Self {
            rounds: 5,
            pair: (millis(10), millis(40)),
            handoffs: (30, 2),
            held: (2_000, 8),
            crowd_handoffs: 1_000,
            lone_turns: 40,
            contenders_for: 2,
            stops: 2,
            stopped_for: millis(2_000),
            ..all
        }
    }
}

impl Plan {
    /// What is measured of a backend.
    pub(super) fn subjects(
        &self,
        backend: &dyn Backend,
        scenario: Scenario,
    ) -> Vec<Box<dyn Subject>> {
        let mut subjects = self.wanted(backend);
        subjects.retain(|subject| subject.takes_part(scenario));
        subjects
    }

    /// What takes no part in this scenario although one might expect it to, and why.
    pub(super) fn excuses(
        &self,
        backend: &dyn Backend,
        scenario: Scenario,
    ) -> Vec<(&'static str, &'static str)> {
        let subjects = self.wanted(backend);
        subjects
            .iter()
            .filter_map(|subject| Some((subject.name(), subject.excuse(scenario)?)))
            .collect()
    }

    fn wanted(&self, backend: &dyn Backend) -> Vec<Box<dyn Subject>> {
        let mut subjects = backend.subjects();
        subjects.retain(|subject| {
            self.only.is_empty() || self.only.iter().any(|only| only == subject.name())
        });
        subjects
    }
}

fn or_all<T: ValueEnum + Copy>(given: &[T]) -> Vec<T> {
    if given.is_empty() {
        T::value_variants().to_vec()
    } else {
        given.to_vec()
    }
}
