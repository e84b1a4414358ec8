//! [`History`]: the record of a name, for people and programs.

use std::time::SystemTime;

use crate::{
    fencing::FencingToken,
    once::{
        occurrence::Occurrence,
        run_state::RunState,
        state::{Entry, State},
        unix_millis::UnixMillis,
    },
};

/// The decisions under a name, and its latest runs.
///
/// ```
/// # use leasehold_core::once::{History, RunState};
/// fn failed(history: &History) -> usize {
///     history.runs.iter().filter(|run| run.state == RunState::Failed).count()
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct History {
    /// Every scheduled occurrence up to this instant is decided: it ran, or it will never run.
    /// `None` if the occurrences have names, or if nothing is known.
    #[cfg_attr(feature = "serde", serde(rename = "decided_through_unix_ms"))]
    #[cfg_attr(feature = "serde", serde(serialize_with = "unix_ms::maybe"))]
    pub decided_through: Option<SystemTime>,
    /// The schedule of the latest claim, as text.
    pub schedule: Option<String>,
    /// The latest runs, the newest first.
    pub runs: Vec<RunInfo>,
}

impl From<State> for History {
    fn from(state: State) -> Self {
        Self {
            decided_through: state.through.map(UnixMillis::time),
            schedule: state.schedule,
            runs: state.runs.iter().map(RunInfo::from).collect(),
        }
    }
}

/// One occurrence and its attempts. See [`History`] for an example.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RunInfo {
    /// The occurrence.
    #[cfg_attr(feature = "serde", serde(serialize_with = "unix_ms::occurrence"))]
    pub occurrence: Occurrence,
    /// The number of the latest attempt, from 1. It is 0 if the occurrence was skipped.
    pub attempt: u32,
    /// The number of earlier attempts whose runner crashed or lost the lock.
    pub crashes: u32,
    /// The number of earlier attempts whose work failed or took too long.
    pub failures: u32,
    /// The state of the latest attempt.
    pub state: RunState,
    /// The time at which the latest attempt began, by the clock that judges what is due.
    #[cfg_attr(feature = "serde", serde(rename = "began_unix_ms"))]
    #[cfg_attr(feature = "serde", serde(serialize_with = "unix_ms::maybe"))]
    pub began: Option<SystemTime>,
    /// The time at which it ended, by the same clock.
    #[cfg_attr(feature = "serde", serde(rename = "ended_unix_ms"))]
    #[cfg_attr(feature = "serde", serde(serialize_with = "unix_ms::maybe"))]
    pub ended: Option<SystemTime>,
    /// The fencing token of the runner.
    pub token: Option<FencingToken>,
    /// The label of the runner.
    pub by: String,
    /// The note of the run, or the reason for which the occurrence was skipped.
    pub note: Option<String>,
}

impl From<&Entry> for RunInfo {
    fn from(entry: &Entry) -> Self {
        Self {
            occurrence: Occurrence::from(&entry.id),
            attempt: entry.attempt(),
            crashes: entry.crashes,
            failures: entry.failures,
            state: entry.state,
            began: entry.began.map(UnixMillis::time),
            ended: entry.ended.map(UnixMillis::time),
            token: entry.token,
            by: entry.by.clone(),
            note: entry.note.clone(),
        }
    }
}

/// Instants as the number of milliseconds since 1970.
#[cfg(feature = "serde")]
mod unix_ms {
    use std::time::SystemTime;

    use serde::{Serialize, Serializer};

    use crate::once::{occurrence::Occurrence, unix_millis::UnixMillis};

    pub(super) fn maybe<S: Serializer>(
        time: &Option<SystemTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(|time| UnixMillis::of(time).get())
            .serialize(serializer)
    }

    /// Serializes an instant as a number and a name as text.
    pub(super) fn occurrence<S: Serializer>(
        occurrence: &Occurrence,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match occurrence {
            Occurrence::At(at) => UnixMillis::of(*at).get().serialize(serializer),
            Occurrence::Named(name) => name.serialize(serializer),
        }
    }
}
