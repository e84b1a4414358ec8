//! [`Table`]: the results of all cases on all backends.

use std::{collections::BTreeMap, fmt};

use comfy_table::{Table as Drawn, presets};
use leasehold_testkit::{Outcome, cases};

/// The results, with a row per property and a column per backend.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// By backend and case. A case that ran in several forms has its worst result.
    cells: BTreeMap<(&'static str, &'static str), Cell>,
    /// In the order of their first results.
    backends: Vec<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Passed,
    Unsupported(String),
    Failed,
}

impl Table {
    pub(crate) fn add(&mut self, backend: &'static str, case: &'static str, outcome: &Outcome) {
        if !self.backends.contains(&backend) {
            self.backends.push(backend);
        }
        let cell = match outcome {
            Outcome::Passed => Cell::Passed,
            Outcome::NotRun(reason) => Cell::Unsupported(reason.clone()),
            Outcome::Failed(_) => Cell::Failed,
        };
        let worst = self.cells.entry((backend, case)).or_insert(Cell::Passed);
        *worst = cell.max(worst.clone());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut drawn = Drawn::new();
        let mut reasons: Vec<&str> = Vec::new();
        drawn.load_preset(presets::UTF8_BORDERS_ONLY);
        drawn.set_header(
            ["property"]
                .into_iter()
                .chain(self.backends.iter().copied()),
        );
        for case in cases::all() {
            let mut row = vec![case.name.to_owned()];
            for backend in &self.backends {
                row.push(match self.cells.get(&(*backend, case.name)) {
                    None => String::new(),
                    Some(Cell::Passed) => "passed".to_owned(),
                    Some(Cell::Failed) => "FAILED".to_owned(),
                    Some(Cell::Unsupported(reason)) => {
                        let known = reasons
                            .iter()
                            .position(|known| known == reason)
                            .unwrap_or_else(|| {
                                reasons.push(reason);
                                reasons.len() - 1
                            });
                        format!("– ({})", known + 1)
                    }
                });
            }
            if row.iter().skip(1).any(|cell| !cell.is_empty()) {
                drawn.add_row(row);
            }
        }
        writeln!(f, "{drawn}")?;
        for (number, reason) in (1..).zip(reasons) {
            writeln!(f, "– ({number}) unsupported: {reason}")?;
        }
        Ok(())
    }
}
