//! Until when a session may be believed in.
//!
//! The leader ends a session when it has heard nothing of it for its time-out. A server that follows tells the leader of
//! its sessions only in its answer to the leader's ping, which comes every half tick. So neither an answer of that server
//! nor a transaction says when the leader last heard of the session: a leader that stood still has asked for nothing
//! meanwhile, and carries out what was sent to it all the same.
//!
//! What says it is a chain of *beats*: requests that the leader itself answers, one after the other.
//!
//! ```text
//! the leader:        touched          ping        first  second   transaction
//! ───────────────────────┴──────────────┴────────────┴──────┴──────────┴─────▶
//! this client:       beat, answered               first  second   transaction
//! ```
//!
//! - The leader took the second beat, so the ping that was due when it took the first one had gone out before: it is at
//!   most half a tick older than the first beat. This is the one assumption about time: a leader that answers requests
//!   sends its pings when they are due, and is late by less than what lies between two beats.
//! - The second beat was answered over the connection that the ping came by, so the follower had answered the ping.
//! - The transaction went to the leader by the connection that the follower's answer went by. It was carried out, so the
//!   leader had that answer, and was the leader still.
//! - The follower's answer told of every beat that it had passed on by then. The last one counts: from the moment when it
//!   was sent, the leader keeps the session for its time-out.
//!
//! A connection to another server, or to another leader, begins with the leader's hearing of the session, which is later
//! than whatever was answered on the one before. A client of the leader itself is heard at once.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use leasehold_core::Moment;

/// How often the leader is asked, as a part of the TTL. Three of these are taken from every deadline.
pub(crate) const BEAT_PART: u32 = 30;

/// When this session was certainly heard by the leader.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// The leader's pings are at most so far apart.
    pings: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The leader's last word of this session is from this moment or later.
    heard: Moment,
    /// Those since then, oldest first. Each was sent after the one before was answered, and a while after.
    beats: VecDeque<Beat>,
}

/// A request that the leader answered.
#[derive(Clone, Copy, Debug)]
struct Beat {
    sent: Moment,
    answered: Moment,
}

impl Pulse {
    /// Of a session that the leader heard of at `heard` or later.
    pub(crate) fn new(tick: Duration, heard: Moment) -> Self {
        Self { pings: tick / 2, state: Mutex::new(State { heard, beats: VecDeque::new() }) }
    }

    /// Of a session that another has opened and that its server heard of every `silence`: from its two first beats.
    pub(crate) fn of_given(tick: Duration, silence: Duration, first: Moment) -> Self {
        let pulse = Self::new(tick, Moment::from_nanos(0));
        let heard = before(first, pulse.pings + silence);
        pulse.lock().heard = heard;
        pulse
    }

    /// Notes a beat. It was sent a while after the last one was answered.
    pub(crate) fn beat(&self, sent: Moment, answered: Moment) {
        self.lock().beats.push_back(Beat { sent, answered });
    }

    /// Since when the leader counts at the earliest, given a transaction that was sent at `sent` and carried out.
    pub(crate) fn heard(&self, sent: Moment) -> Moment {
        let mut state = self.lock();
        let known = state.beats.iter().take_while(|beat| beat.answered <= sent).count();
        if let Some(first) = known.checked_sub(2).and_then(|first| state.beats.get(first)) {
            let ping = before(first.sent, self.pings);
            let told = state.beats.iter().take_while(|beat| beat.answered <= ping).count();
            let last = state.beats.drain(..told).next_back();
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

fn before(moment: Moment, by: Duration) -> Moment {
    let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
    Moment::from_nanos(moment.as_nanos().saturating_sub(by))
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(200);

    const fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn heard(pulse: &Pulse, sent: u64) -> u64 {
        pulse.heard(at(sent)).as_nanos() / 1_000_000
    }

    #[test]
    fn a_transaction_alone_proves_nothing() {
        let pulse = Pulse::new(TICK, at(1_000));
        assert_eq!(heard(&pulse, 5_000), 1_000);
        pulse.beat(at(4_000), at(4_001));
        assert_eq!(heard(&pulse, 5_000), 1_000);
    }

    #[test]
    fn the_last_beat_before_a_ping_before_two_beats_counts() {
        let pulse = Pulse::new(TICK, at(1_000));
        for beat in [1_100, 1_200, 1_300, 1_400, 1_500] {
            pulse.beat(at(beat), at(beat + 10));
        }
        // What was answered after it was sent says nothing of what it carried along.
        assert_eq!(heard(&pulse, 1_405), 1_000);
        // 1.4 is the first of the two; half a tick before, 1.2 was on its way to the leader.
        assert_eq!(heard(&pulse, 1_510), 1_200);
        assert_eq!(heard(&pulse, 1_405), 1_200, "it never goes back");
    }

    #[test]
    fn a_beat_that_is_not_answered_moves_nothing() {
        let pulse = Pulse::new(TICK, at(1_000));
        for beat in [1_100, 1_200, 1_300, 1_400] {
            pulse.beat(at(beat), at(beat + 10));
        }
        // The leader stood still from here on.
        assert_eq!((heard(&pulse, 1_500), heard(&pulse, 5_000)), (1_100, 1_100));
    }

    #[test]
    fn a_given_session_was_silent_before_its_first_beat() {
        let pulse = Pulse::of_given(TICK, Duration::from_millis(300), at(1_000));
        assert_eq!(heard(&pulse, 2_000), 600);
    }
}
