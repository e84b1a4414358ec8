//! The rows of `COMPARED.md`: `flock(1)` and `leasehold run` on the same lock file.
#![cfg(target_os = "linux")]
#![allow(
    clippy::needless_pass_by_value,
    reason = "expected values are written in place"
)]
#![allow(
    unreachable_pub,
    reason = "the modules of a test program share their helpers"
)]

use std::{collections::BTreeSet, fs, path::Path};

mod case;
mod environment;
mod exit_codes;
mod groups;
mod ignored_signals;
mod left_behind;
mod process_1;
mod processes;
mod signals;
#[path = "../support/mod.rs"]
mod support;
mod terminals;

#[test]
fn comparison_table_names_each_test_once() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(package.join("COMPARED.md")).unwrap();
    let tests: String = fs::read_dir(package.join("tests/compared"))
        .unwrap()
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    let rows: Vec<_> = table
        .lines()
        .filter_map(|line| line.strip_suffix("` |")?.rsplit_once('`'))
        .collect();
    let named: BTreeSet<_> = rows.iter().map(|(_, name)| *name).collect();
    assert_eq!(named.len(), rows.len(), "two rows name the same test");
    let mut lines = tests.lines();
    let mut present = BTreeSet::new();
    while lines.any(|line| line == "#[test]") {
        present.extend(
            lines
                .next()
                .and_then(|line| line.strip_prefix("fn ")?.split('(').next()),
        );
    }
    present.remove("comparison_table_names_each_test_once");
    assert_eq!(named, present);
    assert!(rows.len() >= 30, "{}", rows.len());
    for (row, name) in rows {
        // A row agrees with its test about same or different.
        let body = tests
            .split_once(&format!("fn {name}("))
            .unwrap()
            .1
            .split("\n#[test]")
            .next()
            .unwrap();
        let tested = if body.contains("    same(") {
            "same"
        } else {
            "different"
        };
        assert!(
            row.contains(&format!("| {tested}")),
            "{name} is {tested}: {row}"
        );
    }
}
