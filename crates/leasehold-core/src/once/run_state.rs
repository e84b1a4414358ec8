//! [`RunState`]: the state of an occurrence.

use std::fmt;

/// The state of an occurrence.
///
/// ```
/// use leasehold_core::once::RunState;
///
/// assert_eq!(RunState::Ok.to_string(), "ok");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum RunState {
    /// An attempt began, and its end is not recorded: it runs, or its runner crashed.
    Started,
    /// The work was completed.
    Ok,
    /// The work failed.
    Failed,
    /// The work took too long and was cancelled.
    Overtime,
    /// A runner crashed, and the occurrence is not begun again.
    Abandoned,
    /// The occurrence never ran, and never will. The entry stands for this occurrence and for all
    /// that were skipped with it.
    Skipped,
}

impl RunState {
    pub(crate) const ALL: [Self; 6] = [
        Self::Started,
        Self::Ok,
        Self::Failed,
        Self::Overtime,
        Self::Abandoned,
        Self::Skipped,
    ];

    /// Returns the word of the wire format.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Overtime => "overtime",
            Self::Abandoned => "abandoned",
            Self::Skipped => "skipped",
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
