//! Each rule of the decision by itself. The exploration in `model` has their combinations.

use super::*;
use crate::once::{
    format,
    policies::{Overlap, Retry},
    schedule::Every,
};

/// Occurrences are 10 s apart, and times are seconds.
const PERIOD: Duration = Duration::from_secs(10);

fn at(seconds: u64) -> UnixMillis {
    UnixMillis::new(seconds * 1_000).unwrap()
}

/// One name with its schedule, its policies and its record.
struct Name {
    schedule: Option<Every>,
    policies: Policies,
    record: Option<State>,
}

impl Name {
    fn new(change: impl FnOnce(&mut Policies)) -> Self {
        let mut policies = Policies {
            retry: Retry {
                crashes: 1,
                failures: 0,
                delay: Duration::from_secs(5),
            },
            ..Policies::default()
        };
        change(&mut policies);
        Self {
            schedule: Some(Every::new(PERIOD).unwrap()),
            policies,
            record: None,
        }
    }

    /// A name that has run its occurrence at 100 s.
    fn known(change: impl FnOnce(&mut Policies)) -> Self {
        let mut this = Self::new(change);
        assert_eq!(this.ask(100), "claims 100, attempt 1");
        this.end(100, Outcome::Ok);
        this
    }

    fn without_schedule(change: impl FnOnce(&mut Policies)) -> Self {
        Self {
            schedule: None,
            ..Self::new(change)
        }
    }

    fn asked<'a>(&'a self, occurrence: Option<&'a OccurrenceId>) -> Asked<'a> {
        Asked {
            occurrence,
            schedule: self.schedule.as_ref().map(|every| every as &dyn Schedule),
            policies: &self.policies,
        }
    }

    /// Returns what is decided about what is due, and writes it.
    fn ask(&mut self, now: u64) -> String {
        self.decide(now, None)
    }

    fn ask_for(&mut self, now: u64, occurrence: &OccurrenceId) -> String {
        self.decide(now, Some(occurrence))
    }

    fn decide(&mut self, now: u64, occurrence: Option<&OccurrenceId>) -> String {
        let asked = self.asked(occurrence);
        let decision = decide(self.record.as_ref(), at(now), asked).unwrap();
        let (shown, write) = match decision {
            Decision::Claim(state) => {
                let entry = &state.runs[0];
                let id = shown(&entry.id);
                (
                    format!("claims {id}, attempt {}", entry.attempt()),
                    Some(state),
                )
            }
            Decision::Rest(Rest::Decided(entry), write) => {
                let state = entry.map(|entry| entry.state.to_string());
                (format!("decided: {state:?}"), write)
            }
            Decision::Rest(Rest::NotYet(wait), write) => (format!("not yet: {wait:?}"), write),
            Decision::Rest(Rest::NotDue(next), write) => (
                format!("not due until {}", next.unwrap().get() / 1_000),
                write,
            ),
        };
        if let Some(state) = write {
            // The text keeps the whole state.
            let text = format::write(&state);
            assert_eq!(format::parse(text.as_bytes()).unwrap(), state);
            self.record = Some(state);
        }
        shown
    }

    fn end(&mut self, now: u64, outcome: Outcome) {
        let state = self.record.clone().unwrap();
        self.record = Some(finish(
            state,
            at(now),
            outcome,
            Some("a note"),
            self.asked(None),
        ));
    }

    /// Returns the watermark and the runs, the newest first.
    fn runs(&self) -> String {
        let state = self.record.as_ref().unwrap();
        let runs: Vec<_> = state
            .runs
            .iter()
            .map(|entry| format!("{} {}", shown(&entry.id), entry.state))
            .collect();
        match state.through {
            Some(through) => format!("{}: {}", through.get() / 1_000, runs.join(", ")),
            None => runs.join(", "),
        }
    }
}

fn shown(id: &OccurrenceId) -> String {
    match id {
        OccurrenceId::At(at) => (at.get() / 1_000).to_string(),
        OccurrenceId::Named(name) => name.to_string(),
    }
}

fn named(name: &str) -> OccurrenceId {
    OccurrenceId::named(name).unwrap()
}

#[test]
fn new_name_runs_what_fell_due_within_the_grace() {
    let mut name = Name::new(|policies| policies.grace = Duration::from_secs(4));
    assert_eq!(name.ask(104), "claims 100, attempt 1");
}

#[test]
fn new_name_makes_up_for_nothing_older() {
    let mut name = Name::new(|policies| policies.grace = Duration::from_secs(4));
    assert_eq!(name.ask(105), "not due until 110");
    assert_eq!(name.runs(), "105: ");
    assert_eq!(name.ask(109), "not due until 110");
    assert_eq!(name.ask(110), "claims 110, attempt 1");
}

#[test]
fn each_occurrence_is_claimed_once() {
    let mut name = Name::known(|_| ());
    assert_eq!(name.ask(101), "not due until 110");
    assert_eq!(name.ask(110), "claims 110, attempt 1");
    name.end(111, Outcome::Ok);
    assert_eq!(name.ask(119), "not due until 120");
    assert_eq!(name.runs(), "110: 110 ok, 100 ok");
}

#[test]
fn a_slow_clock_does_not_run_a_decided_occurrence_again() {
    let mut name = Name::known(|_| ());
    assert_eq!(name.ask(95), "not due until 100");
    assert_eq!(name.runs(), "100: 100 ok");
}

#[test]
fn latest_skips_older_missed_occurrences() {
    let mut name = Name::known(|_| ());
    assert_eq!(name.ask(149), "claims 140, attempt 1");
    assert_eq!(name.runs(), "139: 140 started, 130 skipped, 100 ok");
}

#[test]
fn skip_runs_only_what_is_within_the_grace() {
    let mut name = Name::known(|policies| {
        policies.missed = Missed::Skip;
        policies.grace = Duration::from_secs(2);
    });
    assert_eq!(name.ask(113), "not due until 120");
    assert_eq!(name.runs(), "110: 110 skipped, 100 ok");
    assert_eq!(name.ask(122), "claims 120, attempt 1");
}

#[test]
fn all_runs_the_last_missed_ones_the_oldest_first() {
    let mut name = Name::known(|policies| policies.missed = Missed::All { limit: 2 });
    assert_eq!(name.ask(149), "claims 130, attempt 1");
    name.end(149, Outcome::Ok);
    assert_eq!(name.ask(149), "claims 140, attempt 1");
    name.end(149, Outcome::Ok);
    assert_eq!(name.ask(149), "not due until 150");
    assert_eq!(name.runs(), "140: 140 ok, 130 ok, 120 skipped, 100 ok");
}

#[test]
fn crash_begins_again_until_crashes_are_used_up() {
    let mut name = Name::known(|_| ());
    assert_eq!(name.ask(110), "claims 110, attempt 1");
    assert_eq!(name.ask(112), "claims 110, attempt 2");
    assert_eq!(name.ask(114), "not due until 120");
    assert_eq!(name.runs(), "110: 110 abandoned, 100 ok");
}

#[test]
fn crashed_occurrence_gives_way_to_a_newer_one() {
    let mut name = Name::known(|_| ());
    assert_eq!(name.ask(110), "claims 110, attempt 1");
    assert_eq!(name.ask(121), "claims 120, attempt 1");
    assert_eq!(name.runs(), "119: 120 started, 110 abandoned, 100 ok");
}

#[test]
fn crashed_occurrence_is_first_when_all_are_run() {
    let mut name = Name::known(|policies| policies.missed = Missed::All { limit: 9 });
    assert_eq!(name.ask(110), "claims 110, attempt 1");
    assert_eq!(name.ask(121), "claims 110, attempt 2");
}

#[test]
fn failure_begins_again_after_the_delay() {
    let mut name = Name::known(|policies| policies.retry.failures = 1);
    assert_eq!(name.ask(110), "claims 110, attempt 1");
    name.end(111, Outcome::Failed);
    assert_eq!(name.ask(112), "not yet: 4s");
    assert_eq!(name.ask(116), "claims 110, attempt 2");
    name.end(117, Outcome::Overtime);
    assert_eq!(name.ask(118), "not due until 120");
    assert_eq!(name.runs(), "110: 110 overtime, 100 ok");
}

#[test]
fn failed_occurrence_gives_way_to_a_newer_one() {
    let mut name = Name::known(|policies| policies.retry.failures = 1);
    assert_eq!(name.ask(110), "claims 110, attempt 1");
    name.end(119, Outcome::Failed);
    assert_eq!(name.ask(120), "claims 120, attempt 1");
    assert_eq!(name.runs(), "119: 120 started, 110 failed, 100 ok");
}

#[test]
fn what_falls_due_during_a_run_is_skipped() {
    let mut name = Name::known(|_| ());
    assert_eq!(name.ask(110), "claims 110, attempt 1");
    name.end(135, Outcome::Ok);
    assert_eq!(name.ask(136), "not due until 140");
    assert_eq!(name.runs(), "130: 130 skipped, 110 ok, 100 ok");
}

#[test]
fn what_falls_due_during_a_run_is_queued() {
    let mut name = Name::known(|policies| policies.overlap = Overlap::Queue);
    assert_eq!(name.ask(110), "claims 110, attempt 1");
    name.end(135, Outcome::Ok);
    assert_eq!(name.ask(136), "claims 130, attempt 1");
}

#[test]
fn first_attempts_keep_the_least_gap() {
    let mut name = Name::known(|policies| policies.at_least = Duration::from_secs(15));
    assert_eq!(name.ask(112), "not yet: 3s");
    assert_eq!(name.ask(115), "claims 110, attempt 1");
    assert_eq!(name.ask(116), "claims 110, attempt 2");
}

#[test]
fn without_a_schedule_the_present_is_due() {
    let mut name = Name::without_schedule(|policies| policies.at_least = Duration::from_secs(60));
    assert_eq!(name.ask(103), "claims 103, attempt 1");
    // The runner crashed.
    assert_eq!(name.ask(105), "claims 103, attempt 2");
    name.end(106, Outcome::Ok);
    assert_eq!(name.ask(107), "not yet: 58s");
    assert_eq!(name.ask(165), "claims 165, attempt 1");
    assert_eq!(name.runs(), "164: 165 started, 103 ok");
}

#[test]
fn without_a_schedule_a_clock_set_back_claims_a_new_instant() {
    let mut name = Name::without_schedule(|_| ());
    assert_eq!(name.ask(103), "claims 103, attempt 1");
    name.end(104, Outcome::Ok);
    let Decision::Claim(state) = decide(name.record.as_ref(), at(90), name.asked(None)).unwrap()
    else {
        panic!("nothing was claimed");
    };
    assert_eq!(state.runs[0].id.instant().unwrap().get(), 103_001);
}

#[test]
fn given_instants_are_claimed_in_order_however_late() {
    let mut name = Name::without_schedule(|policies| policies.early = Duration::from_secs(2));
    let instant = |seconds| OccurrenceId::At(at(seconds));
    assert_eq!(name.ask_for(100, &instant(103)), "not yet: 3s");
    assert_eq!(name.ask_for(101, &instant(103)), "claims 103, attempt 1");
    name.end(104, Outcome::Ok);
    assert_eq!(name.ask_for(500, &instant(103)), "decided: Some(\"ok\")");
    // An earlier instant is decided too, and it has no entry.
    assert_eq!(name.ask_for(500, &instant(102)), "decided: None");
    assert_eq!(name.ask_for(500, &instant(110)), "claims 110, attempt 1");
    // The runner crashed, and a later instant is asked for.
    assert_eq!(name.ask_for(500, &instant(120)), "claims 120, attempt 1");
    assert_eq!(name.ask_for(500, &instant(120)), "claims 120, attempt 2");
    assert_eq!(
        name.ask_for(500, &instant(120)),
        "decided: Some(\"abandoned\")"
    );
    assert_eq!(name.runs(), "120: 120 abandoned, 110 abandoned, 103 ok");
}

#[test]
fn named_occurrences_are_decided_one_by_one() {
    let mut name = Name::without_schedule(|_| ());
    assert_eq!(name.ask_for(100, &named("b")), "claims b, attempt 1");
    name.end(101, Outcome::Ok);
    assert_eq!(name.ask_for(102, &named("a")), "claims a, attempt 1");
    name.end(103, Outcome::Failed);
    for (asked, decided) in [("b", "ok"), ("a", "failed")] {
        let expected = format!("decided: Some({decided:?})");
        assert_eq!(name.ask_for(104, &named(asked)), expected);
    }
    assert_eq!(name.ask_for(105, &named("c")), "claims c, attempt 1");
    assert_eq!(name.ask_for(106, &named("c")), "claims c, attempt 2");
    assert_eq!(
        name.ask_for(107, &named("c")),
        "decided: Some(\"abandoned\")"
    );
    assert_eq!(name.runs(), "c abandoned, a failed, b ok");
}

#[test]
fn forgotten_names_run_again() {
    let mut name = Name::without_schedule(|policies| policies.history = 2);
    for asked in ["a", "b", "c", "a"] {
        assert_eq!(
            name.ask_for(100, &named(asked)),
            format!("claims {asked}, attempt 1")
        );
        name.end(100, Outcome::Ok);
    }
    assert_eq!(name.runs(), "a ok, c ok");
}

#[test]
fn instants_and_names_under_one_name_conflict() {
    let mut name = Name::known(|_| ());
    let id = named("a");
    let error = decide(name.record.as_ref(), at(110), name.asked(Some(&id))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("use another name"), "{error}");

    name.record = None;
    name.ask_for(100, &id);
    let error = decide(name.record.as_ref(), at(110), name.asked(None)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[test]
fn schedule_that_answers_with_the_future_decides_nothing() {
    #[derive(Debug)]
    struct Ahead;
    impl Schedule for Ahead {
        fn latest(&self, at_or_before: std::time::SystemTime) -> Option<std::time::SystemTime> {
            Some(at_or_before + PERIOD)
        }
        fn next(&self, _: std::time::SystemTime) -> Option<std::time::SystemTime> {
            None
        }
        fn text(&self) -> String {
            "ahead".into()
        }
    }
    let name = Name::known(|_| ());
    let asked = Asked {
        schedule: Some(&Ahead),
        ..name.asked(None)
    };
    let decision = decide(name.record.as_ref(), at(110), asked).unwrap();
    assert_eq!(decision, Decision::Rest(Rest::NotDue(None), None));
}
