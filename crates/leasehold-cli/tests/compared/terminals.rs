//! Terminals and job control.

use crate::{
    case::{Case, Flock, Leasehold, WORK_LINE, different, same},
    processes::{code, is_gone, is_running, is_stopped, longer_than_the_ttl, parent_of, state},
    support::{lives, signal, terminal::Terminal, until},
};

/// Starts a shell on a terminal that runs [`WORK`] in the foreground.
fn work_on_terminal(case: &Case) -> Terminal {
    Terminal::shell(&format!("ulimit -c 0; {} {WORK_LINE}", case.line()))
}

#[test]
fn ctrl_c_ends_all_work() {
    let seen = |case: &Case| {
        let terminal = work_on_terminal(case);
        let work = terminal.number("work");
        terminal.press("\x03");
        is_gone(work);
        case.becomes_free();
        terminal.code()
    };
    same(seen, 130);
}

#[test]
fn ctrl_backslash_ends_all_work() {
    let seen = |case: &Case| {
        let terminal = work_on_terminal(case);
        let work = terminal.number("work");
        terminal.press("\x1c");
        is_gone(work);
        case.becomes_free();
        terminal.code()
    };
    same(seen, 131);
}

#[test]
fn program_that_catches_ctrl_c_gets_it_once() {
    let program = "n=0; trap 'n=$((n+1)); echo int=$n' INT; trap 'echo total=$n; exit 5' USR1; echo work=$$; \
                   while :; do sleep 0.01; done";
    let seen = |case: &Case| {
        std::fs::write(case.dir.path().join("program"), program).unwrap();
        let terminal = Terminal::shell(&format!(
            "{} bash {}/program",
            case.line(),
            case.dir.path().display()
        ));
        let work = terminal.number("work");
        terminal.press("\x03");
        terminal.shows("int=1");
        // The shell notices the end of flock.
        let early = (case.tool == Flock).then(|| terminal.code());
        let kept = !case.is_free();
        signal(work, "USR1");
        let total = terminal.number("total");
        is_gone(work);
        case.becomes_free();
        (kept, total, early.unwrap_or_else(|| terminal.code()))
    };
    different(seen, (true, 1, 130), (true, 1, 5));
}

#[test]
fn int_to_a_foreground_command_is_not_passed_on() {
    let seen = |case: &Case| {
        let program =
            "trap 'exit 7' INT; trap 'exit 5' USR1; echo work=$$; while :; do sleep 0.01; done";
        let terminal = Terminal::shell(&format!(
            "{} bash -c \"{}\"",
            case.line(),
            program.replace('$', "\\$")
        ));
        let work = terminal.number("work");
        signal(parent_of(work), "INT");
        let early = (case.tool == Flock).then(|| terminal.code());
        let kept = !case.is_free();
        signal(work, "USR1");
        is_gone(work);
        case.becomes_free();
        (kept, early.unwrap_or_else(|| terminal.code()))
    };
    different(seen, (true, 130), (true, 5));
}

#[test]
fn job_stopped_beyond_the_ttl_continues_with_its_lock() {
    let seen = |case: &Case| {
        let options: &[&str] = if case.tool == Leasehold {
            &["--ttl", "1s"]
        } else {
            &[]
        };
        let mut terminal = Terminal::run(&format!(
            "set -m; {} sh -c 'echo work=$$; read -r line; echo read=7; exit 3'; echo stopped=$?; read -r line; fg",
            case.words(options).join(" ")
        ));
        let work = terminal.number("work");
        terminal.press("\x1a");
        let stopped = terminal.number("stopped");
        is_stopped(work);
        longer_than_the_ttl();
        let kept = !case.is_free();
        terminal.press("\r");
        is_running(work);
        // Time to notice a deadline that has passed.
        longer_than_the_ttl();
        terminal.press("\r");
        (
            kept,
            stopped,
            terminal.number("read"),
            code(terminal.ended()),
        )
    };
    same(seen, (true, 148, 7, 3));
}

#[test]
fn stopped_job_continues_in_the_background() {
    let seen = |case: &Case| {
        let mut terminal = Terminal::run(&format!(
            "set -m; {} sh -c 'echo work=$$; until test -e go; do sleep 0.01; done; exit 3'; bg; wait %1",
            case.line()
        ));
        let work = terminal.number("work");
        terminal.press("\x1a");
        terminal.shows("&");
        is_running(work);
        let go = std::fs::read_link(format!("/proc/{work}/cwd"))
            .unwrap()
            .join("go");
        std::fs::write(&go, "").unwrap();
        let code = code(terminal.ended());
        std::fs::remove_file(go).unwrap();
        code
    };
    same(seen, 3);
}

#[test]
fn background_read_stops_the_job_until_fg() {
    let seen = |case: &Case| {
        let mut terminal = Terminal::run(&format!(
            "set -m; {} sh -c 'echo work=$$; read -r line; exit 3' & read -r line; fg",
            case.line()
        ));
        let work = terminal.number("work");
        is_stopped(work);
        let kept = !case.is_free();
        terminal.press("\r");
        is_running(work);
        terminal.press("\r");
        (kept, code(terminal.ended()))
    };
    same(seen, (true, 3));
}

#[test]
fn hang_up_of_a_shell_ends_all_work() {
    let seen = |case: &Case| {
        let terminal = work_on_terminal(case);
        let work = terminal.number("work");
        terminal.hang_up().wait().unwrap();
        is_gone(work);
        case.becomes_free();
    };
    same(seen, ());
}

#[test]
fn hang_up_of_the_command_ends_all_work() {
    // As with `ssh -t HOST COMMAND`.
    let seen = |case: &Case| {
        let terminal = Terminal::run(&format!("exec {} {WORK_LINE}", case.line()));
        let work = terminal.number("work");
        let code = code(terminal.hang_up().wait().unwrap());
        is_gone(work);
        case.becomes_free();
        code
    };
    same(seen, 129);
}

#[test]
fn job_under_nohup_outlives_its_terminal() {
    let seen = |case: &Case| {
        let terminal = Terminal::run(&format!(
            "cd {0}; nohup {1} sh -c 'echo $$ >pid; until test -e go; do sleep 0.01; done; echo $$ >done' >out & \
             until test -s pid; do sleep 0.01; done; echo work=$(cat pid); read -r line",
            case.dir.path().display(),
            case.line()
        ));
        let work = terminal.number("work");
        let path = |name: &str| case.dir.path().join(name);
        let command = parent_of(work);
        terminal.hang_up().wait().unwrap();
        let kept = lives(command) && lives(work) && !case.is_free();
        std::fs::write(path("go"), "").unwrap();
        is_gone(command);
        (kept, path("done").exists(), case.is_free())
    };
    same(seen, (true, true, true));
}

#[test]
fn ctrl_c_spares_background_jobs_of_a_script() {
    let seen = |case: &Case| {
        let terminal = Terminal::shell(&format!(
            "sh -c '{} sh -c \"echo work=\\$\\$; exec sleep 60\" & wait'",
            case.line()
        ));
        let work = terminal.number("work");
        let command = parent_of(work);
        // The script itself runs in the foreground.
        until("the script waits", || {
            state(parent_of(command)) == Some('S')
        });
        terminal.press("\x03");
        assert_eq!(terminal.code(), 130);
        let kept = lives(command) && lives(work) && !case.is_free();
        signal(work, "KILL");
        is_gone(command);
        case.becomes_free();
        kept
    };
    same(seen, true);
}
