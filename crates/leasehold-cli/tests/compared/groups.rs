//! Signals to the process group.

use std::process::Stdio;

use crate::{
    case::{Case, WORK, same},
    processes::{begun, code, fields_of, group_of, is_gone, is_running, is_stopped, signal_group},
};

#[test]
fn timeout_ends_all_work() {
    let seen = |case: &Case| {
        let (mut run, work) = begun(&mut case.after(&["timeout", "1"], &WORK));
        let code = code(run.wait().unwrap());
        is_gone(work);
        case.becomes_free();
        code
    };
    same(seen, 124);
}

#[test]
fn timeout_with_kill_ends_all_work() {
    let seen = |case: &Case| {
        let (mut run, work) = begun(&mut case.after(&["timeout", "-s", "KILL", "1"], &WORK));
        let code = code(run.wait().unwrap());
        is_gone(work);
        case.becomes_free();
        code
    };
    same(seen, 137);
}

#[test]
fn term_to_the_group_ends_all_work() {
    let seen = |case: &Case| {
        // A new session has a new process group.
        let (mut run, work) = begun(&mut case.after(
            &["setsid", "--wait", "sh", "-c", "\"$@\"; exit 9", "-"],
            &WORK,
        ));
        signal_group(group_of(work), "TERM");
        is_gone(work);
        case.becomes_free();
        run.wait().unwrap();
    };
    same(seen, ());
}

#[test]
fn stop_of_the_group_stops_all_work() {
    let seen = |case: &Case| {
        let (mut run, work) = begun(&mut case.after(
            &["setsid", "--wait", "sh", "-c", "\"$@\"; exit 9", "-"],
            &WORK,
        ));
        let group = group_of(work);
        signal_group(group, "STOP");
        is_stopped(work);
        let kept = !case.is_free();
        signal_group(group, "CONT");
        is_running(work);
        signal_group(group, "TERM");
        is_gone(work);
        run.wait().unwrap();
        kept
    };
    same(seen, true);
}

#[test]
fn program_can_end_its_process_group() {
    let seen = |case: &Case| {
        let program = ["sh", "-c", "sleep 60 & echo $!; kill -TERM 0; wait"];
        let (mut run, work) = begun(&mut case.after(&["setsid", "--wait"], &program));
        let code = code(run.wait().unwrap());
        is_gone(work);
        case.becomes_free();
        code
    };
    same(seen, 143);
}

#[test]
fn program_shares_group_and_session_with_the_command() {
    let seen = |case: &Case| {
        let (run, program) = begun(
            case.run(&["sh", "-c", "echo $$; read -r line"])
                .stdin(Stdio::piped()),
        );
        let (command, program) = (fields_of(run.id()), fields_of(program));
        drop(run.wait_with_output().unwrap());
        command[4..=5] == program[4..=5]
    };
    same(seen, true);
}
