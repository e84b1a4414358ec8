//! `leasehold once` and `leasehold runs` on files.
#![cfg(target_os = "linux")]

use std::process::Command;

use crate::support::{ended, files, leasehold, signal, started, stderr, stdout};

mod support;

/// Returns `leasehold once` with this URL.
fn once_on(url: &str, options: &[&str], program: &[&str]) -> Command {
    let mut command = leasehold();
    command
        .args(["once", "--url", url])
        .args(options)
        .arg("--")
        .args(program);
    command
}

/// Returns the JSON of `leasehold runs`, and the exit code.
fn runs(url: &str, name: &str) -> (serde_json::Value, Option<i32>) {
    let output = ended(leasehold().args(["runs", "--json", "--url", url, name]));
    let json = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
    (json, output.status.code())
}

#[test]
fn named_occurrence_runs_once_and_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let program =
        "echo $LEASEHOLD_KEY $LEASEHOLD_OCCURRENCE $LEASEHOLD_ATTEMPT ${LEASEHOLD_TOKEN:+token}";
    let options = ["--occurrence", "2031-04", "--label", "host-1", "invoices"];
    let first = ended(&mut once_on(&url, &options, &["sh", "-c", program]));
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    assert_eq!(stdout(&first), "invoices 2031-04 1 token\n");
    let second = ended(&mut once_on(&url, &options, &["sh", "-c", program]));
    assert_eq!(second.status.code(), Some(0), "{}", stderr(&second));
    assert_eq!(stdout(&second), "");
    assert!(
        stderr(&second).contains("`2031-04` is decided: ok by host-1"),
        "{}",
        stderr(&second)
    );

    let (json, code) = runs(&url, "invoices");
    assert_eq!(code, Some(0));
    let run = &json["runs"][0];
    assert_eq!(run["occurrence"], "2031-04");
    assert_eq!(run["state"], "ok");
    assert_eq!(run["by"], "host-1");
    let table = ended(leasehold().args(["runs", "--url", &url, "invoices"]));
    assert!(stdout(&table).contains("2031-04"), "{}", stdout(&table));
}

#[test]
fn failure_is_recorded_with_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let options = ["--occurrence", "a", "k"];
    let run = ended(&mut once_on(&url, &options, &["sh", "-c", "exit 37"]));
    assert_eq!(run.status.code(), Some(37));
    assert_eq!(stderr(&run), "");
    let (json, _) = runs(&url, "k");
    assert_eq!(json["runs"][0]["state"], "failed");
    assert_eq!(json["runs"][0]["note"], "exit code 37");
    let missing = ended(&mut once_on(
        &url,
        &["--occurrence", "b", "k"],
        &["/does/not/exist"],
    ));
    assert_eq!(missing.status.code(), Some(127), "{}", stderr(&missing));
}

#[test]
fn killed_runner_is_made_up_for_and_counts_as_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let options = ["--occurrence", "a", "k"];
    let hold = ["sh", "-c", "echo $$; exec sleep 60"];
    let (mut runner, program) = started(&mut once_on(&url, &options, &hold));
    let busy = ended(&mut once_on(
        &url,
        &["--no-wait", "--occurrence", "a", "k"],
        &["true"],
    ));
    assert_eq!(busy.status.code(), Some(75), "{}", stderr(&busy));
    signal(runner.id(), "KILL");
    runner.wait().unwrap();
    // The program has inherited the lock.
    signal(program.trim().parse().unwrap(), "KILL");
    let attempt = ended(&mut once_on(
        &url,
        &options,
        &["sh", "-c", "echo $LEASEHOLD_ATTEMPT"],
    ));
    assert_eq!(stdout(&attempt), "2\n", "{}", stderr(&attempt));
    let (json, _) = runs(&url, "k");
    assert_eq!(json["runs"][0]["crashes"], 1);
}

#[test]
fn least_gap_refuses_the_next_run_with_75() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let options = ["--at-least", "1h", "k"];
    let first = ended(&mut once_on(&url, &options, &["true"]));
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    let second = ended(&mut once_on(&url, &options, &["true"]));
    assert_eq!(second.status.code(), Some(75), "{}", stderr(&second));
    assert!(
        stderr(&second).contains("it may begin in"),
        "{}",
        stderr(&second)
    );
}

#[test]
fn schedules_say_when_something_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    // The first of January is seldom within the grace period.
    let options = ["--cron", "0 0 1 1 *", "--zone", "Europe/Berlin", "k"];
    let run = ended(&mut once_on(&url, &options, &["true"]));
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    assert!(
        stderr(&run).contains("nothing is due until"),
        "{}",
        stderr(&run)
    );
    let (json, _) = runs(&url, "k");
    assert_eq!(json["schedule"], "0 0 1 1 * Europe/Berlin");
}

#[test]
fn program_over_its_limit_is_terminated_with_124() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let options = ["--at-most", "200ms", "--occurrence", "a", "k"];
    let run = ended(&mut once_on(&url, &options, &["sleep", "60"]));
    assert_eq!(run.status.code(), Some(124), "{}", stderr(&run));
    let (json, _) = runs(&url, "k");
    let note = json["runs"][0]["note"].as_str().unwrap();
    assert!(note.contains("longer than 200ms"), "{note}");
}

#[test]
fn unknown_name_has_no_runs_and_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let output = ended(leasehold().args(["runs", "--url", &files(&dir), "k"]));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "no runs\n");
}

#[test]
fn wrong_options_exit_with_64_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    for (options, remedy) in [
        (vec!["k"], "--at-least"),
        (vec!["--cron", "0 25 * * *", "k"], "the hour `25`"),
        (
            vec!["--cron", "0 3 * * *", "--zone", "Nowhere", "k"],
            "`Nowhere`",
        ),
        (vec!["--every", "1h", "--missed", "some", "k"], "all:N"),
        (vec!["--every", "1h", "--history", "0", "k"], "1 to 100"),
    ] {
        let run = ended(&mut once_on(&url, &options, &["true"]));
        assert_eq!(run.status.code(), Some(64), "{options:?}: {}", stderr(&run));
        assert!(
            stderr(&run).contains(remedy),
            "{options:?}: {}",
            stderr(&run)
        );
    }
}
