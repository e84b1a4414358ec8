//! [`Plan`]: the subjects and durations of a run.

use std::time::Duration;

use clap::ValueEnum;

use super::{
    arguments::Arguments,
    backend::{Backend, BackendName},
    runtime::RuntimeKind,
    scenario::Scenario,
    subject::Subject,
};

/// The subjects and durations of a run.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) backends: Vec<BackendName>,
    pub(super) scenarios: Vec<Scenario>,
    /// The selected subjects; empty for all.
    only: Vec<String>,
    pub(super) runtimes: &'static [RuntimeKind],
    /// The rounds of `pair`, `handoff` and `counter`. Many short rounds are better than few long
    /// ones, because a disturbance then affects all subjects of a round alike. The number is odd,
    /// so that the median is one of the rounds.
    pub(super) rounds: usize,
    /// The warm-up and the measured duration of a round of `pair`.
    pub(super) pair: (Duration, Duration),
    /// The numbers of tasks in `pair`.
    pub(super) tasks: Vec<usize>,
    /// The number of hand-offs in a round, and the number for a subject that polls.
    pub(super) handoffs: (usize, usize),
    /// The number of leases in `held`, and the number of seconds.
    pub(super) held: (usize, u64),
    /// The number of hand-offs measured within a crowd.
    pub(super) crowd_handoffs: usize,
    /// The number of acquisitions by the process beside a crowd.
    pub(super) lone_turns: usize,
    /// The number of seconds of `contenders`.
    pub(super) contenders_for: u64,
    /// The number of rounds of `stopped`, and the measured duration of each.
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
    /// Returns the subjects to measure on a backend.
    pub(super) fn subjects(
        &self,
        backend: &dyn Backend,
        scenario: Scenario,
    ) -> Vec<Box<dyn Subject>> {
        let mut subjects = self.wanted(backend);
        subjects.retain(|subject| subject.takes_part(scenario));
        subjects
    }

    /// Returns the subjects that do not take part in a scenario although one might expect it, with
    /// the reason.
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
