//! `leasehold run --value` and `leasehold leader` on Redis servers.
#![cfg(all(target_os = "linux", feature = "redis"))]

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use crate::support::{
    Redis, end, ended, leader, leasehold, lives, run_on, signal, started, stderr, stdout,
    until_one_waits,
};

mod support;

/// A program that prints the token, and runs until it gets a signal.
const HOLD: [&str; 3] = ["sh", "-c", "echo $LEASEHOLD_TOKEN; exec sleep 60"];

/// Starts `leasehold leader --watch`, and returns the first line.
fn watched(url: &str) -> (Child, serde_json::Value) {
    let (watch, line) =
        started(leasehold().args(["leader", "--watch", "--json", "--url", url, "k"]));
    (watch, serde_json::from_str(&line).unwrap())
}

/// Returns the lines of a watch until one shows this value.
fn lines_until(watch: &mut Child, value: &str) -> Vec<serde_json::Value> {
    let mut lines = Vec::new();
    // A larger buffer would lose the bytes after the last line.
    let mut output = BufReader::with_capacity(1, watch.stdout.as_mut().unwrap());
    while lines
        .last()
        .is_none_or(|last: &serde_json::Value| last["leader"]["value"] != value)
    {
        let mut line = String::new();
        assert!(
            output.read_line(&mut line).unwrap() > 0,
            "the watch has ended: {lines:?}"
        );
        lines.push(serde_json::from_str(&line).unwrap());
    }
    lines
}

#[test]
fn watch_shows_a_fail_over_in_the_order_of_the_tokens() {
    let redis = Redis::start(&[]);
    let (mut watch, first) = watched(&redis.url);
    assert!(first["leader"].is_null(), "{first}");
    let options = ["--ttl", "2s", "--value", "a", "k"];
    let (mut run, token) = started(&mut run_on(&redis.url, &options, &HOLD));
    let shown = lines_until(&mut watch, "a").pop().unwrap();
    assert_eq!(shown["leader"]["token"].to_string(), token);
    let next = run_on(&redis.url, &["--value", "b", "k"], &HOLD)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until_one_waits(&redis.url, "k");
    signal(run.id(), "KILL");
    run.wait().unwrap();
    let lines = lines_until(&mut watch, "b");
    let tokens = lines
        .iter()
        .filter_map(|line| line["leader"]["token"].as_u64());
    let tokens: Vec<_> = std::iter::once(token.parse().unwrap())
        .chain(tokens)
        .collect();
    assert!(tokens.is_sorted(), "{lines:?}");
    assert!(tokens.len() == 2 && tokens[0] < tokens[1], "{lines:?}");
    end(next);
    end(watch);
}

#[test]
fn watch_continues_after_an_outage_of_the_server() {
    let mut redis = Redis::start(&[]);
    let (mut run, _) = started(&mut run_on(&redis.url, &["--value", "a", "k"], &HOLD));
    let (mut watch, first) = watched(&redis.url);
    assert_eq!(first["leader"]["value"], "a");
    redis.kill();
    run.kill().unwrap();
    run.wait().unwrap();
    let down = ended(leasehold().args(["leader", "--url", &redis.url, "k"]));
    assert_eq!(down.status.code(), Some(69), "{}", stderr(&down));
    redis.start_again();
    let (run, token) = started(&mut run_on(&redis.url, &["--value", "b", "k"], &HOLD));
    let shown = lines_until(&mut watch, "b").pop().unwrap();
    assert_eq!(shown["leader"]["token"].to_string(), token);
    end(run);
    signal(watch.id(), "INT");
    assert_eq!(watch.wait().unwrap().code(), Some(130));
}

#[test]
fn signal_ends_a_watch_during_an_outage() {
    let mut redis = Redis::start(&[]);
    let (mut watch, _) = watched(&redis.url);
    redis.kill();
    signal(watch.id(), "INT");
    assert_eq!(watch.wait().unwrap().code(), Some(130));
}

#[test]
fn program_of_a_revoked_leader_is_terminated() {
    let redis = Redis::start(&[]);
    let (run, _) = started(&mut run_on(&redis.url, &["--value", "a", "k"], &HOLD));
    let program = ["sh", "-c", "echo $$; exec sleep 60"];
    let (other, program) = started(&mut run_on(
        &redis.url,
        &["--value", "b", "other"],
        &program,
    ));
    let revoked = ended(leasehold().args(["revoke", "--now", "--url", &redis.url, "other"]));
    assert!(revoked.status.success(), "{}", stderr(&revoked));
    let output = other.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(76), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("the lock `other`"),
        "{}",
        stderr(&output)
    );
    assert!(!lives(program.parse().unwrap()));
    assert_eq!(leader(&redis.url, "other").1, Some(1));
    // Another election is not affected.
    assert_eq!(leader(&redis.url, "k").0["leader"]["value"], "a");
    end(run);
}

#[test]
fn leader_of_another_user_is_refused_with_77() {
    let redis = Redis::start(&["--requirepass", "right"]);
    let url = redis.url.replace("redis://", "redis://:wr0ng@");
    for watch in [&[][..], &["--watch"]] {
        let refused = ended(leasehold().args(["leader", "--url", &url, "k"]).args(watch));
        assert_eq!(refused.status.code(), Some(77), "{}", stderr(&refused));
        assert!(!stderr(&refused).contains("wr0ng"));
    }
}

#[cfg(feature = "redlock")]
#[test]
fn quorum_without_records_leads_only_without_a_value() {
    let servers: Vec<_> = (0..3).map(|_| Redis::start(&[])).collect();
    let hosts = servers.iter().map(|redis| {
        let (_, rest) = redis.url.split_once("://").unwrap();
        rest.split('/').next().unwrap()
    });
    let url = format!("redlock://{}/", hosts.collect::<Vec<_>>().join(","));
    let initialized = ended(leasehold().args(["init", "--assume-fresh", "--url", &url]));
    assert!(initialized.status.success(), "{}", stderr(&initialized));
    let led = ended(&mut run_on(&url, &["--value", "v", "k"], &["echo", "up"]));
    let shown =
        |watch: &[&str]| ended(leasehold().args(["leader", "--url", &url, "k"]).args(watch));
    for refused in [led, shown(&[]), shown(&["--watch"])] {
        assert_eq!(refused.status.code(), Some(64), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("record"), "{}", stderr(&refused));
        assert_eq!(stderr(&refused).lines().count(), 1, "{}", stderr(&refused));
        assert_eq!(stdout(&refused), "");
    }
    let led = ended(&mut run_on(&url, &["--value", "", "k"], &["echo", "up"]));
    assert_eq!(
        (led.status.code(), &*stdout(&led)),
        (Some(0), "up\n"),
        "{}",
        stderr(&led)
    );
}
