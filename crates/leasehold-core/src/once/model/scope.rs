//! The scope of an exploration, and the bug in the protocol.

use std::time::Duration;

use crate::once::{occurrence::OccurrenceId, policies::Policies, unix_millis::UnixMillis};

/// The period of the schedule.
pub(super) const PERIOD: Duration = Duration::from_secs(10);
/// A multiple of the period.
const ORIGIN: u64 = 1_000_000_000;
/// The largest number of occurrences, and the one before the first.
pub(super) const OCCURRENCES: usize = 7;

/// Returns the scheduled instant of an occurrence.
pub(super) fn instant(occurrence: i16) -> UnixMillis {
    let since = i64::from(occurrence) * PERIOD.as_millis() as i64;
    UnixMillis::new(ORIGIN.checked_add_signed(since).unwrap()).unwrap()
}

/// Returns the number of the occurrence.
pub(super) fn number(id: &OccurrenceId) -> usize {
    match id {
        // The instants of a clock of its own are a little later. Earlier instants are 0.
        OccurrenceId::At(at) => {
            (at.get().saturating_sub(ORIGIN) / PERIOD.as_millis() as u64) as usize
        }
        OccurrenceId::Named(name) => name.parse().unwrap(),
    }
}

/// A wrong variant of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// The occurrence is recorded as complete before the work begins.
    DoneBeforeWork,
    /// An occurrence is identified by the instant of the replica's own clock.
    OwnClock,
    /// A replica that finds nothing due sets the watermark to the last instant of its clock.
    WatermarkFollowsClock,
    /// A crash is not counted when the occurrence is begun again.
    CrashesNotCounted,
    /// The work begins although the answer to the claim was lost.
    BeginsUnconfirmed,
    /// An occurrence that falls due during a run is left for the next claim, although the policy
    /// skips it.
    OverlapNotSkipped,
    /// The write of a replica that lost the lock takes effect.
    WritesNotFenced,
    /// The least gap between two begins is ignored.
    GapNotKept,
}

/// The question of the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    /// Run the occurrence that is due by the schedule.
    Due,
    /// Run without a schedule.
    Present,
    /// Run a given instant of the schedule.
    Instants,
    /// Run a named occurrence.
    Named,
}

/// The events that may happen.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) replicas: usize,
    /// How many periods the clock of each replica is fast. All are 0 if the store's clock judges.
    pub(super) clocks: [i16; 3],
    pub(super) asks: Asks,
    /// The number of the last occurrence.
    pub(super) last: u8,
    /// The number of steps of time in a period.
    pub(super) steps: u8,
    /// How many replicas crash.
    pub(super) crashes: u8,
    /// How many answers to writes are lost.
    pub(super) answers: u8,
    /// How many replicas are paused until their lock has expired.
    pub(super) pauses: u8,
    /// How many runs fail.
    pub(super) failures: u8,
    /// How often the store loses its data.
    pub(super) losses: u8,
    pub(super) policies: Policies,
    pub(super) bug: Option<Bug>,
}

impl Scope {
    pub(super) fn has_schedule(&self) -> bool {
        matches!(self.asks, Asks::Due | Asks::Instants)
    }
}
