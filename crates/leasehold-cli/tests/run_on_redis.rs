//! `leasehold run`, `status`, `revoke` and `init` on Redis servers.
#![cfg(all(target_os = "linux", feature = "redis"))]

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    process::Stdio,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::support::{
    Redis, ended, leasehold, lives, run_on, signal, started, started_with_stderr, status, stderr,
    stdout, until, until_one_waits, within_timeout,
};

mod support;

#[test]
fn program_ends_before_an_unrenewable_lock_is_granted_elsewhere() {
    let redis = Redis::start(&[]);
    // The program ignores TERM, and prints when it comes.
    let program = "trap 'echo term' TERM; echo $$; while :; do sleep 0.01; done";
    let (run, _) = started(&mut run_on(
        &redis.url,
        &["--ttl", "4s", "k"],
        &["bash", "-c", program],
    ));
    signal(redis.process.id(), "STOP");
    let output = run.wait_with_output().unwrap();
    signal(redis.process.id(), "CONT");
    assert_eq!(output.status.code(), Some(76), "{}", stderr(&output));
    assert!(stdout(&output).contains("term"), "{}", stderr(&output));
    assert!(stderr(&output).contains("killed"), "{}", stderr(&output));
}

#[test]
fn program_is_killed_before_the_ttl_is_over() {
    let redis = Redis::start(&[]);
    // The program's own signs of life, so that a slow machine does not make its death late.
    let program = "trap '' TERM; echo $$; while :; do echo $EPOCHREALTIME; sleep 0.01; done";
    let (run, program) = started(&mut run_on(
        &redis.url,
        &["--ttl", "15s", "k"],
        &["bash", "-c", program],
    ));
    // The last renewal was before.
    let stopped = SystemTime::now();
    signal(redis.process.id(), "STOP");
    let program: u32 = program.parse().unwrap();
    until("the program is dead", || !lives(program));
    signal(redis.process.id(), "CONT");
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(76));
    let signs = stdout(&output);
    let last: f64 = signs.lines().last().unwrap().parse().unwrap();
    let stopped = stopped.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(last < stopped + 15.0, "alive {} s later", last - stopped);
}

#[test]
fn program_is_ended_even_if_nobody_reads_standard_error() {
    let redis = Redis::start(&[]);
    let program = "trap '' TERM; echo $$; while :; do sleep 0.01; done";
    let (_unread, mut full) = std::io::pipe().unwrap();
    // The capacity of a pipe.
    full.write_all(&[b'.'; 0x1_0000]).unwrap();
    let mut command = run_on(&redis.url, &["--ttl", "2s", "k"], &["bash", "-c", program]);
    let (mut run, program) = started_with_stderr(command.stderr(full));
    signal(redis.process.id(), "STOP");
    let program: u32 = program.parse().unwrap();
    let mut code = None;
    let ended = within_timeout(|| {
        code = run.try_wait().unwrap();
        code.is_some()
    });
    let outlived = lives(program);
    signal(redis.process.id(), "CONT");
    // Ends both if the command did not end.
    drop(run.kill());
    assert!(
        ended && !outlived,
        "ended: {ended}, the program lives: {outlived}"
    );
    assert_eq!(code.unwrap().code(), Some(76));
}

#[test]
fn renewals_keep_the_lock_for_many_ttls() {
    let redis = Redis::start(&[]);
    let program = ["sh", "-c", "echo; read -r _; exit 3"];
    let (mut run, _) =
        started(run_on(&redis.url, &["--ttl", "1500ms", "k"], &program).stdin(Stdio::piped()));
    // Each renewal adds at least a fifth of the TTL. A renewal that is missed prolongs the wait.
    let (mut left, mut renewals) = (u64::MAX, 0);
    until("it was renewed for two TTLs", || {
        let now = status(&redis.url, "k")["holders"][0]["expires_in_ms"]
            .as_u64()
            .unwrap();
        renewals += usize::from(now > left);
        left = now;
        renewals == 10
    });
    assert_eq!(
        ended(&mut run_on(&redis.url, &["--no-wait", "k"], &["true"]))
            .status
            .code(),
        Some(75)
    );
    // `wait` closes standard input.
    assert_eq!(run.wait().unwrap().code(), Some(3));
}

#[test]
fn killed_command_takes_its_program_with_it() {
    let redis = Redis::start(&[]);
    let (mut run, program) = started(&mut run_on(
        &redis.url,
        &["--ttl", "2s", "k"],
        &["sh", "-c", "echo $$; exec sleep 60"],
    ));
    signal(run.id(), "KILL");
    assert_eq!(run.wait().unwrap().signal(), Some(9));
    let program: u32 = program.parse().unwrap();
    until("the program is dead", || !lives(program));
    let next = ended(&mut run_on(&redis.url, &["--wait", "6s", "k"], &["true"]));
    assert!(next.status.success(), "{}", stderr(&next));
}

#[test]
fn status_shows_and_revoke_ends_a_holder() {
    let redis = Redis::start(&[]);
    let shown = || ended(leasehold().args(["status", "--url", &redis.url, "k"]));
    assert_eq!(shown().status.code(), Some(1));
    assert_eq!(
        ended(leasehold().args(["revoke", "--url", &redis.url, "k"]))
            .status
            .code(),
        Some(1)
    );

    let (run, _) = started(&mut run_on(
        &redis.url,
        &["--ttl", "2s", "--label", "till 3", "k"],
        &["sh", "-c", "echo $LEASEHOLD_TOKEN; exec sleep 60"],
    ));
    let seen = status(&redis.url, "k");
    assert_eq!(seen["key"], "k");
    assert_eq!(seen["holders"][0]["label"], "till 3");
    assert!(stdout(&shown()).contains("till 3"));

    let revoked = ended(leasehold().args(["revoke", "--now", "--json", "--url", &redis.url, "k"]));
    assert!(
        revoked.status.success() && stderr(&revoked).contains("--now"),
        "{}",
        stderr(&revoked)
    );
    let json: serde_json::Value = serde_json::from_slice(&revoked.stdout).unwrap();
    assert_eq!(json[0]["outcome"], "freed");
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(76), "{}", stderr(&output));
}

#[test]
fn revoked_program_is_terminated_when_its_time_is_over() {
    let redis = Redis::start(&[]);
    let program = "trap 'echo term; exit 3' TERM; echo; while :; do sleep 0.01; done";
    let (run, _) = started(&mut run_on(
        &redis.url,
        &["--ttl", "3s", "k"],
        &["bash", "-c", program],
    ));
    let revoked = ended(leasehold().args(["revoke", "--url", &redis.url, "k"]));
    assert!(
        stdout(&revoked).contains("no longer renewed"),
        "{}",
        stderr(&revoked)
    );
    let output = run.wait_with_output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(76), "{text}");
    assert!(stdout(&output).contains("term"), "{text}");
    assert!(
        text.contains("lock revoked") && text.contains("cannot be renewed; asked the program"),
        "{text}"
    );
    assert!(
        !text.contains("is lost") && !text.contains("renewals are late"),
        "{text}"
    );
}

#[test]
fn a_revoked_program_may_end_by_itself() {
    let redis = Redis::start(&[]);
    let program = ["sh", "-c", "echo; read -r _; exit 3"];
    let (mut run, _) =
        started(run_on(&redis.url, &["--ttl", "60s", "k"], &program).stdin(Stdio::piped()));
    let revoked = ended(leasehold().args(["revoke", "--url", &redis.url, "k"]));
    assert!(revoked.status.success(), "{}", stderr(&revoked));
    let refused = ended(&mut run_on(&redis.url, &["--no-wait", "k"], &["true"]));
    assert_eq!(refused.status.code(), Some(75), "{}", stderr(&refused));
    // `wait` closes standard input.
    assert_eq!(run.wait().unwrap().code(), Some(3));
    let next = ended(&mut run_on(&redis.url, &["--no-wait", "k"], &["true"]));
    assert!(next.status.success(), "{}", stderr(&next));
}

#[test]
fn end_of_a_wait_does_not_wait_for_a_dead_server() {
    let mut redis = Redis::start(&[]);
    let (mut holder, _) = started(&mut run_on(
        &redis.url,
        &["k"],
        &["sh", "-c", "echo; exec sleep 60"],
    ));
    let waiter = run_on(&redis.url, &["--wait", "4s", "k"], &["true"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until_one_waits(&redis.url, "k");
    redis.process.kill().unwrap();
    redis.process.wait().unwrap();
    let output = waiter.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("the backend does not answer"),
        "{}",
        stderr(&output)
    );
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn loss_ends_all_processes_that_the_program_started() {
    let redis = Redis::start(&[]);
    // A job with its own group, and one with its own session. Both refuse TERM like the program.
    let refuses = "trap '' TERM; echo $$; while :; do sleep 0.01; done";
    for starts in ["sh job &", "setsid --wait sh job &", "(sh job &);"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("job"), refuses).unwrap();
        let program = format!("trap '' TERM; set -m; {starts} while :; do sleep 0.01; done");
        let mut command = run_on(&redis.url, &["--ttl", "2s", "k"], &["bash", "-c", &program]);
        let (run, job) = started(command.current_dir(dir.path()));
        let revoked = ended(leasehold().args(["revoke", "--now", "--url", &redis.url, "k"]));
        assert!(revoked.status.success(), "{}", stderr(&revoked));
        let output = run.wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(76),
            "{starts}: {}",
            stderr(&output)
        );
        assert!(!lives(job.parse().unwrap()), "{starts}");
        assert!(
            !stderr(&output).contains("cannot send"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn loss_ends_processes_that_the_program_left_behind() {
    let redis = Redis::start(&[]);
    let program = "sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.01; done' & exit 3";
    let (run, job) = started(&mut run_on(
        &redis.url,
        &["--ttl", "2s", "k"],
        &["sh", "-c", program],
    ));
    let revoked = ended(leasehold().args(["revoke", "--now", "--url", &redis.url, "k"]));
    assert!(revoked.status.success(), "{}", stderr(&revoked));
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(76), "{}", stderr(&output));
    assert!(!lives(job.parse().unwrap()));
}

#[test]
fn processes_left_behind_hold_the_lock_on_redis() {
    let redis = Redis::start(&[]);
    let program = "sh -c 'echo $$; exec sleep 60' & exit 3";
    let (mut run, job) = started(&mut run_on(
        &redis.url,
        &["--ttl", "2s", "k"],
        &["sh", "-c", program],
    ));
    // The command reports it once the program has ended.
    let mut message = String::new();
    BufReader::with_capacity(1, run.stderr.as_mut().unwrap())
        .read_line(&mut message)
        .unwrap();
    assert!(message.contains(&format!("process {job}")), "{message}");
    assert_eq!(
        ended(&mut run_on(&redis.url, &["--no-wait", "k"], &["true"]))
            .status
            .code(),
        Some(75)
    );
    signal(run.id(), "TERM");
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(!lives(job.parse().unwrap()));
    assert!(
        ended(&mut run_on(&redis.url, &["--no-wait", "k"], &["true"]))
            .status
            .success()
    );
}

#[test]
fn wrong_password_exits_with_77() {
    let redis = Redis::start(&["--requirepass", "right"]);
    let url = redis.url.replace("redis://", "redis://:wr0ng@");
    let run = ended(&mut run_on(&url, &["k"], &["true"]));
    assert_eq!(run.status.code(), Some(77), "{}", stderr(&run));
    assert!(!stderr(&run).contains("wr0ng"));
    let url = redis.url.replace("redis://", "redis://:right@");
    assert!(ended(&mut run_on(&url, &["k"], &["true"])).status.success());
}

#[cfg(feature = "redlock")]
#[test]
fn quorum_is_initialized_and_its_dead_server_is_named() {
    let mut servers: Vec<_> = (0..3).map(|_| Redis::start(&[])).collect();
    let host = |redis: &Redis| {
        redis
            .url
            .trim_start_matches("redis://")
            .split('/')
            .next()
            .unwrap()
            .to_owned()
    };
    let hosts: Vec<_> = servers.iter().map(host).collect();
    let url = format!("redlock://{}/", hosts.join(","));

    // The servers have just started, and may have lost data.
    let early = ended(&mut run_on(&url, &["--no-wait", "k"], &["true"]));
    assert_eq!(early.status.code(), Some(69), "{}", stderr(&early));
    assert!(
        stderr(&early).contains("3 of 3 unavailable") && stderr(&early).contains("leasehold init"),
        "{}",
        stderr(&early)
    );
    // With the wait for the longest TTL, and without it.
    for arguments in [["--largest-ttl", "4s"].as_slice(), &["--assume-fresh"]] {
        let initialized = ended(leasehold().args(["init", "--url", &url]).args(arguments));
        assert!(
            arguments.len() == 1 || stderr(&initialized).contains("up to 4s"),
            "{}",
            stderr(&initialized)
        );
        assert!(initialized.status.success(), "{}", stderr(&initialized));
        assert_eq!(
            stdout(&initialized).matches("yes").count(),
            3,
            "{}",
            stdout(&initialized)
        );
    }

    servers[0].process.kill().unwrap();
    servers[0].process.wait().unwrap();
    let run = ended(&mut run_on(
        &url,
        &["k"],
        &["sh", "-c", "echo $LEASEHOLD_TOKEN"],
    ));
    assert!(run.status.success(), "{}", stderr(&run));
    assert!(stdout(&run).trim().parse::<u64>().unwrap() > 0);
    let shown = ended(leasehold().args(["status", "--url", &url, "k"]));
    assert!(stdout(&shown).contains(&hosts[0]), "{}", stdout(&shown));
}

#[test]
fn loss_of_one_of_several_locks_ends_the_program() {
    let redis = Redis::start(&[]);
    let program = ["sh", "-c", "echo; exec sleep 60"];
    let (run, _) = started(&mut run_on(&redis.url, &["b", "a"], &program));
    let revoked = ended(leasehold().args(["revoke", "--now", "--url", &redis.url, "b"]));
    assert!(revoked.status.success(), "{}", stderr(&revoked));
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(76), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("the lock `b`"),
        "{}",
        stderr(&output)
    );
    // The locks before it are released.
    let next = ended(&mut run_on(&redis.url, &["-n", "a", "b"], &["true"]));
    assert!(next.status.success(), "{}", stderr(&next));
}

#[test]
fn killed_command_frees_all_of_its_names_after_the_ttl() {
    let redis = Redis::start(&[]);
    let program = ["sh", "-c", "echo; exec sleep 60"];
    let names = ["--ttl", "2s", "c", "a", "b"];
    let (mut run, _) = started(&mut run_on(&redis.url, &names, &program));
    signal(run.id(), "KILL");
    run.wait().unwrap();
    let next = ended(&mut run_on(&redis.url, &["a", "b", "c"], &["true"]));
    assert!(next.status.success(), "{}", stderr(&next));
}
