//! `leasehold run --value` and `leasehold leader` on files.
#![cfg(target_os = "linux")]

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    os::unix::ffi::OsStrExt,
    process::{Command, Stdio},
};

use crate::support::{
    end, ended, files, leader, leasehold, run_on, signal, started, stderr, stdout, until,
    until_one_waits,
};

mod support;

/// A program that says that it runs.
const HOLD: [&str; 3] = ["sh", "-c", "echo up; exec sleep 60"];

/// Returns `leasehold leader --watch` with this URL.
fn watch(url: &str, options: &[&str]) -> Command {
    let mut command = leasehold();
    command
        .args(["leader", "--watch", "--url", url, "k"])
        .args(options);
    command
}

#[test]
fn leader_is_shown_while_its_program_runs() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    assert_eq!(
        leader(&url, "k"),
        (serde_json::json!({ "key": "k", "leader": null }), Some(1))
    );
    let options = ["--value", "10.0.0.7:8080", "--label", "till 3", "k"];
    let program = ["sh", "-c", "echo $LEASEHOLD_TOKEN; exec sleep 60"];
    let (run, token) = started(&mut run_on(&url, &options, &program));
    let (json, code) = leader(&url, "k");
    assert_eq!(code, Some(0));
    assert_eq!(json["leader"]["value"], "10.0.0.7:8080");
    assert_eq!(json["leader"]["label"], "till 3");
    assert_eq!(json["leader"]["token"].to_string(), token);
    let table = ended(leasehold().args(["leader", "--url", &url, "k"]));
    for shown in ["10.0.0.7:8080", "till 3", &token] {
        assert!(stdout(&table).contains(shown), "{}", stdout(&table));
    }
    end(run);
    let nobody = ended(leasehold().args(["leader", "--url", &url, "k"]));
    assert_eq!(nobody.status.code(), Some(1), "{}", stderr(&nobody));
    assert_eq!(stdout(&nobody), "no leader\n");
}

#[test]
fn exit_code_of_a_leading_program_is_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let exits = ["sh", "-c", "exit 37"];
    let run = ended(&mut run_on(&files(&dir), &["--value", "v", "k"], &exits));
    assert_eq!(run.status.code(), Some(37), "{}", stderr(&run));
    assert_eq!(stderr(&run), "");
}

#[test]
fn leaders_and_holders_of_the_lock_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let lock: &[&str] = &["k"];
    let lead: &[&str] = &["--value", "v", "k"];
    for (held, refused) in [(lead, lead), (lead, lock), (lock, lead)] {
        let (run, _) = started(&mut run_on(&url, held, &HOLD));
        for wait in [&["--no-wait"][..], &["--wait", "0s"], &["--wait", "1ms"]] {
            let options = [wait, refused].concat();
            let refused = ended(&mut run_on(&url, &options, &["true"]));
            assert_eq!(refused.status.code(), Some(75), "{}", stderr(&refused));
            assert!(
                stderr(&refused).contains("another holds"),
                "{}",
                stderr(&refused)
            );
        }
        end(run);
    }
}

#[test]
fn value_of_a_holder_without_one_is_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let led = ended(&mut run_on(&url, &["--value", "v", "k"], &["true"]));
    assert!(led.status.success(), "{}", stderr(&led));
    let (run, _) = started(&mut run_on(&url, &["k"], &HOLD));
    let (json, code) = leader(&url, "k");
    assert_eq!((json["leader"].is_null(), code), (true, Some(1)), "{json}");
    end(run);
}

#[test]
fn next_candidate_leads_when_the_leader_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    // The program would keep the lock of its killed command.
    let program = ["sh", "-c", "echo $$; exec sleep 60"];
    let (mut first, program) = started(&mut run_on(&url, &["--value", "a", "k"], &program));
    let next = run_on(&url, &["--value", "b", "k"], &HOLD)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until_one_waits(&url, "k");
    let before = leader(&url, "k").0;
    assert_eq!(before["leader"]["value"], "a");
    signal(first.id(), "KILL");
    signal(program.parse().unwrap(), "KILL");
    first.wait().unwrap();
    until("the next one leads", || {
        leader(&url, "k").0["leader"]["value"] == "b"
    });
    let after = leader(&url, "k").0;
    let token = |json: &serde_json::Value| json["leader"]["token"].as_u64().unwrap();
    assert!(token(&after) > token(&before), "{before} {after}");
    end(next);
}

#[test]
fn signal_ends_a_campaign() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let (holder, _) = started(&mut run_on(&url, &["--value", "a", "k"], &HOLD));
    let mut waiter = run_on(&url, &["--value", "b", "k"], &["true"])
        .spawn()
        .unwrap();
    until_one_waits(&url, "k");
    signal(waiter.id(), "INT");
    assert_eq!(waiter.wait().unwrap().code(), Some(130));
    end(holder);
}

#[test]
fn value_is_any_bytes_and_is_printed_as_text() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    for (value, shown, text, hex) in [
        (&b"a b"[..], "a b ", Some("a b"), None),
        (
            b"a\x1b[2J\n\\",
            r"a\u{1b}[2J\n\\ ",
            Some("a\x1b[2J\n\\"),
            None,
        ),
        (b"\xff\x01", r"\xff\u{1} ", None, Some("ff01")),
        (b"", "- ", Some(""), None),
    ] {
        let mut run = leasehold();
        run.args(["run", "--url", &url, "--value"])
            .arg(OsStr::from_bytes(value))
            .args(["k", "--"])
            .args(HOLD);
        let (run, _) = started(&mut run);
        let table = ended(leasehold().args(["leader", "--url", &url, "k"]));
        let line = stdout(&table).lines().nth(1).unwrap().trim().to_owned();
        assert!(line.starts_with(shown), "{line}");
        let (json, _) = leader(&url, "k");
        assert_eq!(json["leader"]["value"].as_str(), text, "{json}");
        assert_eq!(json["leader"]["value_hex"].as_str(), hex, "{json}");
        end(run);
    }
}

#[test]
fn unusable_values_exit_with_64_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let long = "x".repeat(16_385);
    for (options, says) in [
        (&["--value", "v", "a", "b"][..], "one name, and there are 2"),
        (
            &["--value", &long, "k"],
            "16385 bytes and the limit is 16384",
        ),
    ] {
        let run = ended(&mut run_on(&url, options, &["echo", "up"]));
        assert_eq!(run.status.code(), Some(64), "{}", stderr(&run));
        assert!(stderr(&run).contains(says), "{}", stderr(&run));
        assert_eq!(stdout(&run), "");
    }
}

#[test]
fn largest_value_is_shown_whole() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let long = "x".repeat(16_384);
    let (run, _) = started(&mut run_on(&url, &["--value", &long, "k"], &HOLD));
    assert_eq!(leader(&url, "k").0["leader"]["value"], long);
    end(run);
}

#[test]
fn watch_prints_a_line_for_each_change_until_ctrl_c() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let (mut watch, first) = started(&mut watch(&url, &[]));
    assert_eq!(first, "no leader");
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    let program = ["sh", "-c", "echo $LEASEHOLD_TOKEN; exec sleep 60"];
    for value in ["a", "b"] {
        let options = ["--value", value, "--label", "till 3", "k"];
        let (run, token) = started(&mut run_on(&url, &options, &program));
        assert_eq!(next(), format!("{value}  {token}  till 3"));
        end(run);
        assert_eq!(next(), "no leader");
    }
    signal(watch.id(), "INT");
    assert_eq!(watch.wait().unwrap().code(), Some(130));
}

#[test]
fn watch_prints_one_json_object_per_line() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let (mut watch, first) = started(&mut watch(&url, &["--json"]));
    assert_eq!(first, r#"{"key":"k","leader":null}"#);
    let options = ["--value", "a\n\x1b[2J", "k"];
    let (run, _) = started(&mut run_on(&url, &options, &HOLD));
    let shown = leader(&url, "k").0;
    end(run);
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(line.contains(r"a\n\u001b[2J"), "{line}");
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(json, shown);
    assert_eq!(lines.next().unwrap().unwrap(), first);
    end(watch);
}

#[test]
fn watch_waits_for_the_directory_to_be_created() {
    let parent = tempfile::tempdir().unwrap();
    let url = format!("file:{}/locks", parent.path().display());
    let (mut watch, first) = started(&mut watch(&url, &[]));
    assert_eq!(first, "no leader");
    assert!(support::is_empty(parent.path()));
    let (run, _) = started(&mut run_on(&url, &["--value", "a", "k"], &HOLD));
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(line.starts_with("a  "), "{line}");
    end(run);
    end(watch);
}

#[test]
fn watch_ends_once_nobody_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let (mut watch, _) = started(&mut watch(&url, &[]));
    drop(watch.stdout.take());
    let (run, _) = started(&mut run_on(&url, &["--value", "v", "k"], &HOLD));
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    end(run);
}

#[test]
fn signal_ends_a_watch_whose_output_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    // As JSON, this value is longer than a pipe holds.
    let long = "\x01".repeat(16_384);
    let (run, _) = started(&mut run_on(&url, &["--value", &long, "k"], &HOLD));
    let mut watch = watch(&url, &["--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = watch.stdout.take().unwrap();
    output.read_exact(&mut [0]).unwrap();
    signal(watch.id(), "INT");
    assert_eq!(watch.wait().unwrap().code(), Some(130));
    end(run);
}

#[test]
fn help_has_the_verb_its_options_and_its_exit_codes() {
    let help = |verb: &str| stdout(&ended(leasehold().args(["help", verb])));
    for shown in ["--watch", "--json", "1  nobody leads", "128 + N"] {
        assert!(
            help("leader").contains(shown),
            "{shown}: {}",
            help("leader")
        );
    }
    for shown in ["--value <V>", "Elections:", "leasehold leader NAME"] {
        assert!(help("run").contains(shown), "{shown}: {}", help("run"));
    }
    let verbs = stdout(&ended(leasehold().arg("--help")));
    assert!(verbs.contains("Show who leads an election"), "{verbs}");
}
