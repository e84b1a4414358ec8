//! Output as a table and as JSON.

use std::{fs, path::Path};

use comfy_table::{CellAlignment, Table, presets};
use leasehold_integration::{HarnessError, Result};

use super::{row::Row, subject};

/// Computes the ratios of the rows.
pub(super) fn relate(rows: &mut [Row]) {
    let all = rows.to_vec();
    for row in rows {
        let beside = |subject: &str| {
            let same = |other: &&Row| {
                (other.backend, other.scenario, other.tasks, other.runtime)
                    == (row.backend, row.scenario, row.tasks, row.runtime)
            };
            all.iter()
                .filter(same)
                .find(|other| other.subject == subject)
        };
        let to_floor = beside(subject::FLOOR).and_then(|floor| row.figure.over(&floor.figure));
        let leasehold_to_it =
            beside(subject::LEASEHOLD).and_then(|leasehold| leasehold.figure.over(&row.figure));
        (row.to_floor, row.leasehold_to_it) = (to_floor, leasehold_to_it);
    }
}

/// Returns the rows as a table.
pub(super) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header([
        "backend",
        "scenario",
        "runtime",
        "tasks",
        "subject",
        "per second",
        "p50 µs",
        "p99 µs",
        "max µs",
        "CPU %",
        "B/lease",
        "commands",
        "waited p50/max",
        "÷ floor",
        "leasehold ÷ it",
    ]);
    for row in rows {
        let waited = match (row.handoffs_waited_p50, row.handoffs_waited_max) {
            (Some(p50), Some(max)) => format!("{p50:.0} / {max:.0}"),
            _ => String::new(),
        };
        table.add_row([
            row.backend.to_owned(),
            row.scenario.name().to_owned(),
            row.runtime.to_owned(),
            row.tasks.to_string(),
            row.subject.to_owned(),
            shown(row.per_second, 0),
            shown(row.p50_us, 1),
            shown(row.p99_us, 1),
            shown(row.max_us, 0),
            shown(row.cpu_percent, 2),
            shown(row.bytes_per_lease, 0),
            shown(row.commands_per_handoff, 2),
            waited,
            shown(row.to_floor, 3),
            shown(row.leasehold_to_it, 3),
        ]);
    }
    for column in table.column_iter_mut().skip(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "{table}\nRatios are medians over rounds of what was measured side by side: of the rate in `pair` and `counter` \
         (more is better), of the time in `handoff` and `all`, of the CPU in `held`, of the commands in `crowd` (less is better)."
    )
}

/// Writes the rows as JSON.
pub(super) fn write_json(rows: &[Row], file: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        HarnessError::caused_by(format!("cannot write {}", file.display()), error)
    };
    let json = serde_json::to_string_pretty(rows)
        .map_err(std::io::Error::from)
        .map_err(failed)?;
    fs::write(file, json + "\n").map_err(failed)
}

fn shown(figure: Option<f64>, digits: usize) -> String {
    figure.map_or_else(String::new, |figure| format!("{figure:.digits$}"))
}
