//! The true fate of each occurrence, and the promises that were broken.

use crate::once::{
    decide::Outcome,
    model::scope::{Asks, OCCURRENCES, Scope, instant, number},
    occurrence::OccurrenceId,
    policies::Missed,
    run_state::RunState,
    state::State,
    unix_millis::UnixMillis,
};

pub(super) const AGAIN: &str = "a decided occurrence never begins";
pub(super) const OFTEN: &str = "an occurrence begins at most 1 + crashes + failures times";
pub(super) const LOST: &str = "no occurrence is lost that the policies do not skip";
pub(super) const FELL: &str = "the watermark never falls";
pub(super) const OVERLAPPED: &str =
    "what fell due during a run does not run if the policy skips it";
pub(super) const SOON: &str = "first attempts keep the least gap";

/// One occurrence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Fate {
    /// How often the work began.
    pub(super) begins: u8,
    /// How many claims and failures the record has seen since data was lost.
    pub(super) claims: u8,
    pub(super) failures: u8,
    /// Whether the work was completed.
    pub(super) completed: bool,
    pub(super) decided: bool,
    /// Whether it fell due during a run, and the policy skips it.
    pub(super) overlapped: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Truth {
    pub(super) fates: [Fate; OCCURRENCES],
    watermark: Option<UnixMillis>,
    /// When the latest first attempt was claimed, by the claimant's clock.
    last_claim: Option<UnixMillis>,
    pub(super) broken: Vec<&'static str>,
}

/// A write that took effect.
pub(super) struct Written<'a> {
    pub(super) before: Option<&'a State>,
    pub(super) after: &'a State,
    /// The writer's time when it decided to write.
    pub(super) now: UnixMillis,
    pub(super) claims: bool,
    /// How the work of the first entry ended, if this is the write of its end.
    pub(super) ended: Option<Outcome>,
}

impl Truth {
    fn breaks(&mut self, promise: &'static str) {
        if !self.broken.contains(&promise) {
            self.broken.push(promise);
        }
    }

    /// Records that the work of an occurrence begins.
    pub(super) fn begin(&mut self, scope: &Scope, id: &OccurrenceId, losses: u8) {
        let fate = &mut self.fates[number(id)];
        fate.begins += 1;
        let retry = scope.policies.retry;
        let often = (1 + retry.crashes + retry.failures) * (1 + u32::from(losses));
        let (again, overlapped) = (fate.decided, fate.overlapped);
        if u32::from(fate.begins) > often {
            self.breaks(OFTEN);
        }
        if again {
            self.breaks(AGAIN);
        }
        if overlapped {
            self.breaks(OVERLAPPED);
        }
    }

    /// Records that the store loses its data, and with it the promises.
    pub(super) fn forget(&mut self) {
        self.watermark = None;
        self.last_claim = None;
        for fate in &mut self.fates {
            *fate = Fate {
                begins: fate.begins,
                completed: fate.completed,
                ..Fate::default()
            };
        }
    }

    /// Records that a write takes effect.
    pub(super) fn write(&mut self, scope: &Scope, written: &Written<'_>) {
        let Written { after, now, .. } = *written;
        if after.through < self.watermark {
            self.breaks(FELL);
        }
        self.watermark = self.watermark.max(after.through);
        if written.claims {
            let entry = &after.runs[0];
            self.fates[number(&entry.id)].claims += 1;
            if entry.attempt() == 1 {
                let least = self
                    .last_claim
                    .map(|last| last.after(scope.policies.at_least));
                if least > Some(now) && !scope.policies.at_least.is_zero() {
                    self.breaks(SOON);
                }
                self.last_claim = Some(now);
            }
        }
        if let Some(outcome) = written.ended {
            let runs = after.runs.iter();
            let ran = runs.clone().find(|entry| entry.attempt() > 0).unwrap();
            let ran_number = number(&ran.id);
            if outcome != Outcome::Ok {
                self.fates[ran_number].failures += 1;
            }
            let is_final = decided(scope, after, ran_number);
            if is_final && scope.has_schedule() && scope.policies.skips_overlap() {
                for later in ran_number + 1..=usize::from(scope.last) {
                    self.fates[later].overlapped |= instant(later as i16) <= now;
                }
            }
        }
        for occurrence in 1..=usize::from(scope.last) {
            if !decided(scope, after, occurrence) || self.fates[occurrence].decided {
                continue;
            }
            self.fates[occurrence].decided = true;
            // Occurrences before the first record of a name need not run.
            if written.before.is_some() && !self.is_justified(scope, written, occurrence) {
                self.breaks(LOST);
            }
        }
    }

    /// Returns whether an occurrence may be decided by this write: it is complete, its attempts are
    /// used up, or a policy skips it.
    fn is_justified(&self, scope: &Scope, written: &Written<'_>, occurrence: usize) -> bool {
        let Written { after, now, .. } = *written;
        let policies = &scope.policies;
        let fate = self.fates[occurrence];
        let crashes = u32::from(fate.claims - fate.failures);
        let exhausted =
            crashes > policies.retry.crashes || u32::from(fate.failures) > policies.retry.failures;
        if fate.completed || exhausted {
            return true;
        }
        match scope.asks {
            Asks::Named => return false,
            // Only what was claimed exists.
            Asks::Present => return fate.claims == 0,
            Asks::Due | Asks::Instants => {}
        }
        let due = |other: usize| instant(other as i16) <= now;
        let newer = occurrence + 1..=usize::from(scope.last);
        let newer_due = newer.clone().filter(|newer| due(*newer)).count();
        let still_to_run = newer
            .clone()
            .any(|newer| due(newer) && !decided(scope, after, newer));
        // A given instant skips the earlier ones.
        if scope.asks == Asks::Instants {
            return written.claims && number(&after.runs[0].id) > occurrence || fate.overlapped;
        }
        match policies.missed {
            Missed::Latest => still_to_run || fate.overlapped,
            Missed::Skip => {
                let missed = now.since(instant(occurrence as i16)) > policies.grace;
                still_to_run || fate.overlapped || missed && fate.claims == 0
            }
            Missed::All { limit } => newer_due >= limit as usize,
        }
    }
}

/// Returns whether the record says that an occurrence is decided.
pub(super) fn decided(scope: &Scope, state: &State, occurrence: usize) -> bool {
    if scope.asks != Asks::Named {
        return Some(instant(occurrence as i16)) <= state.through;
    }
    let entry = state
        .runs
        .iter()
        .find(|entry| number(&entry.id) == occurrence);
    entry.is_some_and(|entry| match entry.state {
        RunState::Started => false,
        RunState::Failed | RunState::Overtime => entry.failures >= scope.policies.retry.failures,
        RunState::Ok | RunState::Abandoned | RunState::Skipped => true,
    })
}
