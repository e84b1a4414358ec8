//! The command as process 1 of a container.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use crate::{
    case::{Case, Flock, Leasehold, different, same},
    processes::{children_of, state},
    support::{ended, signal, started_with_stderr, until},
};

/// Runs the tool as process 1 of a process namespace with its own `/proc`, as in a container.
fn as_process_1(case: &Case, program: &[&str]) -> Command {
    unshared(case, &["--mount-proc"], program)
}

/// Runs the tool under `unshare`, as root or else as root of a user namespace.
fn unshared(case: &Case, options: &[&str], program: &[&str]) -> Command {
    let words = ["unshare", "--pid", "--fork"]
        .iter()
        .chain(options)
        .copied();
    let as_user = words.clone().chain(["--user", "--map-root-user"]);
    let allowed = [words.collect::<Vec<_>>(), as_user.collect()]
        .into_iter()
        .find(|words| {
            Command::new(words[0])
                .args(&words[1..])
                .arg("true")
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        });
    let allowed = allowed.expect(
        "this test needs a process namespace: run it as root, in a container with CAP_SYS_ADMIN, or allow user \
         namespaces (sysctl kernel.unprivileged_userns_clone=1)",
    );
    case.after(&allowed, program)
}

#[test]
fn process_1_ends_with_the_code_of_the_program() {
    same(
        |case| {
            ended(&mut as_process_1(case, &["sh", "-c", "exit 37"]))
                .status
                .code()
        },
        Some(37),
    );
}

#[test]
fn term_to_process_1_reaches_the_program() {
    let seen = |case: &Case| {
        let program = [
            "bash",
            "-c",
            "trap 'echo term; exit 5' TERM; echo; read -r line; echo line; exit 3",
        ];
        let (mut run, _) = started_with_stderr(as_process_1(case, &program).stdin(Stdio::piped()));
        let command = children_of(run.id())[0];
        signal(command, "TERM");
        if case.tool == Flock {
            // The kernel drops a signal that process 1 does not handle.
            run.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        }
        let mut line = String::new();
        BufReader::new(run.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        (line, run.wait().unwrap().code())
    };
    different(
        seen,
        (String::from("line\n"), Some(3)),
        (String::from("term\n"), Some(5)),
    );
}

#[test]
fn orphans_of_process_1_are_reaped() {
    let seen = |case: &Case| {
        // The shell in between ends at once.
        let program = [
            "sh",
            "-c",
            "sh -c '(until test -e go; do sleep 0.01; done) &'; echo; read -r line",
        ];
        let (run, _) = started_with_stderr(as_process_1(case, &program).stdin(Stdio::piped()));
        let command = children_of(run.id())[0];
        until("there is an orphan", || children_of(command).len() == 2);
        std::fs::write(case.dir.path().join("go"), "").unwrap();
        let zombies = || {
            children_of(command)
                .into_iter()
                .filter(|child| state(*child) == Some('Z'))
                .count()
        };
        match case.tool {
            Flock => until("there is a zombie", || zombies() == 1),
            Leasehold => until("there is none", || children_of(command).len() == 1),
        }
        let left = zombies();
        drop(run.wait_with_output().unwrap());
        left
    };
    different(seen, 1, 0);
}

#[test]
fn process_1_waits_for_processes_left_behind() {
    // Also with a `/proc` that shows other processes.
    for options in [&["--mount-proc"][..], &[]] {
        let seen = |case: &Case| {
            let program = [
                "sh",
                "-c",
                "until test -e go; do sleep 0.01; done & echo; exit 3",
            ];
            let (mut run, _) = started_with_stderr(&mut unshared(case, options, &program));
            let waits = case.tool == Leasehold;
            if waits {
                let command = children_of(run.id())[0];
                until("the program has ended", || children_of(command).len() == 1);
                assert!(!case.is_free());
                std::fs::write(case.dir.path().join("go"), "").unwrap();
            }
            let code = run.wait().unwrap().code();
            case.becomes_free();
            (waits, code)
        };
        different(seen, (false, Some(3)), (true, Some(3)));
    }
}
