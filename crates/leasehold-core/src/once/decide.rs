//! [`decide`]: decides what to do about a name, and what to write.
//!
//! These are plain functions of the record, the time and the policies. The exploration in `model`
//! calls them as the client does.

use std::time::Duration;

use crate::{
    error::{Error, ErrorKind, Result},
    once::{
        occurrence::OccurrenceId,
        policies::{Missed, Policies},
        run_state::RunState,
        schedule::Schedule,
        state::{Entry, State, clipped},
        unix_millis::UnixMillis,
    },
};

/// The question of a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// The occurrence to run. `None` asks for the one that is due now.
    pub(crate) occurrence: Option<&'a OccurrenceId>,
    /// Without a schedule, the present instant is due.
    pub(crate) schedule: Option<&'a dyn Schedule>,
    pub(crate) policies: &'a Policies,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Write this state, whose first entry is the claim. Once the write is confirmed, begin.
    Claim(State),
    /// Do not run. Write the state if there is one.
    Rest(Rest, Option<State>),
}

/// The reason for which nothing is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// The occurrence ran or never will. The entry is missing if it has been forgotten.
    Decided(Option<Entry>),
    /// The occurrence may be claimed after this time.
    NotYet(Duration),
    /// Nothing is due until this instant, or ever.
    NotDue(Option<UnixMillis>),
}

/// Decides what to do about a name whose record says `state`.
///
/// Call it under the lock, and then write what it says. Then nobody else holds the lock, so that a
/// run without an end has crashed. Without the lock, only a [`Decision::Rest`] that writes nothing
/// is valid.
///
/// # Errors
/// [`ErrorKind::Conflict`] if the record has instants and a name is asked for, or the other way
/// round.
pub(crate) fn decide(state: Option<&State>, now: UnixMillis, asked: Asked<'_>) -> Result<Decision> {
    let named = asked
        .occurrence
        .is_some_and(|occurrence| occurrence.instant().is_none());
    if let Some(state) = state
        && state.through.is_none() != named
    {
        let (kept, wanted) = if named {
            ("scheduled instants", "a named occurrence")
        } else {
            ("named occurrences", "a scheduled instant")
        };
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("the record keeps {kept}, and {wanted} was asked for; use another name"),
        ));
    }
    let draft = Draft {
        state: state.cloned().unwrap_or_default(),
        changed: false,
        now,
        schedule: asked.schedule,
        policies: asked.policies,
    };
    Ok(match (asked.occurrence, asked.schedule) {
        (Some(OccurrenceId::At(at)), _) => draft.instant(*at),
        (Some(named), _) => draft.named(named),
        (None, Some(schedule)) => draft.due(schedule),
        (None, None) => draft.present(),
    })
}

/// The end of a run, as the record keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    Failed,
    Overtime,
}

/// Returns what to write when the first entry of `state`, which was claimed, has ended.
pub(crate) fn finish(
    mut state: State,
    now: UnixMillis,
    outcome: Outcome,
    note: Option<&str>,
    asked: Asked<'_>,
) -> State {
    let entry = &mut state.runs[0];
    entry.state = match outcome {
        Outcome::Ok => RunState::Ok,
        Outcome::Failed => RunState::Failed,
        Outcome::Overtime => RunState::Overtime,
    };
    entry.ended = Some(now);
    entry.note = note.and_then(clipped);
    let is_final = outcome == Outcome::Ok || entry.failures >= asked.policies.retry.failures;
    if let Some(at) = entry.id.instant().filter(|_| is_final) {
        state.decide_through(at);
        if asked.policies.skips_overlap()
            && let Some(schedule) = asked.schedule
            && let Some(latest) = latest(schedule, now).filter(|latest| *latest > at)
        {
            state.decide_through(latest);
            state.skip(OccurrenceId::At(latest), now, "fell due during a run");
        }
    }
    state.trim(asked.policies.history);
    state
}

/// Returns the last scheduled instant that is not after `at`.
fn latest(schedule: &dyn Schedule, at: UnixMillis) -> Option<UnixMillis> {
    let latest = UnixMillis::of(schedule.latest(at.time())?);
    // A schedule of the user may be wrong, and must not decide the future.
    (latest <= at).then_some(latest)
}

/// The state while it is decided on.
struct Draft<'a> {
    state: State,
    changed: bool,
    now: UnixMillis,
    schedule: Option<&'a dyn Schedule>,
    policies: &'a Policies,
}

/// The fate of an occurrence that has begun before.
enum Resumed {
    /// It is begun again.
    Again,
    /// It is begun again after this time.
    Later(Duration),
    /// It is decided.
    Over,
}

impl Draft<'_> {
    /// Decides what is due by a schedule.
    fn due(mut self, schedule: &dyn Schedule) -> Decision {
        let newest = latest(schedule, self.now);
        let Some(through) = self.state.through else {
            return self.new_name(schedule, newest);
        };
        let newest = newest.filter(|newest| *newest > through);
        if let Some(pending) = self.state.pending() {
            let began = self.state.runs[pending].id.instant();
            let superseded = newest.is_some_and(|newest| {
                Some(newest) > began
                    && match self.policies.missed {
                        Missed::Latest => true,
                        Missed::Skip => self.is_in_time(newest),
                        Missed::All { .. } => false,
                    }
            });
            match self.resume(pending, superseded) {
                Resumed::Again => return self.begin_again(pending),
                Resumed::Later(wait) => return self.rest(Rest::NotYet(wait)),
                Resumed::Over => {}
            }
        }
        let Some(newest) = newest.filter(|newest| Some(*newest) > self.state.through) else {
            return self.not_due(schedule);
        };
        let next = match self.policies.missed {
            Missed::Latest => newest,
            Missed::Skip if self.is_in_time(newest) => newest,
            Missed::Skip => {
                self.state.decide_through(newest);
                self.state
                    .skip(OccurrenceId::At(newest), self.now, "missed");
                self.changed = true;
                return self.not_due(schedule);
            }
            Missed::All { limit } => self.oldest_of(schedule, newest, limit),
        };
        self.begin(next)
    }

    /// Decides about the first occurrence of a new name. An occurrence that fell due before the
    /// name was known is made up for only within the grace period.
    fn new_name(mut self, schedule: &dyn Schedule, newest: Option<UnixMillis>) -> Decision {
        match newest.filter(|newest| self.is_in_time(*newest)) {
            Some(newest) => {
                self.state.decide_through(newest.before());
                self.begin(newest)
            }
            None => {
                self.state.decide_through(self.now);
                self.changed = true;
                self.not_due(schedule)
            }
        }
    }

    /// Decides without a schedule: the present instant is due.
    fn present(mut self) -> Decision {
        if let Some(pending) = self.state.pending() {
            // Nothing is newer than what is under way.
            match self.resume(pending, false) {
                Resumed::Again => return self.begin_again(pending),
                Resumed::Later(wait) => return self.rest(Rest::NotYet(wait)),
                Resumed::Over => {}
            }
        }
        let after_all = (self.state.through).map(|through| through.after(Duration::from_millis(1)));
        let present = after_all.map_or(self.now, |after_all| after_all.max(self.now));
        self.begin(present)
    }

    /// Decides about a given instant.
    fn instant(mut self, at: UnixMillis) -> Decision {
        let id = OccurrenceId::At(at);
        if Some(at) <= self.state.through {
            return self.decided(&id);
        }
        let wait = at.since(self.now);
        if wait > self.policies.early {
            return self.rest(Rest::NotYet(wait));
        }
        if let Some(pending) = self.state.pending() {
            let superseded = self.state.runs[pending].id != id;
            match self.resume(pending, superseded) {
                Resumed::Again => return self.begin_again(pending),
                Resumed::Later(wait) => return self.rest(Rest::NotYet(wait)),
                Resumed::Over if !superseded => return self.decided(&id),
                Resumed::Over => {}
            }
        }
        self.begin(at)
    }

    /// Decides about a named occurrence.
    fn named(mut self, id: &OccurrenceId) -> Decision {
        let Some(known) = self.state.position(id) else {
            let entry = Entry::begun(id.clone(), self.now);
            return match self.too_soon() {
                Some(wait) => self.rest(Rest::NotYet(wait)),
                None => self.claim(entry),
            };
        };
        match self.resume(known, false) {
            Resumed::Again => self.begin_again(known),
            Resumed::Later(wait) => self.rest(Rest::NotYet(wait)),
            Resumed::Over => self.decided(id),
        }
    }

    /// Decides about an occurrence that has begun before. Nobody else holds the lock, so that an
    /// attempt without an end has crashed.
    fn resume(&mut self, position: usize, superseded: bool) -> Resumed {
        let retry = self.policies.retry;
        let entry = &mut self.state.runs[position];
        let instant = entry.id.instant();
        match entry.state {
            RunState::Started if !superseded && entry.crashes < retry.crashes => {
                entry.crashes += 1;
                return Resumed::Again;
            }
            RunState::Started => {
                entry.state = RunState::Abandoned;
                entry.ended = Some(self.now);
                self.changed = true;
            }
            RunState::Failed | RunState::Overtime
                if !superseded && entry.failures < retry.failures =>
            {
                let from = entry.ended.unwrap_or(self.now).after(retry.delay);
                if from > self.now {
                    return Resumed::Later(from.since(self.now));
                }
                entry.failures += 1;
                return Resumed::Again;
            }
            RunState::Failed | RunState::Overtime => self.changed |= instant.is_some(),
            RunState::Ok | RunState::Abandoned | RunState::Skipped => {}
        }
        if let Some(at) = instant {
            self.state.decide_through(at);
        }
        Resumed::Over
    }

    /// Begins the next attempt of an occurrence.
    fn begin_again(mut self, position: usize) -> Decision {
        let entry = self.state.runs.remove(position);
        let again = Entry {
            crashes: entry.crashes,
            failures: entry.failures,
            ..Entry::begun(entry.id, self.now)
        };
        self.claim(again)
    }

    /// Begins the first attempt of an occurrence, unless it is too soon after the last one. Earlier
    /// occurrences are skipped.
    fn begin(mut self, at: UnixMillis) -> Decision {
        if let Some(wait) = self.too_soon() {
            return self.rest(Rest::NotYet(wait));
        }
        if let Some(schedule) = self.schedule
            && let Some(older) = latest(schedule, at.before())
            && self.state.through.is_some_and(|through| older > through)
        {
            self.state.skip(OccurrenceId::At(older), self.now, "missed");
        }
        self.state.decide_through(at.before());
        let entry = Entry::begun(OccurrenceId::At(at), self.now);
        self.claim(entry)
    }

    fn claim(mut self, entry: Entry) -> Decision {
        self.state.push(entry);
        if let Some(schedule) = self.schedule {
            self.state.schedule = clipped(&schedule.text());
        }
        self.state.trim(self.policies.history);
        Decision::Claim(self.state)
    }

    fn decided(self, id: &OccurrenceId) -> Decision {
        let entry = (self.state.position(id)).map(|position| self.state.runs[position].clone());
        self.rest(Rest::Decided(entry))
    }

    fn not_due(mut self, schedule: &dyn Schedule) -> Decision {
        let next = schedule.next(self.now.time()).map(UnixMillis::of);
        if self.changed {
            self.state.schedule = clipped(&schedule.text());
        }
        self.rest(Rest::NotDue(next))
    }

    fn rest(self, rest: Rest) -> Decision {
        Decision::Rest(rest, self.changed.then_some(self.state))
    }

    /// Returns how long no first attempt may begin yet.
    fn too_soon(&self) -> Option<Duration> {
        let from = self.state.last_begin()?.after(self.policies.at_least);
        (from > self.now && !self.policies.at_least.is_zero()).then(|| from.since(self.now))
    }

    /// Returns whether an occurrence has not been missed.
    fn is_in_time(&self, at: UnixMillis) -> bool {
        self.now.since(at) <= self.policies.grace
    }

    /// Returns the oldest of the last `limit` undecided instants up to `newest`.
    fn oldest_of(&self, schedule: &dyn Schedule, newest: UnixMillis, limit: u32) -> UnixMillis {
        let undecided = |at: &UnixMillis| Some(*at) > self.state.through;
        let older = |at: &UnixMillis| latest(schedule, at.before()).filter(undecided);
        std::iter::successors(Some(newest), older)
            .take(limit as usize)
            .last()
            .unwrap_or(newest)
    }
}

#[cfg(test)]
mod tests;
