use std::{
    thread,
    time::{Duration, Instant},
};

use leasehold_integration::{
    checker::{self, Order},
    chosen::{chaos_duration, seed},
    stage::Stage,
    steps::millis,
    worker::{Answer, Command, EventLog},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{GRANTS_WITHIN, STORM_END, storm};
use crate::chaos::none;

const TTL: u64 = 300;

/// The locks live in one process, which is paused repeatedly for less and for more than a TTL.
#[test]
fn memory_keeps_its_promises_in_chaos() {
    let mut rng = StdRng::seed_from_u64(seed());
    let stage = Stage::on("memory:", TTL);
    let mut worker = stage.worker("p");
    let storm = super::Storm {
        tasks: 32,
        readers: 16,
        ..storm()
    };
    assert!(matches!(
        worker.ask(Command::Storm(storm)).unwrap(),
        Answer::Storming
    ));
    let granted = || {
        let events = EventLog::merge(&[stage.log("p")]).unwrap();
        checker::grants_between(&events, |_| true, 0, u64::MAX)
    };
    let begun = Instant::now();
    while begun.elapsed() < chaos_duration() || (granted() < 100 && begun.elapsed() < GRANTS_WITHIN)
    {
        thread::sleep(millis(rng.random_range(50..400)));
        worker.pause().unwrap();
        thread::sleep(Duration::from_millis(rng.random_range(1..2 * TTL)));
        worker.resume().unwrap();
    }
    let ending = worker.send(Command::Calm).unwrap();
    let Answer::Storm {
        granted: at_last,
        errors,
        ..
    } = worker.answer(ending, STORM_END).unwrap()
    else {
        panic!()
    };
    assert!(at_last >= 100, "only {at_last} grants: nothing was tested");
    assert!(errors.iter().all(|(kind, _)| kind == "Lost"), "{errors:?}");
    let events = EventLog::merge(&[stage.log("p")]).unwrap();
    none(&checker::overlaps(&events), "mutual exclusion");
    none(&checker::tokens(&events, Order::AsReported), "token order");
    none(
        &checker::register(&stage.register().history().unwrap()),
        "fenced writes",
    );
}
