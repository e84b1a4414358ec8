//! Signals to the command alone.

use std::process::{Child, Command, Stdio};

use crate::{
    case::{Case, Flock, HOLD, Leasehold, WORK, different, same},
    processes::{
        begun, children_of, code, is_running, is_stopped, kill, longer_than_the_ttl, state,
    },
    support::{lives, signal, until},
};

#[test]
fn term_ends_the_work_and_frees_the_lock() {
    let seen = |case: &Case| {
        let (mut run, work) = begun(&mut case.run(&WORK));
        signal(run.id(), "TERM");
        let code = code(run.wait().unwrap());
        let seen = (code, lives(work), case.is_free());
        if lives(work) {
            kill(work);
        }
        case.becomes_free();
        seen
    };
    different(seen, (143, true, false), (143, false, true));
}

#[test]
fn other_signals_are_left_to_the_program() {
    for name in ["INT", "HUP", "QUIT", "USR1", "USR2"] {
        let script = format!("trap 'exit 7' {name}; echo $$; while :; do sleep 0.01; done");
        let seen = |case: &Case| {
            let (mut run, program) = begun(&mut case.run(&["bash", "-c", &script]));
            signal(run.id(), name);
            let ended_with_7 = run.wait().unwrap().code() == Some(7);
            let seen = (ended_with_7, lives(program));
            if seen.1 {
                kill(program);
            }
            seen
        };
        different(seen, (false, true), (true, false));
    }
}

#[test]
fn work_of_a_killed_command_holds_the_lock() {
    let seen = |case: &Case| {
        let (mut run, work) = begun(&mut case.run(&WORK));
        kill(run.id());
        let code = code(run.wait().unwrap());
        let seen = (code, lives(work), case.is_free());
        kill(work);
        case.becomes_free();
        seen
    };
    same(seen, (137, true, false));
}

#[test]
fn command_stopped_beyond_the_ttl_holds_the_lock() {
    let seen = |case: &Case| {
        let options: &[&str] = if case.tool == Leasehold {
            &["--ttl", "1s"]
        } else {
            &[]
        };
        let program = ["sh", "-c", "echo $$; read -r line; exit 3"];
        let mut command = case.command(case.words(options), &program);
        let (mut run, _) = begun(command.stdin(Stdio::piped()));
        signal(run.id(), "STOP");
        is_stopped(run.id());
        longer_than_the_ttl();
        let kept = !case.is_free();
        signal(run.id(), "CONT");
        is_running(run.id());
        // Time to notice a deadline that has passed.
        longer_than_the_ttl();
        drop(run.stdin.take());
        (kept, run.wait().unwrap().code())
    };
    same(seen, (true, Some(3)));
}

#[test]
fn term_ends_the_wait_with_143() {
    let seen = |case: &Case| {
        let (mut holder, _) = begun(
            Command::new("flock")
                .arg("-F")
                .arg(case.lock_file())
                .args(HOLD),
        );
        let mut waiter = case.run(&["true"]).spawn().unwrap();
        until("it waits", || {
            std::fs::read_to_string("/proc/locks")
                .unwrap()
                .contains("->")
                || waits(&waiter)
        });
        signal(waiter.id(), "TERM");
        let code = code(waiter.wait().unwrap());
        holder.kill().unwrap();
        holder.wait().unwrap();
        code
    };
    same(seen, 143);
}

/// Returns whether the process has opened the lock file and sleeps.
fn waits(waiter: &Child) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", waiter.id()));
    let opened = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| {
            std::fs::read_link(entry.path()).is_ok_and(|path| path.ends_with("k.lock"))
        })
    };
    state(waiter.id()) == Some('S')
        && descriptors.is_ok_and(|mut descriptors| descriptors.any(opened))
}

#[test]
fn second_term_reaches_processes_left_behind() {
    let program = "trap 'exit 3' TERM; sh -c 'trap \"\" TERM; echo $$; exec sleep 60' & wait";
    let seen = |case: &Case| {
        let (mut run, work) = begun(&mut case.run(&["bash", "-c", program]));
        signal(run.id(), "TERM");
        if case.tool == Flock {
            run.wait().unwrap();
        } else {
            until("the program has ended", || children_of(run.id()) == [work]);
        }
        let kept = !case.is_free();
        kill(work);
        case.becomes_free();
        (kept, code(run.wait().unwrap()))
    };
    different(seen, (true, 143), (true, 3));
}
