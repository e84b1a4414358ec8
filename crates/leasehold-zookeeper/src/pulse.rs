//! Until when a session may be believed in.
//!
//! A server that is not the leader hands what it heard from its sessions to the leader only with its next answer to the leader's
//! ping, which comes every half tick. So a transaction that was acknowledged proves that the leader knows of whatever this client
//! sent before the last ping before it, and no more: half a tick and one gap between two sends earlier than the
//! transaction itself. The gaps are kept short by a small read now and then, and measured.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use leasehold_core::{Deadline, Moment, session::SessionTime};

/// How often a read is sent, as a part of the TTL.
pub(crate) const BEAT_PART: u32 = 15;

/// When this session was heard by a server.
#[derive(Debug)]
pub(crate) struct Pulse(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When the last request was sent that was answered.
    last: Moment,
    /// The gaps between requests that were answered, and when they ended.
    gaps: VecDeque<(Moment, Duration)>,
}

impl Pulse {
    /// Of a session that was certainly heard after `sent`.
    pub(crate) fn new(sent: Moment) -> Self {
        Self(Mutex::new(State { last: sent, gaps: VecDeque::new() }))
    }

    /// Of a session that another opened: it is taken to have been silent for this long.
    pub(crate) fn after_silence(sent: Moment, silence: Duration) -> Self {
        let pulse = Self::new(sent);
        pulse.lock().gaps.push_back((sent, silence));
        pulse
    }

    /// Notes a request that was answered.
    pub(crate) fn exchanged(&self, sent: Moment, answered: Moment) {
        let mut state = self.lock();
        // It may have been heard as early as when it was sent and as late as when it was answered.
        let gap = answered.since(state.last);
        state.gaps.push_back((answered, gap));
        state.last = state.last.max(sent);
    }

    /// Until when a session lives that committed a transaction sent at `sent`; `tick` is the servers'.
    pub(crate) fn deadline(&self, time: &SessionTime, sent: Moment, tick: Duration) -> Deadline {
        // The last ping before it came up to half a tick earlier; as much again for one that was late.
        let gap = self.longest_gap(Moment::from_nanos(sent.as_nanos().saturating_sub(nanos(tick))));
        earlier(time.deadline_from(sent), gap + tick / 2)
    }

    /// The longest gap that ended after `from`; forgets the others.
    fn longest_gap(&self, from: Moment) -> Duration {
        let mut state = self.lock();
        state.gaps.retain(|(ended, _)| *ended >= from);
        state.gaps.iter().map(|(_, gap)| *gap).max().unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn earlier(deadline: Deadline, by: Duration) -> Deadline {
    Deadline::at(Moment::from_nanos(deadline.moment().as_nanos().saturating_sub(nanos(by))))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn gap(pulse: &Pulse, from: u64) -> u128 {
        pulse.longest_gap(at(from)).as_millis()
    }

    #[test]
    fn the_longest_gap_is_from_a_send_to_the_answer_to_the_next() {
        let pulse = Pulse::new(at(1_000));
        pulse.exchanged(at(1_000), at(1_010));
        assert_eq!(gap(&pulse, 0), 10);
        pulse.exchanged(at(1_500), at(1_530));
        pulse.exchanged(at(1_700), at(1_701));
        assert_eq!(gap(&pulse, 0), 530);
    }

    #[test]
    fn a_gap_counts_until_it_is_old() {
        let pulse = Pulse::after_silence(at(1_000), Duration::from_millis(800));
        pulse.exchanged(at(1_100), at(1_101));
        assert_eq!(gap(&pulse, 1_000), 800);
        assert_eq!(gap(&pulse, 1_001), 101);
    }

    #[test]
    fn what_is_answered_out_of_order_makes_no_gap_shorter() {
        let pulse = Pulse::new(at(1_000));
        pulse.exchanged(at(1_300), at(1_310));
        pulse.exchanged(at(1_200), at(1_320));
        assert_eq!(gap(&pulse, 0), 310);
        pulse.exchanged(at(1_400), at(1_401));
        assert_eq!(gap(&pulse, 1_320), 101);
    }
}
