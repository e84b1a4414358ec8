//! `who` and `caps` on files.
#![cfg(target_os = "linux")]

use crate::support::{ended, files, leasehold, run_on, signal, started, stderr, stdout};

mod support;

#[test]
fn caps_says_what_is_promised_and_where_it_lives() {
    let dir = tempfile::tempdir().unwrap();
    let table = ended(leasehold().args(["caps", "--on", &files(&dir)]));
    assert!(table.status.success(), "{}", stderr(&table));
    assert!(stdout(&table).contains(dir.path().to_str().unwrap()), "{}", stdout(&table));
    let json = ended(leasehold().args(["caps", "--json", "--on", &files(&dir)]));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["backend"], "file");
    assert_eq!(json["exclusive"], true);
    assert_eq!(json["expiry"], "ProcessDeath");
}

#[test]
fn a_file_lock_cannot_be_broken_and_the_command_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (mut run, _) = started(&mut run_on(&files(&dir), &["k"], &["sh", "-c", "echo; exec sleep 60"]));
    let broken = ended(leasehold().args(["break", "--on", &files(&dir), "k"]));
    assert_eq!(broken.status.code(), Some(64), "{}", stderr(&broken));
    assert_eq!(stderr(&broken).lines().count(), 1, "{}", stderr(&broken));
    signal(run.id(), "TERM");
    run.wait().unwrap();
}

#[test]
fn who_shows_the_holder_on_files() {
    let dir = tempfile::tempdir().unwrap();
    let who = || ended(leasehold().args(["who", "--json", "--on", &files(&dir), "k"]));
    assert_eq!(who().status.code(), Some(1));
    let (mut run, _) =
        started(&mut run_on(&files(&dir), &["--label", "till 3", "k"], &["sh", "-c", "echo; exec sleep 60"]));
    let seen = who();
    assert_eq!(seen.status.code(), Some(0), "{}", stderr(&seen));
    let seen: serde_json::Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert_eq!(seen["holders"].as_array().unwrap().len(), 1);
    assert_eq!(seen["holders"][0]["label"], "till 3");
    signal(run.id(), "TERM");
    run.wait().unwrap();
}
