//! `all`: acquire and release several keys under one guard, beside one lock in the same rounds.

use leasehold_integration::Result;

use super::Scenario;
use crate::{
    backend::Backend,
    figures::Latencies,
    plan::Plan,
    progress::Progress,
    row::{Figure, Row},
    scenario::pair::PairRound,
    subject::LEASEHOLD,
};

/// The number of keys under one guard.
const KEYS: usize = 8;

pub(super) fn run(plan: &Plan, backend: &dyn Backend, progress: &Progress) -> Result<Vec<Row>> {
    let name = backend.name().name();
    let subjects = plan.subjects(backend, Scenario::All);
    let one = subjects
        .iter()
        .find(|subject| subject.name() == LEASEHOLD)
        .and_then(|one| Some((one, one.together(KEYS)?)));
    let Some((one, together)) = one else {
        return Ok(Vec::new());
    };
    let mut rows = Vec::new();
    for &kind in plan.runtimes {
        progress.step(format_args!("{name}: {KEYS} keys at once, {}", kind.name()));
        let round = PairRound {
            tasks: 1,
            warm_up: plan.pair.0 * backend.pace(),
            time: plan.pair.1 * backend.pace(),
        };
        let mut measured = [&**one, &*together].map(|subject| (subject, Latencies::new(), vec![]));
        for number in 0..plan.rounds {
            // The order alternates, so that neither always comes first.
            if number % 2 == 1 {
                measured.reverse();
            }
            for (subject, latencies, medians) in &mut measured {
                let pairs = kind.build()?.block_on(subject.pairs(round))?;
                medians.push(Latencies::of(&pairs.nanos).quantile(0.5));
                latencies.extend(&pairs.nanos);
            }
            if number % 2 == 1 {
                measured.reverse();
            }
        }
        let [one, together] = measured.map(|(subject, latencies, medians)| {
            let figure = Figure::Costs(medians);
            Row::new(name, Scenario::All, KEYS, subject, kind, figure).with_latencies(&latencies)
        });
        let one = Row {
            subject: "one lock",
            ..one
        };
        rows.extend([one, together]);
    }
    Ok(rows)
}
