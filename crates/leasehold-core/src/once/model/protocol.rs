//! The protocol of the replicas, and the steps of the exploration.

use std::time::Duration;

use stateright::{Model, Property};

use crate::once::{
    decide::{Asked, Decision, Outcome, Rest, decide, finish},
    format,
    model::{
        scope::{Asks, Bug, OCCURRENCES, PERIOD, Scope, instant, number},
        truth::{self, AGAIN, FELL, LOST, OFTEN, OVERLAPPED, SOON, Truth, Written},
        world::{Lock, Replica, Then, World, read},
    },
    occurrence::OccurrenceId,
    policies::{Overlap, Policies},
    run_state::RunState,
    schedule::{Every, Schedule},
    state::State,
    unix_millis::UnixMillis,
};

const ONE_AT_A_TIME: &str = "at most one runner works, and it holds the lock";
const SERVED: &str = "what is due and undecided is claimed, decided, or waited for";

/// A possible step. Replicas are identified by their index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Time passes.
    Tick,
    /// The replica takes the free lock, reads the record, and sends a write. With a number, it asks
    /// for this occurrence.
    Ask(usize, Option<u8>),
    /// The write takes effect.
    Arrive(usize),
    /// The write is confirmed.
    Confirm(usize),
    /// The answer is lost, and the replica gives up.
    LoseAnswer(usize),
    /// The work ends well, or fails.
    End(usize, bool),
    /// The replica crashes and starts again.
    Crash(usize),
    /// The lock of a crashed replica expires.
    Expire,
    /// The replica is paused until its lock has expired.
    Pause(usize),
    /// The write of a paused replica arrives late.
    ArriveLate(usize),
    /// The store loses its data.
    Forget,
}

pub(super) struct Protocol {
    pub(super) scope: Scope,
}

impl Protocol {
    fn now(&self, world: &World, replica: usize) -> UnixMillis {
        let steps = PERIOD * u32::from(world.time) / u32::from(self.scope.steps);
        instant(self.scope.clocks[replica]).after(steps)
    }

    fn schedule(&self, replica: usize) -> Option<Every> {
        let every = Every::new(PERIOD).unwrap();
        match self.scope.asks {
            Asks::Present | Asks::Named => None,
            Asks::Due | Asks::Instants if self.scope.bug == Some(Bug::OwnClock) => {
                let late = Duration::from_secs(replica as u64);
                Some(every.with_anchor(instant(0).after(late).time()))
            }
            Asks::Due | Asks::Instants => Some(every),
        }
    }

    fn policies(&self) -> Policies {
        let mut policies = self.scope.policies.clone();
        match self.scope.bug {
            Some(Bug::OverlapNotSkipped) => policies.overlap = Overlap::Queue,
            Some(Bug::GapNotKept) => policies.at_least = Duration::ZERO,
            _ => {}
        }
        policies
    }

    fn occurrence(&self, asked: Option<u8>) -> Option<OccurrenceId> {
        let asked = asked?;
        Some(match self.scope.asks {
            Asks::Named => OccurrenceId::named(&asked.to_string()).unwrap(),
            _ => OccurrenceId::At(instant(i16::from(asked))),
        })
    }

    /// Returns what a replica decides, with the wrong variant's change.
    fn decision(&self, world: &World, replica: usize, asked: Option<u8>) -> Decision {
        let state = world.known();
        let now = self.now(world, replica);
        let schedule = self.schedule(replica);
        let policies = self.policies();
        let occurrence = self.occurrence(asked);
        let asked = Asked {
            occurrence: occurrence.as_ref(),
            schedule: schedule.as_ref().map(|schedule| schedule as &dyn Schedule),
            policies: &policies,
        };
        let decision = decide(state.as_ref(), now, asked).unwrap();
        match (self.scope.bug, decision) {
            (Some(Bug::DoneBeforeWork), Decision::Claim(claim)) => {
                Decision::Claim(finish(claim, now, Outcome::Ok, None, asked))
            }
            (Some(Bug::CrashesNotCounted), Decision::Claim(mut claim)) => {
                let id = &claim.runs[0].id;
                let known = state.as_ref().and_then(|state| {
                    let position = state.position(id)?;
                    Some(state.runs[position].crashes)
                });
                claim.runs[0].crashes = known.unwrap_or(0);
                Decision::Claim(claim)
            }
            (Some(Bug::WatermarkFollowsClock), Decision::Rest(rest, None)) => {
                let mut state = state.unwrap();
                let latest = schedule.unwrap().latest(now.time()).map(UnixMillis::of);
                let changed = state.through != latest;
                state.through = latest;
                Decision::Rest(rest, changed.then_some(state))
            }
            (_, decision) => decision,
        }
    }

    /// Lets a write take effect.
    fn arrive(
        &self,
        world: &mut World,
        text: &str,
        decided: UnixMillis,
        claims: bool,
        ended: Option<bool>,
    ) {
        let before = world.known();
        let after = read(text);
        let written = Written {
            before: before.as_ref(),
            after: &after,
            now: decided,
            claims,
            ended: ended.map(|ok| if ok { Outcome::Ok } else { Outcome::Failed }),
        };
        world.truth.write(&self.scope, &written);
        world.record = Some(text.to_owned());
    }

    fn begin(&self, world: &mut World, replica: usize, text: String) {
        let state = read(&text);
        let entry = state.runs.iter().find(|entry| entry.attempt() > 0).unwrap();
        world.truth.begin(&self.scope, &entry.id, world.losses);
        world.replicas[replica] = Replica::Working { text };
    }

    /// Returns what a replica writes at the end of its work.
    fn end(&self, world: &World, replica: usize, text: &str, ok: bool) -> State {
        let schedule = self.schedule(replica);
        let policies = self.policies();
        let asked = Asked {
            occurrence: None,
            schedule: schedule.as_ref().map(|schedule| schedule as &dyn Schedule),
            policies: &policies,
        };
        let outcome = if ok { Outcome::Ok } else { Outcome::Failed };
        finish(read(text), self.now(world, replica), outcome, None, asked)
    }

    /// The replica loses the lock while it is paused. Its write may still arrive.
    fn pause(&self, world: &mut World, replica: usize) {
        let overdue = match &world.replicas[replica] {
            Replica::Working { text } => Replica::Overdue {
                text: format::write(&self.end(world, replica, text, true)),
            },
            Replica::Writing {
                text,
                arrived: false,
                ..
            } => Replica::Overdue { text: text.clone() },
            _ => Replica::Idle,
        };
        world.replicas[replica] = overdue;
    }

    fn asks(&self) -> Vec<Option<u8>> {
        match self.scope.asks {
            Asks::Due | Asks::Present => vec![None],
            Asks::Instants | Asks::Named => (1..=self.scope.last).map(Some).collect(),
        }
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        assert!(usize::from(self.scope.last) < OCCURRENCES);
        vec![World {
            time: 0,
            record: None,
            lock: Lock::Free,
            replicas: vec![Replica::Idle; self.scope.replicas],
            crashes: 0,
            answers: 0,
            pauses: 0,
            failures: 0,
            losses: 0,
            truth: Truth::default(),
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let scope = &self.scope;
        if world.time < scope.last * scope.steps {
            steps.push(Step::Tick);
        }
        if world.lock == Lock::Orphaned {
            steps.push(Step::Expire);
        }
        if world.losses < scope.losses && world.record.is_some() {
            steps.push(Step::Forget);
        }
        for (at, replica) in world.replicas.iter().enumerate() {
            match replica {
                Replica::Idle if world.lock == Lock::Free => {
                    steps.extend(self.asks().into_iter().map(|asked| Step::Ask(at, asked)));
                }
                Replica::Idle => {}
                Replica::Writing { arrived, .. } => {
                    steps.push(if *arrived {
                        Step::Confirm(at)
                    } else {
                        Step::Arrive(at)
                    });
                    if world.answers < scope.answers {
                        steps.push(Step::LoseAnswer(at));
                    }
                }
                Replica::Working { .. } => {
                    steps.push(Step::End(at, true));
                    if world.failures < scope.failures {
                        steps.push(Step::End(at, false));
                    }
                }
                Replica::Overdue { .. } => steps.push(Step::ArriveLate(at)),
            }
            if replica.holds() && world.crashes < scope.crashes {
                steps.push(Step::Crash(at));
            }
            if replica.holds() && world.pauses < scope.pauses {
                steps.push(Step::Pause(at));
            }
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match step {
            Step::Tick => world.time += 1,
            Step::Ask(replica, asked) => {
                let (state, then) = match self.decision(last, replica, asked) {
                    Decision::Claim(state) => (state, Then::Begin),
                    Decision::Rest(_, Some(state)) => (state, Then::Release),
                    Decision::Rest(_, None) => return None,
                };
                // The schedule has no more occurrences than the scope.
                let newest = state.runs.first().map_or(0, |entry| number(&entry.id));
                if newest > usize::from(self.scope.last) || newest == 0 && then == Then::Begin {
                    return None;
                }
                world.lock = Lock::Held;
                world.replicas[replica] = Replica::Writing {
                    text: format::write(&state),
                    decided: self.now(last, replica),
                    arrived: false,
                    ended: None,
                    then,
                };
            }
            Step::Arrive(at) => {
                let Replica::Writing {
                    text,
                    decided,
                    arrived,
                    ended,
                    then,
                } = &mut world.replicas[at]
                else {
                    return None;
                };
                *arrived = true;
                let (text, decided, ended, then) = (text.clone(), *decided, *ended, *then);
                self.arrive(&mut world, &text, decided, then == Then::Begin, ended);
            }
            Step::Confirm(at) => {
                let Replica::Writing { text, then, .. } = &last.replicas[at] else {
                    return None;
                };
                match then {
                    Then::Begin => self.begin(&mut world, at, text.clone()),
                    Then::Release => {
                        world.lock = Lock::Free;
                        world.replicas[at] = Replica::Idle;
                    }
                }
            }
            Step::LoseAnswer(at) => {
                world.answers += 1;
                match &last.replicas[at] {
                    Replica::Writing {
                        text,
                        then: Then::Begin,
                        ..
                    } if self.scope.bug == Some(Bug::BeginsUnconfirmed) => {
                        self.begin(&mut world, at, text.clone());
                    }
                    _ => {
                        world.lock = Lock::Free;
                        world.replicas[at] = Replica::Idle;
                    }
                }
            }
            Step::End(at, ok) => {
                let Replica::Working { text } = &last.replicas[at] else {
                    return None;
                };
                world.failures += u8::from(!ok);
                let state = read(text);
                let ran = state.runs.iter().find(|entry| entry.attempt() > 0).unwrap();
                world.truth.fates[number(&ran.id)].completed |= ok;
                if self.scope.bug == Some(Bug::DoneBeforeWork) {
                    world.lock = Lock::Free;
                    world.replicas[at] = Replica::Idle;
                    return Some(world);
                }
                world.replicas[at] = Replica::Writing {
                    text: format::write(&self.end(last, at, text, ok)),
                    decided: self.now(last, at),
                    arrived: false,
                    ended: Some(ok),
                    then: Then::Release,
                };
            }
            Step::Crash(at) => {
                world.crashes += 1;
                world.lock = Lock::Orphaned;
                world.replicas[at] = Replica::Idle;
            }
            Step::Expire => world.lock = Lock::Free,
            Step::Pause(at) => {
                world.pauses += 1;
                world.lock = Lock::Free;
                self.pause(&mut world, at);
            }
            Step::ArriveLate(at) => {
                let Replica::Overdue { text } = &last.replicas[at] else {
                    return None;
                };
                if self.scope.bug == Some(Bug::WritesNotFenced) {
                    self.arrive(&mut world, text, self.now(last, at), false, None);
                }
                world.replicas[at] = Replica::Idle;
            }
            Step::Forget => {
                world.losses += 1;
                world.record = None;
                world.lock = Lock::Free;
                world.truth.forget();
                for at in 0..world.replicas.len() {
                    if world.replicas[at].holds() {
                        self.pause(&mut world, at);
                    }
                }
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(AGAIN, |_, world: &World| keeps(world, AGAIN)),
            Property::always(OFTEN, |_, world: &World| keeps(world, OFTEN)),
            Property::always(LOST, |_, world: &World| keeps(world, LOST)),
            Property::always(FELL, |_, world: &World| keeps(world, FELL)),
            Property::always(OVERLAPPED, |_, world: &World| keeps(world, OVERLAPPED)),
            Property::always(SOON, |_, world: &World| keeps(world, SOON)),
            Property::always(ONE_AT_A_TIME, |_, world: &World| {
                let holders = world.replicas.iter().filter(|replica| replica.holds());
                holders.count() == usize::from(world.lock == Lock::Held)
            }),
        ];
        if self.scope.bug.is_some() {
            return all;
        }
        all.push(Property::always(SERVED, Self::serves));
        self.add_reachable(&mut all);
        all
    }
}

fn keeps(world: &World, promise: &str) -> bool {
    !world.truth.broken.contains(&promise)
}

impl Protocol {
    /// Returns whether a replica that looks now leaves nothing behind that is due: it claims, it
    /// writes a decision, or it waits for a known time.
    fn serves(&self, world: &World) -> bool {
        let Some(state) = world.known() else {
            return true;
        };
        if self.scope.asks != Asks::Due || world.lock != Lock::Free {
            return true;
        }
        let due = (1..=self.scope.last).any(|occurrence| {
            instant(i16::from(occurrence)) <= self.now(world, 0)
                && !truth::decided(&self.scope, &state, usize::from(occurrence))
        });
        match self.decision(world, 0, None) {
            Decision::Rest(Rest::NotDue(_), None) => !due,
            Decision::Rest(Rest::NotYet(wait), _) => wait <= PERIOD * 2,
            _ => true,
        }
    }

    /// Adds what must be reachable, or else the exploration shows nothing.
    fn add_reachable(&self, all: &mut Vec<Property<Self>>) {
        let scope = &self.scope;
        all.push(Property::sometimes(
            "everything is completed",
            |protocol: &Self, world: &World| {
                let last = usize::from(protocol.scope.last);
                let fates = &world.truth.fates[..=last];
                match protocol.scope.asks {
                    Asks::Present => fates.iter().filter(|fate| fate.completed).count() >= 2,
                    _ => fates[1..].iter().all(|fate| fate.completed),
                }
            },
        ));
        if scope.crashes > 0 && scope.policies.retry.crashes > 0 {
            all.push(Property::sometimes(
                "a crash is made up for",
                |_, world: &World| {
                    any_run(world, |entry| {
                        entry.state == RunState::Ok && entry.crashes > 0
                    })
                },
            ));
        }
        if scope.crashes > scope.policies.retry.crashes as u8 {
            all.push(Property::sometimes(
                "a run is abandoned",
                |_, world: &World| any_run(world, |entry| entry.state == RunState::Abandoned),
            ));
        }
        if scope.failures > 0 {
            all.push(Property::sometimes("a run fails", |_, world: &World| {
                any_run(world, |entry| entry.state == RunState::Failed)
            }));
        }
        if scope.failures > 0 && scope.policies.retry.failures > 0 {
            all.push(Property::sometimes(
                "a failure is made up for",
                |_, world: &World| {
                    any_run(world, |entry| {
                        entry.state == RunState::Ok && entry.failures > 0
                    })
                },
            ));
        }
        if scope.asks == Asks::Due && scope.policies.skips_overlap() {
            all.push(Property::sometimes(
                "an occurrence is skipped",
                |_, world: &World| any_run(world, |entry| entry.state == RunState::Skipped),
            ));
        }
        if scope.losses > 0 {
            all.push(Property::sometimes(
                "an occurrence runs again",
                |_, world: &World| {
                    let mut fates = world.truth.fates.iter();
                    world.losses > 0 && fates.any(|fate| fate.begins > 1)
                },
            ));
        }
    }
}

fn any_run(world: &World, is: impl Fn(&crate::once::state::Entry) -> bool) -> bool {
    world.known().is_some_and(|state| state.runs.iter().any(is))
}
