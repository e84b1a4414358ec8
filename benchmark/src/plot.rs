//! A chart of the figures: pairs per second and hand-off time of each backend.

use std::{collections::BTreeMap, fs, path::Path};

use leasehold_integration::{HarnessError, Result};
use plotters::{
    coord::Shift,
    prelude::{
        BLACK, ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, IntoLogRange,
        IntoSegmentedCoord, LineSeries, Palette, Palette99, PathElement, Rectangle, SVGBackend,
        SegmentValue, SeriesLabelPosition, WHITE,
    },
};
use serde_json::Value;

use super::subject::{FLOOR, LEASEHOLD};

const SIZE: (u32, u32) = (960, 420);
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the chart of a file written by `bench --json`.
pub(super) fn draw(figures: &Path, to: &Path) -> Result<()> {
    let text = fs::read_to_string(figures).map_err(|error| {
        HarnessError::caused_by(format!("cannot read {}", figures.display()), error)
    })?;
    let rows: Vec<Value> = serde_json::from_str(&text).map_err(|error| {
        HarnessError::caused_by(
            format!("{} is not what --json writes", figures.display()),
            error,
        )
    })?;
    let (throughput, handoff) = (throughput(&rows), handoff(&rows));
    if throughput.is_empty() || handoff.is_empty() {
        return Err(HarnessError::new(format!(
            "{} has no `pair` or no `handoff` of Leasehold: measure both",
            figures.display()
        )));
    }
    let root = SVGBackend::new(to, SIZE).into_drawing_area();
    let failed =
        |error: String| HarnessError::new(format!("cannot draw {}: {error}", to.display()));
    root.fill(&WHITE)
        .map_err(|error| failed(error.to_string()))?;
    let (left, right) = root.split_horizontally(SIZE.0 / 2);
    draw_throughput(&left, &throughput).map_err(failed)?;
    draw_handoff(&right, &handoff, &throughput).map_err(failed)?;
    root.present().map_err(|error| failed(error.to_string()))
}

/// Numbers of tasks and pairs per second, by backend.
type Throughput = BTreeMap<String, Vec<(f64, f64)>>;

fn throughput(rows: &[Value]) -> Throughput {
    let mut by_backend = Throughput::new();
    for row in rows.iter().filter(|row| is(row, "pair", LEASEHOLD)) {
        if let (Some(tasks), Some(rate)) = (row["tasks"].as_f64(), row["per_second"].as_f64()) {
            by_backend.entry(name(row)).or_default().push((tasks, rate));
        }
    }
    by_backend
}

/// Returns the median hand-off times in µs of Leasehold and of the floor, by backend.
fn handoff(rows: &[Value]) -> BTreeMap<String, (f64, f64)> {
    let of = |subject: &str| -> BTreeMap<String, f64> {
        let chosen = rows.iter().filter(|row| is(row, "handoff", subject));
        chosen
            .filter_map(|row| Some((name(row), row["p50_us"].as_f64()?)))
            .collect()
    };
    let floors = of(FLOOR);
    of(LEASEHOLD)
        .into_iter()
        .map(|(backend, ours)| {
            let floor = floors.get(&backend).copied().unwrap_or(0.0);
            (backend, (ours, floor))
        })
        .collect()
}

/// Returns whether a row has this scenario and subject, on the runtime with two workers.
fn is(row: &Value, scenario: &str, subject: &str) -> bool {
    row["scenario"] == scenario && row["subject"] == subject && row["runtime"] == "two-workers"
}

fn name(row: &Value) -> String {
    row["backend"].as_str().unwrap_or_default().to_owned()
}

fn draw_throughput(area: &Area<'_>, lines: &Throughput) -> Result<(), String> {
    let rates = || lines.values().flatten().map(|(_, rate)| *rate);
    let (low, high) = (
        rates().fold(f64::MAX, f64::min) / 2.0,
        rates().fold(0.0, f64::max) * 2.0,
    );
    let mut chart = ChartBuilder::on(area)
        .caption("acquire + release, pairs per second", (FONT, 16))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d((1.0..256.0).log_scale(), (low..high).log_scale())
        .map_err(|error| error.to_string())?;
    chart
        .configure_mesh()
        .x_desc("tasks")
        .y_labels(8)
        .x_label_formatter(&|tasks| format!("{tasks:.0}"))
        .y_label_formatter(&|rate| format!("{rate:.0}"))
        .draw()
        .map_err(|error| error.to_string())?;
    for (index, (backend, points)) in lines.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                colour.stroke_width(2),
            ))
            .map_err(|error| error.to_string())?
            .label(backend)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart
            .draw_series(
                points
                    .iter()
                    .map(|point| Circle::new(*point, 3, colour.filled())),
            )
            .map_err(|error| error.to_string())?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(|error| error.to_string())
}

/// Draws the hand-off times in the colours that `lines` uses for the backends.
fn draw_handoff(
    area: &Area<'_>,
    bars: &BTreeMap<String, (f64, f64)>,
    lines: &Throughput,
) -> Result<(), String> {
    let names: Vec<String> = bars.keys().cloned().collect();
    let high = bars
        .values()
        .map(|(ours, floor)| ours.max(*floor))
        .fold(0.0, f64::max)
        * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(
            "hand-off to another process, p50 in µs (line: the bare driver)",
            (FONT, 16),
        )
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(names.as_slice().into_segmented(), 0.0..high)
        .map_err(|error| error.to_string())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_label_formatter(&|place| match place {
            SegmentValue::Exact(name) | SegmentValue::CenterOf(name) => (*name).clone(),
            SegmentValue::Last => String::new(),
        })
        .y_label_formatter(&|micros| format!("{micros:.0}"))
        .draw()
        .map_err(|error| error.to_string())?;
    for (index, (backend, (ours, floor))) in bars.iter().enumerate() {
        let colour = Palette99::pick(
            lines
                .keys()
                .position(|line| line == backend)
                .unwrap_or(index),
        )
        .to_rgba();
        let after = names
            .get(index + 1)
            .map_or(SegmentValue::Last, SegmentValue::Exact);
        let mut bar = Rectangle::new(
            [(SegmentValue::Exact(backend), 0.0), (after.clone(), *ours)],
            colour.mix(0.7).filled(),
        );
        bar.set_margin(0, 0, 12, 12);
        let line = PathElement::new(
            [(SegmentValue::Exact(backend), *floor), (after, *floor)],
            BLACK.stroke_width(2),
        );
        chart
            .draw_series([bar])
            .map_err(|error| error.to_string())?;
        // Not every backend has a floor in this chart.
        chart
            .draw_series((*floor > 0.0).then_some(line))
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}
