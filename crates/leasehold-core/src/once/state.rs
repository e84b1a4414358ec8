//! [`State`]: the content of the record of a name.

use crate::{
    fencing::FencingToken,
    once::{occurrence::OccurrenceId, run_state::RunState, unix_millis::UnixMillis},
};

/// The decisions under one name.
///
/// An occurrence at an instant is decided if the instant is not after `through`. A named one is
/// decided if its entry says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The watermark of scheduled occurrences; none if they are named. It never falls.
    pub(crate) through: Option<UnixMillis>,
    pub(crate) schedule: Option<String>,
    /// The newest first. The run that is under way is the first.
    pub(crate) runs: Vec<Entry>,
}

/// One occurrence in the record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) id: OccurrenceId,
    /// How many earlier attempts ended by a crash.
    pub(crate) crashes: u32,
    /// How many earlier attempts failed.
    pub(crate) failures: u32,
    pub(crate) state: RunState,
    pub(crate) began: Option<UnixMillis>,
    pub(crate) ended: Option<UnixMillis>,
    pub(crate) token: Option<FencingToken>,
    pub(crate) by: String,
    pub(crate) note: Option<String>,
}

/// The maximum length of texts for people, in bytes. Each byte may take three when it is encoded,
/// so that an entry stays below 1.5 KiB.
pub(crate) const MAX_TEXT: usize = 100;

impl State {
    /// Sets the watermark, unless it is higher already.
    pub(crate) fn decide_through(&mut self, at: UnixMillis) {
        self.through = self.through.max(Some(at));
    }

    /// Returns the position of the entry of this occurrence.
    pub(crate) fn position(&self, id: &OccurrenceId) -> Option<usize> {
        self.runs.iter().position(|entry| entry.id == *id)
    }

    /// Returns the position of the scheduled occurrence that has begun and is not decided.
    pub(crate) fn pending(&self) -> Option<usize> {
        self.runs.iter().position(|entry| {
            entry.attempt() > 0 && entry.id.instant().is_some_and(|at| Some(at) > self.through)
        })
    }

    /// Returns when the latest attempt of any occurrence began.
    pub(crate) fn last_begin(&self) -> Option<UnixMillis> {
        self.runs.iter().filter_map(|entry| entry.began).max()
    }

    /// Puts an entry in front.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.runs.insert(0, entry);
    }

    /// Records that `id` and what was skipped with it never runs. Consecutive entries of this kind
    /// become one, so that an outage does not push all runs out of the history.
    pub(crate) fn skip(&mut self, id: OccurrenceId, now: UnixMillis, why: &str) {
        if (self.runs.first()).is_some_and(|entry| entry.state == RunState::Skipped) {
            self.runs.remove(0);
        }
        self.push(Entry {
            state: RunState::Skipped,
            ended: Some(now),
            note: clipped(why),
            ..Entry::begun(id, now)
        });
        self.runs[0].began = None;
    }

    /// Forgets all but the newest runs. Skipped occurrences do not count.
    pub(crate) fn trim(&mut self, history: usize) {
        let mut begun = 0;
        self.runs.retain(|entry| {
            let kept = begun < history;
            begun += usize::from(entry.attempt() > 0);
            kept
        });
    }
}

impl Entry {
    /// Returns the entry of a first attempt that begins now.
    pub(crate) fn begun(id: OccurrenceId, now: UnixMillis) -> Self {
        Self {
            id,
            crashes: 0,
            failures: 0,
            state: RunState::Started,
            began: Some(now),
            ended: None,
            token: None,
            by: String::new(),
            note: None,
        }
    }

    /// Returns the number of attempts so far.
    pub(crate) fn attempt(&self) -> u32 {
        match self.state {
            RunState::Skipped => 0,
            _ => self.crashes.saturating_add(self.failures).saturating_add(1),
        }
    }
}

/// Returns the start of a text for people, or none if it is empty.
pub(crate) fn clipped(text: &str) -> Option<String> {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = ends.take_while(|end| *end <= MAX_TEXT).last()?;
    Some(text[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> UnixMillis {
        UnixMillis::new(millis).unwrap()
    }

    #[test]
    fn the_watermark_never_falls() {
        let mut state = State::default();
        for (set, expected) in [(5, 5), (3, 5), (7, 7)] {
            state.decide_through(at(set));
            assert_eq!(state.through, Some(at(expected)));
        }
    }

    #[test]
    fn skipped_occurrences_do_not_push_runs_out() {
        let mut state = State::default();
        for run in 0..5 {
            state.push(Entry::begun(OccurrenceId::At(at(run * 10)), at(run * 10)));
            for skipped in 1..4 {
                let id = OccurrenceId::At(at(run * 10 + skipped));
                state.skip(id, at(run * 10 + skipped), "missed");
            }
        }
        state.trim(2);
        let left: Vec<_> = state
            .runs
            .iter()
            .map(|entry| (entry.id.instant().unwrap().get(), entry.attempt()))
            .collect();
        assert_eq!(left, [(43, 0), (40, 1), (33, 0), (30, 1)]);
    }

    #[test]
    fn texts_are_clipped_between_characters() {
        assert_eq!(clipped(""), None);
        assert_eq!(clipped("short").as_deref(), Some("short"));
        let long = clipped(&"é".repeat(60)).unwrap();
        assert_eq!(long, "é".repeat(50));
        let long = clipped(&"a".repeat(99).replace("aaa", "日")).unwrap();
        assert!(long.len() <= MAX_TEXT);
    }
}
