//! [`Liveness`]: the deadline of a session.
//!
//! The leader ends a session that it has not heard of for the session's time-out. A follower
//! reports its sessions to the leader only in its replies to the leader's pings, one every half
//! tick. So neither the reply of a follower nor a transaction shows when the leader last heard of a
//! session: a leader that stood still sent no pings meanwhile, and still executes what was sent to
//! it.
//!
//! A chain of *beats* shows it. A beat is a request that the leader itself answers. The client
//! sends one after the other.
//!
//! ```text
//! the leader:        heard          ping        first  second   transaction
//! ─────────────────────┴──────────────┴────────────┴──────┴──────────┴─────▶
//! this client:       beat, answered             first  second   transaction
//! ```
//!
//! - The leader answered the second beat, so it had sent the ping that was due at the first beat.
//!   That ping is at most half a tick older than the first beat. This is the one assumption about
//!   time: a leader that answers requests sends its pings when they are due, and is late by less
//!   than the distance of two beats.
//! - The answer to the second beat came behind the ping on one connection, so the follower had
//!   replied to the ping.
//! - The transaction followed that reply to the leader on one connection. The ensemble committed
//!   it, so the leader had read the reply, and was still the leader.
//! - The reply reported the session if the follower had received a beat before it. The last beat
//!   that was answered before the ping therefore counts: the leader keeps the session for its
//!   time-out from the moment that this beat was sent, or longer.
//!
//! A connection to another server or leader begins with a message to the leader that renews the
//! session. That is later than everything that was answered on the connection before. A leader
//! hears its own clients at once.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use leasehold_core::Timestamp;

/// The interval of the beats, as a part of the TTL. Every deadline is earlier by three intervals.
pub(crate) const HEARTBEAT_PART: u32 = 30;

/// The beats of one session, and what they prove.
#[derive(Debug)]
pub(crate) struct Liveness {
    /// The interval of the leader's pings.
    pings: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The leader heard of this session at this moment or later.
    heard: Timestamp,
    /// The beats since then, oldest first. Each was sent an interval after the answer to the last
    /// one.
    beats: VecDeque<Beat>,
}

/// A request that the leader answered.
#[derive(Clone, Copy, Debug)]
struct Beat {
    sent: Timestamp,
    answered: Timestamp,
}

impl Liveness {
    /// Creates the liveness of a session that the leader heard of at `heard` or later.
    pub(crate) fn new(tick: Duration, heard: Timestamp) -> Self {
        Self {
            pings: tick / 2,
            state: Mutex::new(State {
                heard,
                beats: VecDeque::new(),
            }),
        }
    }

    /// Creates the liveness of a session that another client opened, and that was never silent for
    /// longer than `silence`. Two beats must be answered, the first of them sent at `first`.
    pub(crate) fn of_given(tick: Duration, silence: Duration, first: Timestamp) -> Self {
        let liveness = Self::new(tick, Timestamp::from_nanos(0));
        let heard = before(first, liveness.pings + silence);
        liveness.lock().heard = heard;
        liveness
    }

    /// Records a beat. It was sent an interval after the answer to the last one.
    pub(crate) fn beat(&self, sent: Timestamp, answered: Timestamp) {
        self.lock().beats.push_back(Beat { sent, answered });
    }

    /// Returns when the leader heard of the session at the earliest, given a transaction that was
    /// sent at `sent` and committed.
    pub(crate) fn heard(&self, sent: Timestamp) -> Timestamp {
        let mut state = self.lock();
        let known = state
            .beats
            .iter()
            .take_while(|beat| beat.answered <= sent)
            .count();
        if let Some(first) = known
            .checked_sub(2)
            .and_then(|first| state.beats.get(first))
        {
            let ping = before(first.sent, self.pings);
            let answered = state
                .beats
                .iter()
                .take_while(|beat| beat.answered <= ping)
                .count();
            let last = state.beats.drain(..answered).next_back();
            if let Some(last) = last {
                state.heard = state.heard.max(last.sent);
            }
        }
        state.heard
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn before(moment: Timestamp, by: Duration) -> Timestamp {
    let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
    Timestamp::from_nanos(moment.as_nanos().saturating_sub(by))
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(200);

    const fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(millis * 1_000_000)
    }

    fn heard(liveness: &Liveness, sent: u64) -> u64 {
        liveness.heard(at(sent)).as_nanos() / 1_000_000
    }

    #[test]
    fn a_transaction_alone_proves_nothing() {
        let liveness = Liveness::new(TICK, at(1_000));
        assert_eq!(heard(&liveness, 5_000), 1_000);
        liveness.beat(at(4_000), at(4_001));
        assert_eq!(heard(&liveness, 5_000), 1_000);
    }

    #[test]
    fn the_last_beat_before_a_ping_before_two_beats_counts() {
        let liveness = Liveness::new(TICK, at(1_000));
        for beat in [1_100, 1_200, 1_300, 1_400, 1_500] {
            liveness.beat(at(beat), at(beat + 10));
        }
        // The last answer came after the transaction was sent, so it proves nothing.
        assert_eq!(heard(&liveness, 1_405), 1_000);
        // 1.4 is the first of the two; half a tick before, 1.2 was on its way to the leader.
        assert_eq!(heard(&liveness, 1_510), 1_200);
        assert_eq!(heard(&liveness, 1_405), 1_200, "it never goes back");
    }

    #[test]
    fn a_beat_that_is_not_answered_moves_nothing() {
        let liveness = Liveness::new(TICK, at(1_000));
        for beat in [1_100, 1_200, 1_300, 1_400] {
            liveness.beat(at(beat), at(beat + 10));
        }
        // The leader stood still from here on.
        assert_eq!(
            (heard(&liveness, 1_500), heard(&liveness, 5_000)),
            (1_100, 1_100)
        );
    }

    #[test]
    fn a_given_session_was_silent_before_its_first_beat() {
        let liveness = Liveness::of_given(TICK, Duration::from_millis(300), at(1_000));
        assert_eq!(heard(&liveness, 2_000), 600);
    }
}
