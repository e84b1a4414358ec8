//! Work that outlives the program.

use crate::{
    case::{Case, Flock, Leasehold, different, same},
    processes::{begun, children_of, fields_of, is_stopped, kill},
    support::{ended, lives, signal, until},
};

#[test]
fn processes_left_behind_hold_the_lock() {
    let seen = |case: &Case| {
        let program = ["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!; exit 3"];
        let (mut run, left) = begun(&mut case.run(&program));
        let waits = if case.tool == Flock {
            run.wait().unwrap();
            false
        } else {
            until("the program has ended", || children_of(run.id()) == [left]);
            run.try_wait().unwrap().is_none()
        };
        let kept = !case.is_free();
        kill(left);
        case.becomes_free();
        (kept, waits, run.wait().unwrap().code())
    };
    different(seen, (true, false, Some(3)), (true, true, Some(3)));
}

#[test]
fn daemon_left_behind_does_not_hold_the_lock() {
    let seen = |case: &Case| {
        let script = "setsid sh -c 'echo $$; exec sleep 60 >/dev/null 2>&1' & \
                      until test -e go; do sleep 0.01; done; exit 3";
        let (mut run, daemon) = begun(&mut case.run(&["sh", "-c", script]));
        until("it is a daemon", || {
            fields_of(daemon)[5] == daemon.to_string()
        });
        std::fs::write(case.dir.path().join("go"), "").unwrap();
        let code = run.wait().unwrap().code();
        let seen = (code, lives(daemon), case.is_free());
        if case.tool == Leasehold {
            // The descriptor of the daemon is no lock on a new file of the same name either.
            for file in std::fs::read_dir(case.dir.path()).unwrap() {
                std::fs::remove_file(file.unwrap().path()).unwrap();
            }
            let mut next = case.command(case.words(&["--no-wait"]), &["true"]);
            assert_eq!(ended(&mut next).status.code(), Some(0));
        }
        kill(daemon);
        case.becomes_free();
        seen
    };
    different(seen, (Some(3), true, false), (Some(3), true, true));
}

#[test]
fn children_from_before_exec_are_not_waited_for() {
    let seen = |case: &Case| {
        let script = format!(
            "sleep 60 >/dev/null 2>&1 & echo $!; exec {} sh -c 'exit 3'",
            case.line()
        );
        let (mut run, earlier) =
            begun(&mut case.command(["sh", "-c"].map(String::from), &[&script]));
        let seen = (run.wait().unwrap().code(), lives(earlier), case.is_free());
        kill(earlier);
        seen
    };
    same(seen, (Some(3), true, true));
}

#[test]
fn program_that_stops_itself_holds_the_lock() {
    let seen = |case: &Case| {
        let (mut run, program) =
            begun(&mut case.run(&["sh", "-c", "echo $$; kill -STOP $$; exit 3"]));
        is_stopped(program);
        let kept = !case.is_free();
        signal(program, "CONT");
        (kept, run.wait().unwrap().code())
    };
    same(seen, (true, Some(3)));
}

#[test]
fn program_with_its_own_session_holds_the_lock() {
    let seen = |case: &Case| {
        let (mut run, work) = begun(&mut case.run(&[
            "setsid",
            "sh",
            "-c",
            "sh -c 'echo $$; exec sleep 60'; exit 3",
        ]));
        let kept = !case.is_free();
        kill(work);
        (kept, run.wait().unwrap().code(), case.is_free())
    };
    same(seen, (true, Some(3), true));
}
