//! A chart of the figures: pairs per second and hand-off time of each backend.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use leasehold_integration::{HarnessError, Result};
use plotters::{
    coord::Shift,
    prelude::{
        BLACK, ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, IntoFont, IntoLogRange,
        IntoSegmentedCoord, LineSeries, PathElement, RGBColor, Rectangle, SVGBackend, SegmentValue,
        Text, TextStyle, WHITE,
    },
};
use serde_json::Value;

use super::subject::{FLOOR, LEASEHOLD};

const SIZE: (u32, u32) = (960, 480);
/// The height of the legend, and of the caption below it.
const STRIP: u32 = 30;
const FONT: &str = "sans-serif";

/// The colours of the backends: those of Okabe and Ito, which colour-blind people distinguish,
/// without the yellow, which is hard to see on white.
const COLOURS: [RGBColor; 7] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the chart of a file written by `bench --json`, with the caption below it.
pub(super) fn draw(figures: &Path, to: &Path, caption: &str) -> Result<()> {
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
    let (charts, strips) = root.split_vertically(SIZE.1 - 2 * STRIP);
    let (legend, below) = strips.split_vertically(STRIP);
    let (left, right) = charts.split_horizontally(SIZE.0 / 2);
    let backends: BTreeSet<&str> = throughput
        .keys()
        .chain(handoff.keys())
        .map(String::as_str)
        .collect();
    let colours: Colours<'_> = backends
        .into_iter()
        .zip(COLOURS.into_iter().cycle())
        .collect();
    draw_throughput(&left, &throughput, &colours).map_err(failed)?;
    draw_handoff(&right, &handoff, &colours).map_err(failed)?;
    draw_legend(&legend, &colours).map_err(failed)?;
    draw_text(&below, caption, 12).map_err(failed)?;
    root.present().map_err(|error| failed(error.to_string()))
}

/// The colour of each backend.
type Colours<'a> = BTreeMap<&'a str, RGBColor>;

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

fn draw_throughput(
    area: &Area<'_>,
    lines: &Throughput,
    colours: &Colours<'_>,
) -> Result<(), String> {
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
    for (backend, points) in lines {
        let colour = colours[backend.as_str()];
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                colour.stroke_width(2),
            ))
            .map_err(|error| error.to_string())?;
        chart
            .draw_series(
                points
                    .iter()
                    .map(|point| Circle::new(*point, 3, colour.filled())),
            )
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Draws one row with the colour and the name of each backend.
fn draw_legend(area: &Area<'_>, colours: &Colours<'_>) -> Result<(), String> {
    let cells = area.split_evenly((1, colours.len().max(1)));
    for (cell, (backend, colour)) in cells.iter().zip(colours) {
        let middle = STRIP.cast_signed() / 2;
        cell.draw(&PathElement::new(
            [(16, middle), (36, middle)],
            colour.stroke_width(3),
        ))
        .map_err(|error| error.to_string())?;
        let style = TextStyle::from((FONT, 13).into_font());
        cell.draw(&Text::new((*backend).to_owned(), (42, middle - 7), style))
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn draw_text(area: &Area<'_>, text: &str, size: u32) -> Result<(), String> {
    let style = TextStyle::from((FONT, size).into_font());
    area.draw(&Text::new(text.to_owned(), (16, 6), style))
        .map_err(|error| error.to_string())
}

fn draw_handoff(
    area: &Area<'_>,
    bars: &BTreeMap<String, (f64, f64)>,
    colours: &Colours<'_>,
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
        let colour = colours[backend.as_str()];
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
