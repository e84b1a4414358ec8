//! A simulation of a client, the follower that it is connected to, and the leader. Each stands
//! still at random times, messages are delayed, and at some time the leader receives nothing more.
//! The session must not end before its deadline.

use std::{collections::VecDeque, time::Duration};

use leasehold_core::Timestamp;

use super::{HEARTBEAT_PART, Liveness};

/// Runs, and the steps of each. A step is a millisecond.
const SEEDS: u64 = 1_000;
const STEPS: u64 = 12_000;
/// How late a running leader sends a ping at most. Less than the interval of the beats.
const LATE: u64 = 8;

/// All times in milliseconds.
const TTL: u64 = 3_000;
const BEAT: u64 = TTL / HEARTBEAT_PART as u64;
const PATIENCE: u64 = TTL / 4;

/// The server that answers the beats, and the count of each answer.
#[derive(Clone, Copy, PartialEq)]
enum Beats {
    /// The leader, as it must be.
    Leader,
    /// The server that the client is connected to: such a beat proves nothing.
    Follower,
    /// The leader, and each answer counts as two: one beat proves nothing.
    Doubled,
}

/// A small random number generator: xorshift.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

/// A connection that delivers its messages in order.
struct Way<T> {
    sent: VecDeque<(u64, T)>,
    slowest: u64,
    open: bool,
}

impl<T> Way<T> {
    fn new(slowest: u64) -> Self {
        Self {
            sent: VecDeque::new(),
            slowest,
            open: true,
        }
    }

    fn send(&mut self, now: u64, dice: &mut Dice, what: T) {
        if self.open {
            let after = self.sent.back().map_or(0, |(arrives, _)| *arrives);
            self.sent
                .push_back((after.max(now + dice.below(self.slowest + 1)), what));
        }
    }

    fn take(&mut self, now: u64) -> Option<T> {
        if self.sent.front()?.0 <= now {
            self.sent.pop_front().map(|(_, what)| what)
        } else {
            None
        }
    }
}

/// A process that stops from time to time.
struct Process {
    until: u64,
    /// The mean number of steps between two stops. 0 means that it never stops.
    every: u64,
    longest: u64,
}

impl Process {
    fn of(dice: &mut Dice) -> Self {
        let every = if dice.below(3) == 0 {
            0
        } else {
            200 + dice.below(4_000)
        };
        Self {
            until: 0,
            every,
            longest: 1 + dice.below(TTL),
        }
    }

    fn runs(&mut self, now: u64, dice: &mut Dice) -> bool {
        if now >= self.until && self.every > 0 && dice.below(self.every) == 0 {
            self.until = now + dice.below(self.longest);
        }
        now >= self.until
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Request {
    Beat(u64),
    Transaction(u64),
}

enum FromLeader {
    Ping,
    Answer(Request),
}

enum FromFollower {
    /// The answer to a ping, and whether it reports the session.
    Told(bool),
    Forwarded(Request),
}

/// Runs the simulation once. Returns how much later than the session its deadline was.
fn overrun(seed: u64, beats: Beats) -> u64 {
    let dice = &mut Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let tick = 100 + dice.below(TTL / 2 - 100);
    let liveness = Liveness::new(Duration::from_millis(tick), at(0));
    // A fault between the resumption of the leader and its next ping needs a quick network, and a
    // transaction right after the answer of the leader.
    let quick = dice.below(2) == 0;
    let slowest = dice.below(if quick { 4 } else { 30 });
    let (mut up, mut down) = (Way::<Request>::new(slowest), Way::<Request>::new(slowest));
    let (mut to_leader, mut to_follower) = (
        Way::<FromFollower>::new(slowest),
        Way::<FromLeader>::new(slowest),
    );
    let (mut client, mut follower, mut leader) =
        (Process::of(dice), Process::of(dice), Process::of(dice));
    // In most runs the leader stops until then.
    let cut = TTL + dice.below(STEPS - 3 * TTL);
    let stop = cut - dice.below(TTL);
    // A ping is due at this time. It is sent once the leader has run for `late` steps after that.
    let (mut due, mut late) = (dice.below(tick / 2 + 1), 0);
    let (mut touched, mut ends) = (false, TTL);
    let (mut beat, mut next_beat, mut next_transaction, mut transaction) =
        (None, BEAT, TTL / 3, None);
    let mut deadline = TTL;
    for now in 0..STEPS {
        if now == stop && !seed.is_multiple_of(4) {
            leader.until = leader.until.max(cut - dice.below(2 * LATE));
        }
        if now == cut {
            to_leader.open = false;
        }
        // A leader that resumes sends a ping that is due before it stops again.
        let owes = now >= due && now >= leader.until;
        if owes || leader.runs(now, dice) {
            if now >= due {
                if late == 0 {
                    to_follower.send(now, dice, FromLeader::Ping);
                    due = now + tick / 2;
                    late = dice.below(LATE);
                } else {
                    late -= 1;
                }
            }
            // A session that expired while the leader was stopped has expired when it resumes.
            let lives = now <= ends;
            while let Some(arrived) = to_leader.take(now) {
                match arrived {
                    FromFollower::Told(true) if lives => ends = now + TTL,
                    FromFollower::Forwarded(request) if lives => {
                        to_follower.send(now, dice, FromLeader::Answer(request));
                    }
                    _ => {}
                }
            }
        }
        if follower.runs(now, dice) {
            while let Some(request) = up.take(now) {
                touched = true;
                match request {
                    Request::Beat(_) if beats == Beats::Follower => down.send(now, dice, request),
                    request => to_leader.send(now, dice, FromFollower::Forwarded(request)),
                }
            }
            while let Some(arrived) = to_follower.take(now) {
                match arrived {
                    FromLeader::Ping => {
                        to_leader.send(now, dice, FromFollower::Told(std::mem::take(&mut touched)));
                    }
                    FromLeader::Answer(request) => down.send(now, dice, request),
                }
            }
        }
        if client.runs(now, dice) && now <= deadline {
            while let Some(answer) = down.take(now) {
                match answer {
                    Request::Beat(sent) if beat == Some(sent) => {
                        liveness.beat(at(sent), at(now));
                        if beats == Beats::Doubled {
                            liveness.beat(at(sent), at(now));
                        }
                        (beat, next_beat) = (None, now + BEAT);
                        if quick {
                            next_transaction = now;
                        }
                    }
                    Request::Transaction(sent) if transaction == Some(sent) => {
                        transaction = None;
                        let heard = liveness.heard(at(sent)).as_nanos() / 1_000_000;
                        deadline = deadline.max(heard + TTL);
                    }
                    _ => {}
                }
            }
            if beat.is_some_and(|sent| now > sent + PATIENCE) {
                (beat, next_beat) = (None, now + BEAT);
            }
            if beat.is_none() && now >= next_beat {
                up.send(now, dice, Request::Beat(now));
                beat = Some(now);
            }
            if transaction.is_some_and(|sent| now > sent + PATIENCE) {
                transaction = None;
            }
            if transaction.is_none() && now >= next_transaction {
                up.send(now, dice, Request::Transaction(now));
                (transaction, next_transaction) = (Some(now), now + 1 + dice.below(TTL / 3));
            }
        }
    }
    deadline.saturating_sub(ends)
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_nanos(millis * 1_000_000)
}

#[test]
fn a_session_lives_until_its_deadline_in_every_simulation() {
    for seed in 1..=SEEDS {
        let late = overrun(seed, Beats::Leader);
        assert_eq!(late, 0, "seed {seed}: valid for {late} ms after the end");
    }
}

/// A defect that the simulation must find.
#[test]
fn beats_that_a_follower_answers_are_found_out() {
    let found = (1..=SEEDS)
        .filter(|seed| overrun(*seed, Beats::Follower) > 0)
        .count();
    assert!(found > SEEDS as usize / 50, "{found} of {SEEDS}");
}

/// A leader that has just resumed answers one beat before it sends the ping that is due.
#[test]
fn one_beat_instead_of_two_is_found_out() {
    let found = (1..=SEEDS)
        .filter(|seed| overrun(*seed, Beats::Doubled) > 0)
        .count();
    assert!(found >= 3, "{found} of {SEEDS}");
}

/// Without this, a deadline that never moves would pass the simulation.
#[test]
fn a_session_that_is_renewed_is_believed_in() {
    let liveness = Liveness::new(Duration::from_millis(200), at(0));
    for beat in (BEAT..10 * TTL).step_by(BEAT as usize) {
        liveness.beat(at(beat), at(beat + 2));
    }
    let heard = liveness.heard(at(10 * TTL)).as_nanos() / 1_000_000;
    assert!(10 * TTL - heard <= 3 * BEAT + 100 + 4, "{heard}");
}
