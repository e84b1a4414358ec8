//! `leasehold run` on files.
#![cfg(target_os = "linux")]

use std::{
    io::Write,
    os::unix::{ffi::OsStrExt, process::ExitStatusExt},
    process::{Command, Stdio},
    time::Instant,
};

use crate::support::{
    end, ended, files, leasehold, lives, run_on, signal, started, status, stderr, stdout, until,
    until_one_waits,
};

mod support;

const HOLD: [&str; 3] = ["sh", "-c", "echo $$; exec sleep 60"];

#[test]
fn two_runs_of_one_name_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let program = format!("echo in >> {0}; sleep 0.05; echo out >> {0}", log.display());
    let mut runs: Vec<_> = (0..6)
        .map(|_| {
            run_on(&files(&dir), &["k"], &["sh", "-c", &program])
                .spawn()
                .unwrap()
        })
        .collect();
    assert!(runs.iter_mut().all(|run| run.wait().unwrap().success()));
    assert_eq!(std::fs::read_to_string(log).unwrap(), "in\nout\n".repeat(6));
}

#[test]
fn no_wait_and_an_expired_wait_exit_with_75() {
    let dir = tempfile::tempdir().unwrap();
    let (mut holder, _) = started(&mut run_on(&files(&dir), &["k"], &HOLD));
    let at = Instant::now();
    let refused = ended(&mut run_on(&files(&dir), &["--no-wait", "k"], &["true"]));
    assert_eq!(refused.status.code(), Some(75), "{}", stderr(&refused));
    assert_eq!(stderr(&refused).lines().count(), 1, "{}", stderr(&refused));
    let late = ended(&mut run_on(
        &files(&dir),
        &["--wait", "300ms", "k"],
        &["true"],
    ));
    assert_eq!(late.status.code(), Some(75), "{}", stderr(&late));
    assert!(at.elapsed().as_millis() >= 300);
    signal(holder.id(), "TERM");
    assert_eq!(holder.wait().unwrap().code(), Some(143));
    let next = ended(&mut run_on(&files(&dir), &["--wait", "5s", "k"], &["true"]));
    assert!(next.status.success(), "{}", stderr(&next));
}

#[test]
fn exit_code_of_the_program_is_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    for (program, code) in [
        ("exit 0", 0),
        ("exit 37", 37),
        ("kill -KILL $$", 137),
        ("kill -SEGV $$", 139),
    ] {
        let run = ended(&mut run_on(&files(&dir), &["k"], &["sh", "-c", program]));
        assert_eq!(run.status.code(), Some(code), "{program}");
        assert_eq!(stderr(&run), "");
    }
}

#[test]
fn program_that_cannot_start_exits_with_126_or_127() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "text").unwrap();
    let redis = support::Redis::start(&[]);
    for url in [files(&dir), redis.url.clone()] {
        for (program, code) in [
            ("/does/not/exist", 127),
            ("does-not-exist", 127),
            (text.to_str().unwrap(), 126),
        ] {
            let run = ended(&mut run_on(&url, &["k"], &[program]));
            assert_eq!(run.status.code(), Some(code), "{program}: {}", stderr(&run));
            assert!(stderr(&run).contains(program));
        }
        // The lock is free.
        assert!(
            ended(&mut run_on(&url, &["--no-wait", "k"], &["true"]))
                .status
                .success()
        );
    }
}

#[test]
fn signals_reach_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let program = "for s in INT TERM HUP QUIT USR1 USR2; do trap \"echo got $s; exit 7\" $s; done; echo up; \
                   while :; do sleep 0.01; done";
    for name in ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"] {
        let (run, _) = started(&mut run_on(&files(&dir), &["k"], &["bash", "-c", program]));
        signal(run.id(), name);
        let output = run.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{name}");
        assert!(stdout(&output).contains(&format!("got {name}")));
    }
}

#[test]
fn ctrl_c_on_a_terminal_reaches_the_program_once() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    let counts = "n=0; trap 'n=$((n+1))' INT; echo up; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done; echo int=$n; exit 5";
    std::fs::write(&program, counts).unwrap();
    // A shell without `exec` may wait for the command and then die of Ctrl-C itself.
    let line = format!(
        "exec {} run --url {} k -- bash {}",
        env!("CARGO_BIN_EXE_leasehold"),
        files(&dir),
        program.display()
    );
    // `script` makes a pseudo-terminal, to which the test writes Ctrl-C.
    let (mut terminal, _) = started(
        Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::piped()),
    );
    terminal.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    let mut keyboard = terminal.stdin.take();
    let output = terminal.wait_with_output().unwrap();
    drop(keyboard.take());
    assert!(stdout(&output).contains("int=1"), "{}", stdout(&output));
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn signal_ends_the_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (holder, _) = started(&mut run_on(&files(&dir), &["k"], &HOLD));
    let mut waiter = run_on(&files(&dir), &["k"], &["true"]).spawn().unwrap();
    until_one_waits(&files(&dir), "k");
    signal(waiter.id(), "TERM");
    assert_eq!(waiter.wait().unwrap().code(), Some(143));
    end(holder);
}

#[test]
fn environment_has_the_key_and_a_growing_token() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for _ in 0..5 {
        let run = ended(&mut run_on(
            &files(&dir),
            &["a key"],
            &[
                "sh",
                "-c",
                "echo \"$LEASEHOLD_KEY\"; echo \"$LEASEHOLD_TOKEN\"",
            ],
        ));
        let out = stdout(&run);
        let (key, token) = out.trim().split_once('\n').unwrap();
        assert_eq!(key, "a key");
        let token: u64 = token.parse().unwrap();
        assert!(token > last);
        last = token;
    }
}

#[test]
fn name_may_be_other_than_unicode() {
    let dir = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"\xff\n{}/..");
    let run = ended(
        leasehold()
            .args(["run", "--url", &files(&dir)])
            .arg(name)
            .args(["--", "printenv", "LEASEHOLD_KEY"]),
    );
    assert_eq!(run.stdout, b"\xff\n{}/..\n");
}

#[test]
fn standard_streams_pass_through_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let mut run = run_on(&files(&dir), &["k"], &["sh", "-c", "cat; echo err >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = run.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent).unwrap());
    let output = run.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.stdout == bytes, "not the same bytes");
    assert_eq!(stderr(&output), "err\n");
}

#[test]
fn killed_command_leaves_the_lock_to_its_program() {
    let dir = tempfile::tempdir().unwrap();
    let (mut run, program) = started(&mut run_on(&files(&dir), &["k"], &HOLD));
    let program: u32 = program.parse().unwrap();
    signal(run.id(), "KILL");
    assert_eq!(run.wait().unwrap().signal(), Some(9));
    assert!(lives(program));
    assert_eq!(
        ended(&mut run_on(&files(&dir), &["--no-wait", "k"], &["true"]))
            .status
            .code(),
        Some(75)
    );
    signal(program, "KILL");
    let next = ended(&mut run_on(&files(&dir), &["--wait", "5s", "k"], &["true"]));
    assert!(next.status.success(), "{}", stderr(&next));
}

#[test]
fn flock_and_the_command_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("k.lock");
    let (run, _) = started(&mut run_on(&files(&dir), &["k"], &HOLD));
    assert!(file.exists());
    assert!(
        !Command::new("flock")
            .arg("-n")
            .arg(&file)
            .arg("true")
            .status()
            .unwrap()
            .success()
    );
    end(run);
    let (mut flock, _) = started(Command::new("flock").arg("--no-fork").arg(&file).args(HOLD));
    assert_eq!(
        ended(&mut run_on(&files(&dir), &["--no-wait", "k"], &["true"]))
            .status
            .code(),
        Some(75)
    );
    signal(flock.id(), "KILL");
    flock.wait().unwrap();
    until("flock's lock is free", || {
        ended(&mut run_on(&files(&dir), &["--no-wait", "k"], &["true"]))
            .status
            .success()
    });
}

#[test]
fn url_option_overrides_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let run = ended(
        leasehold()
            .env("LEASEHOLD_URL", files(&dir))
            .args(["run", "k", "--", "true"]),
    );
    assert!(run.status.success() && dir.path().join("k.lock").exists());
    let run = ended(run_on(&files(&dir), &["k"], &["true"]).env("LEASEHOLD_URL", "nonsense"));
    assert!(run.status.success());
    let run = ended(
        leasehold()
            .env("LEASEHOLD_URL", "nonsense")
            .args(["run", "k", "--", "true"]),
    );
    assert_eq!(run.status.code(), Some(64));
}

#[test]
fn program_gets_the_url_only_with_keep_url() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    for (options, variable, seen) in [
        (&["k"][..], url.as_str(), ""),
        (&["--keep-url", "k"], &url, &*url),
        (&["--url", &url, "k"], "file:/other", ""),
        (&["--url", &url, "--keep-url", "k"], "file:/other", &url),
    ] {
        let mut run = leasehold();
        run.env("LEASEHOLD_URL", variable).arg("run").args(options);
        let run = ended(run.args(["--", "sh", "-c", "echo \"$LEASEHOLD_URL\""]));
        assert!(run.status.success(), "{}", stderr(&run));
        assert_eq!(stdout(&run), format!("{seen}\n"), "{options:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

#[test]
fn directory_of_others_needs_shared_in_the_url() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let refused = ended(&mut run_on(&files(&dir), &["k"], &["true"]));
    assert_eq!(refused.status.code(), Some(77), "{}", stderr(&refused));
    let url = format!("{}?shared=true", files(&dir));
    assert!(ended(&mut run_on(&url, &["k"], &["true"])).status.success());
}

#[test]
fn status_names_the_program_that_runs_under_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let (run, _) = started(&mut run_on(
        &files(&dir),
        &["k"],
        &["/bin/sh", "-c", "echo; exec sleep 60"],
    ));
    let label = status(&files(&dir), "k")["holders"][0]["label"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(label.ends_with(&format!("/{}/sh", run.id())), "{label}");
    end(run);
}

/// Returns `unshare` for a new namespace, as root or else as root of a user namespace.
fn unshared(kind: &[&str]) -> Command {
    let words = [&["unshare"], kind].concat();
    let as_user = [&words[..], &["--user", "--map-root-user"]].concat();
    let is_allowed = |words: &&Vec<&str>| {
        Command::new(words[0])
            .args(&words[1..])
            .arg("true")
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    };
    let allowed = [words, as_user];
    let allowed = allowed
        .iter()
        .find(is_allowed)
        .expect("this test needs namespaces: run it as root");
    let mut command = Command::new(allowed[0]);
    command
        .args(&allowed[1..])
        .env_remove("LEASEHOLD_URL")
        .stdin(Stdio::null());
    command
}

#[test]
fn status_finds_the_holder_in_another_process_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let kind = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let command = |words: &[&str]| {
        let mut command = unshared(&kind);
        command.arg(env!("CARGO_BIN_EXE_leasehold")).args(words);
        command
    };
    let url = files(&dir);
    let seen = || ended(&mut command(&["status", "--json", "--url", &url, "k"]));
    assert_eq!(seen().status.code(), Some(1));
    let (mut run, _) = started(&mut command(&[
        "run",
        "--url",
        &url,
        "k",
        "--",
        "sh",
        "-c",
        "echo; exec sleep 60",
    ]));
    let sibling = seen();
    assert_eq!(sibling.status.code(), Some(0), "{}", stderr(&sibling));
    let sibling: serde_json::Value = serde_json::from_slice(&sibling.stdout).unwrap();
    assert_eq!(sibling["holders"].as_array().unwrap().len(), 1, "{sibling}");
    assert_eq!(sibling["holders"][0]["mode"], "exclusive");
    assert!(
        sibling["holders"][0]["label"]
            .as_str()
            .unwrap()
            .contains("another PID namespace"),
        "{sibling}"
    );
    // Outside, the holder has another process id than inside. Its record has the one from inside.
    let outside = status(&url, "k");
    assert_eq!(outside["holders"].as_array().unwrap().len(), 1, "{outside}");
    assert!(
        outside["holders"][0]["label"]
            .as_str()
            .unwrap()
            .ends_with("/1/sh"),
        "{outside}"
    );
    run.kill().unwrap();
    run.wait().unwrap();
}

#[test]
fn file_of_another_file_system_is_not_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    // Two new file systems give their files the same numbers.
    let script = "set -e; cd \"$1\"; mkdir a b; for d in a b; do mount -t tmpfs -o mode=700 none $d; : >$d/k.lock; done; \
                  stat -c %i a/k.lock b/k.lock; exec flock --no-fork b/k.lock sh -c '\"$1\" status --json --url \"file:$2/a\" k; \
                  echo $?; \"$1\" status --json --url \"file:$2/b\" k; echo $?' sh \"$2\" \"$1\"";
    let mut command = unshared(&["--mount"]);
    command.args([
        "sh",
        "-c",
        script,
        "sh",
        dir.path().to_str().unwrap(),
        env!("CARGO_BIN_EXE_leasehold"),
    ]);
    let output = ended(&mut command);
    let lines = stdout(&output);
    let lines: Vec<_> = lines.lines().collect();
    assert!(lines.len() > 4, "{lines:?} {}", stderr(&output));
    assert_eq!(
        lines[0], lines[1],
        "the numbers of the files differ, so that this proves nothing"
    );
    let codes: Vec<_> = lines[2..]
        .iter()
        .filter(|line| line.parse::<u8>().is_ok())
        .collect();
    assert_eq!(codes, [&"1", &"0"], "{lines:?} {}", stderr(&output));
}

#[test]
fn wait_of_zero_is_one_attempt_as_no_wait_is() {
    let dir = tempfile::tempdir().unwrap();
    let (holder, _) = started(&mut run_on(
        &files(&dir),
        &["k"],
        &["sh", "-c", "echo; exec sleep 60"],
    ));
    let refused = |options: &[&str]| {
        let run = ended(&mut run_on(&files(&dir), options, &["true"]));
        (run.status.code(), stderr(&run))
    };
    let by_no_wait = refused(&["--no-wait", "k"]);
    assert_eq!(by_no_wait.0, Some(75), "{}", by_no_wait.1);
    for zero in ["0", "0s", "0ms"] {
        assert_eq!(refused(&["--wait", zero, "k"]), by_no_wait);
    }
    end(holder);
}

#[test]
fn several_names_exclude_all_others_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let program = format!("echo in >> {0}; sleep 0.05; echo out >> {0}", log.display());
    let runs = [
        &["a", "b"][..],
        &["b", "a"],
        &["b", "c", "b"],
        &["c", "b", "a"],
        &["b"],
    ];
    let mut runs: Vec<_> = runs
        .iter()
        .map(|names| {
            run_on(&files(&dir), names, &["sh", "-c", &program])
                .spawn()
                .unwrap()
        })
        .collect();
    assert!(runs.iter_mut().all(|run| run.wait().unwrap().success()));
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(log, "in\nout\n".repeat(5));
}

#[test]
fn refused_names_exit_with_75_and_keep_no_part() {
    let dir = tempfile::tempdir().unwrap();
    let (holder, _) = started(&mut run_on(&files(&dir), &["b"], &HOLD));
    for option in [&["--no-wait"][..], &["--wait", "0s"], &["--wait", "100ms"]] {
        let names = [option, &["c", "b", "a"]].concat();
        let refused = ended(&mut run_on(&files(&dir), &names, &["true"]));
        assert_eq!(refused.status.code(), Some(75), "{}", stderr(&refused));
        let text = stderr(&refused);
        assert!(
            text.contains("`c`, `b`, `a`") && text.lines().count() == 1,
            "{text}"
        );
        let next = ended(&mut run_on(&files(&dir), &["-n", "a", "c"], &["true"]));
        assert!(next.status.success(), "{}", stderr(&next));
    }
    end(holder);
    let next = ended(&mut run_on(&files(&dir), &["c", "b", "a"], &["true"]));
    assert!(next.status.success(), "{}", stderr(&next));
}

#[test]
fn waiter_for_several_names_keeps_only_smaller_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (holder, _) = started(&mut run_on(&files(&dir), &["b"], &HOLD));
    let mut waiter = run_on(&files(&dir), &["c", "b", "a"], &["true"])
        .spawn()
        .unwrap();
    let is_free = |name| {
        let run = ended(&mut run_on(&files(&dir), &["-n", name], &["true"]));
        run.status.success()
    };
    until("it keeps the smaller name", || !is_free("a"));
    until("it gives back the larger name", || is_free("c"));
    end(holder);
    assert!(waiter.wait().unwrap().success());
}

#[test]
fn environment_has_each_key_with_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let url = files(&dir);
    let program = "echo $LEASEHOLD_TOKEN_1 $LEASEHOLD_TOKEN_2; exec sleep 60";
    let names = ["b", "a"];
    let (run, tokens) = started(&mut run_on(&url, &names, &["sh", "-c", program]));
    for (name, token) in names.iter().zip(tokens.trim().split(' ')) {
        let holder = &status(&url, name)["holders"][0];
        assert_eq!(holder["token"].to_string(), token, "{name}: {tokens}");
    }
    end(run);
}

#[test]
fn environment_has_nothing_of_outer_locks() {
    let dir = tempfile::tempdir().unwrap();
    let shown = |names: &[&str], program: &str| {
        let run = ended(&mut run_on(&files(&dir), names, &["sh", "-c", program]));
        assert!(run.status.success(), "{}", stderr(&run));
        stdout(&run)
    };
    let show = "env | grep ^LEASEHOLD_ | sort | sed s/[0-9]*$/N/ | tr '\\n' ' '";
    let single = "LEASEHOLD_KEY=cN LEASEHOLD_KEYS=N LEASEHOLD_KEY_1=cN LEASEHOLD_TOKEN=N LEASEHOLD_TOKEN_1=N ";
    let two = "LEASEHOLD_KEYS=N LEASEHOLD_KEY_1=bN LEASEHOLD_KEY_2=aN LEASEHOLD_TOKEN_1=N LEASEHOLD_TOKEN_2=N ";
    assert_eq!(shown(&["c"], show), single);
    assert_eq!(shown(&["b", "a"], show), two);
    let inside = |names: &str| {
        let command = env!("CARGO_BIN_EXE_leasehold");
        format!(
            "{command} run --url {} {names} -- sh -c \"{show}\"",
            files(&dir)
        )
    };
    assert_eq!(shown(&["a", "b"], &inside("c")), single);
    assert_eq!(shown(&["c"], &inside("b a")), two);
}

#[test]
fn names_may_follow_a_double_dash() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = leasehold();
    run.args(["run", "--url", &files(&dir), "--", "-a", "b", "--"])
        .args(["sh", "-c", "echo $LEASEHOLD_KEY_1 $LEASEHOLD_KEY_2 $1"])
        .args(["sh", "--"]);
    let run = ended(&mut run);
    assert_eq!(stdout(&run), "-a b --\n", "{}", stderr(&run));
}

#[test]
fn too_many_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<_> = (0..65).map(|name| name.to_string()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let refused = ended(&mut run_on(&files(&dir), &names, &["true"]));
    assert_eq!(refused.status.code(), Some(64), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("1 to 64"), "{}", stderr(&refused));
    let run = ended(&mut run_on(&files(&dir), &names[1..], &["true"]));
    assert!(run.status.success(), "{}", stderr(&run));
}
