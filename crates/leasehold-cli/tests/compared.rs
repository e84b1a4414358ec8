//! The rows of `COMPARED.md`: `flock(1)` and `leasehold run` on the same lock file.
#![cfg(target_os = "linux")]
#![allow(
    clippy::needless_pass_by_value,
    reason = "expected values are written in place"
)]

use std::{
    collections::BTreeSet,
    fmt::Debug,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::support::{
    ended, files, lives, signal, started_with_stderr, stderr, stdout, terminal::Terminal, until,
};

mod support;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Flock,
    Leasehold,
}

use Tool::{Flock, Leasehold};

/// One of the programs, and the lock that both use.
struct Case {
    tool: Tool,
    dir: TempDir,
}

impl Case {
    fn new(tool: Tool) -> Self {
        Self {
            tool,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn lock_file(&self) -> String {
        self.dir.path().join("k.lock").display().to_string()
    }

    /// Returns the words before those of the program that runs under the lock.
    fn words(&self, options: &[&str]) -> Vec<String> {
        let (begin, end) = match self.tool {
            Flock => (vec![String::from("flock")], vec![self.lock_file()]),
            Leasehold => {
                let begin = [
                    env!("CARGO_BIN_EXE_leasehold"),
                    "run",
                    "--url",
                    &files(&self.dir),
                ]
                .map(String::from);
                (begin.to_vec(), ["k", "--"].map(String::from).to_vec())
            }
        };
        begin
            .into_iter()
            .chain(options.iter().map(ToString::to_string))
            .chain(end)
            .collect()
    }

    /// Returns those words for a shell.
    fn line(&self) -> String {
        self.words(&[]).join(" ")
    }

    /// Runs `words`, then the tool with this program.
    fn after(&self, words: &[&str], program: &[&str]) -> Command {
        self.command(
            words.iter().map(ToString::to_string).chain(self.words(&[])),
            program,
        )
    }

    /// Runs the tool with this program.
    fn run(&self, program: &[&str]) -> Command {
        self.after(&[], program)
    }

    fn command(&self, words: impl IntoIterator<Item = String>, program: &[&str]) -> Command {
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .args(program)
            .env_remove("LEASEHOLD_URL")
            .stdin(Stdio::null())
            .current_dir(self.dir.path());
        command
    }

    /// Runs a script of `sh` that calls the tool as `$TOOL`.
    fn script(&self, script: &str) -> Output {
        ended(
            self.command(["sh", "-c"].map(String::from), &[script])
                .env("TOOL", self.line()),
        )
    }

    fn is_free(&self) -> bool {
        Command::new("flock")
            .args(["-n", &self.lock_file(), "true"])
            .status()
            .unwrap()
            .success()
    }

    fn becomes_free(&self) {
        until("the lock is free", || self.is_free());
    }
}

/// Asserts that both programs behave like this.
fn same<T: Debug + PartialEq>(seen: impl Fn(&Case) -> T, expected: T) {
    for tool in [Flock, Leasehold] {
        assert_eq!(seen(&Case::new(tool)), expected, "{tool:?}");
    }
}

/// Asserts that each program behaves like this.
fn different<T: Debug + PartialEq>(seen: impl Fn(&Case) -> T, flock: T, leasehold: T) {
    assert_ne!(flock, leasehold);
    assert_eq!(seen(&Case::new(Flock)), flock, "flock");
    assert_eq!(seen(&Case::new(Leasehold)), leasehold, "leasehold");
}

/// A shell that waits for a program, which prints its process id.
const WORK: [&str; 3] = ["sh", "-c", "sh -c 'echo $$; exec sleep 60'; :"];

/// A program that prints its process id and runs until it is killed.
const HOLD: [&str; 3] = ["sh", "-c", "echo $$; exec sleep 60"];

/// [`WORK`] for the line of a shell.
const WORK_LINE: &str = "sh -c 'sh -c \"echo work=\\$\\$; exec sleep 60\"; :'";

/// Starts a shell on a terminal that runs [`WORK`] in the foreground.
fn work_on_terminal(case: &Case) -> Terminal {
    Terminal::shell(&format!("ulimit -c 0; {} {WORK_LINE}", case.line()))
}

/// Starts a command, and waits for the number that its program prints first.
fn begun(command: &mut Command) -> (Child, u32) {
    let (child, number) = started_with_stderr(command);
    (child, number.parse().unwrap())
}

fn is_gone(process: u32) {
    until("the work is over", || !lives(process));
}

fn is_stopped(process: u32) {
    until("it is stopped", || state(process) == Some('T'));
}

fn is_running(process: u32) {
    until("it runs", || matches!(state(process), Some('S' | 'R')));
}

fn state(process: u32) -> Option<char> {
    std::fs::read_to_string(format!("/proc/{process}/stat"))
        .ok()?
        .rsplit_once(") ")?
        .1
        .chars()
        .next()
}

fn children_of(process: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"))
        .unwrap_or_default();
    children
        .split_whitespace()
        .map(|child| child.parse().unwrap())
        .collect()
}

fn kill(process: u32) {
    signal(process, "KILL");
    is_gone(process);
}

/// Sleeps longer than the TTL of the locks in the tests of stops.
fn longer_than_the_ttl() {
    std::thread::sleep(Duration::from_millis(1200));
}

/// Returns the code as a shell reports it: the exit code, or 128 and the signal.
fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap()
}

// Signals to the command alone.

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

// Signals to the group.

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

fn group_of(process: u32) -> u32 {
    fields_of(process)[4].parse().unwrap()
}

fn parent_of(process: u32) -> u32 {
    fields_of(process)[3].parse().unwrap()
}

/// Returns the fields of `/proc/PID/stat`, with the name as one field.
fn fields_of(process: u32) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (begin, rest) = stat.rsplit_once(") ").unwrap();
    let (id, name) = begin.split_once(" (").unwrap();
    [id, name]
        .into_iter()
        .chain(rest.split(' '))
        .map(String::from)
        .collect()
}

fn signal_group(group: u32, name: &str) {
    assert!(
        Command::new("kill")
            .args(["-s", name, "--", &format!("-{group}")])
            .status()
            .unwrap()
            .success()
    );
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

// Ignored and blocked signals.

#[test]
fn ignored_signals_stay_ignored_in_the_program() {
    for name in [
        "INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "TSTP", "TTIN", "TTOU",
    ] {
        let number = stdout(&ended(
            Command::new("bash").args(["-c", &format!("kill -l {name}")]),
        ));
        let bit = 1 << (number.trim().parse::<u32>().unwrap() - 1);
        let seen = |case: &Case| {
            let said = case.script(&format!(
                "trap '' {name}; $TOOL grep SigIgn /proc/self/status"
            ));
            mask_of(&stdout(&said)) & bit != 0
        };
        same(seen, true);
    }
}

const PIPE: u64 = 1 << 12;

fn mask_of(line: &str) -> u64 {
    u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
}

#[test]
fn ignored_signal_does_not_end_the_command() {
    let seen = |case: &Case| {
        let script = format!(
            "trap '' TERM; exec {} sh -c 'echo $$; read -r line; exit 3'",
            case.line()
        );
        let (mut run, program) = begun(
            case.command(["sh", "-c"].map(String::from), &[&script])
                .stdin(Stdio::piped()),
        );
        signal(run.id(), "TERM");
        signal(program, "TERM");
        drop(run.stdin.take());
        run.wait().unwrap().code()
    };
    same(seen, Some(3));
}

#[test]
fn ignored_pipe_is_not_ignored_in_the_program() {
    let seen = |case: &Case| {
        let said = case.script("trap '' PIPE; $TOOL grep SigIgn /proc/self/status");
        mask_of(&stdout(&said)) & PIPE != 0
    };
    different(seen, true, false);
}

#[test]
fn ignored_chld_does_not_hide_the_exit_code() {
    let seen = |case: &Case| {
        let python = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); \
                      os.execvp(sys.argv[1], sys.argv[1:])";
        let said = ended(&mut case.after(
            &["python3", "-c", python],
            &["sh", "-c", "grep SigIgn /proc/self/status; exit 37"],
        ));
        (said.status.code(), mask_of(&stdout(&said)) & (1 << 16))
    };
    same(seen, (Some(37), 0));
}

#[test]
fn blocked_signal_stays_blocked_in_the_program() {
    let seen = |case: &Case| {
        let python = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); \
                      os.execvp(sys.argv[1], sys.argv[1:])";
        let said = ended(&mut case.after(
            &["python3", "-c", python],
            &["grep", "SigBlk", "/proc/self/status"],
        ));
        mask_of(&stdout(&said))
    };
    same(seen, 1 << 9);
}

// Terminals and job control.

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

// Work that outlives the program.

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

// As process 1 of a container.

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

// Descriptors and environment.

#[test]
fn program_inherits_the_lock_descriptor() {
    let seen = |case: &Case| {
        let said = ended(&mut case.run(&["sh", "-c", "readlink /proc/$$/fd/*"]));
        stdout(&said)
            .lines()
            .filter(|line| line.ends_with("/k.lock"))
            .count()
    };
    same(seen, 1);
}

#[test]
fn other_descriptors_pass_through() {
    let seen = |case: &Case| {
        let said = case.script("exec 9>nine; $TOOL sh -c 'echo nine >&9'; cat nine");
        stdout(&said)
    };
    same(seen, String::from("nine\n"));
}

#[test]
fn closed_standard_input_becomes_dev_null() {
    let seen = |case: &Case| {
        let said = case.script("$TOOL sh -c 'readlink /proc/$$/fd/0' <&-");
        Path::new(stdout(&said).trim())
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    different(seen, String::from("k.lock"), String::from("null"));
}

#[test]
fn standard_streams_pass_through() {
    let seen = |case: &Case| {
        let said = case.script("echo in | $TOOL sh -c 'cat; echo err >&2'");
        (stdout(&said), stderr(&said))
    };
    same(seen, (String::from("in\n"), String::from("err\n")));
}

#[test]
fn broken_pipe_ends_the_program() {
    let seen = |case: &Case| {
        let said = case.script("{ $TOOL yes; echo $? >&2; } | head -n 1");
        (stdout(&said), stderr(&said))
    };
    same(seen, (String::from("y\n"), String::from("141\n")));
}

#[test]
fn limits_directory_and_environment_pass_through() {
    let seen = |case: &Case| {
        let show = "sh -c 'umask; nice; ulimit -n; pwd; echo $A'";
        let said = case.script(&format!(
            "umask 027; ulimit -n 99; export A=b; {show} >bare; nice -n 3 $TOOL {show} >under; nice -n 3 {show} | \
             diff - under"
        ));
        (said.status.code(), stdout(&said))
    };
    same(seen, (Some(0), String::new()));
}

// Exit codes.

#[test]
fn exit_code_of_the_command_is_the_program_s() {
    for (program, code) in [
        ("exit 37", 37),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
    ] {
        same(
            |case| ended(&mut case.run(&["sh", "-c", program])).status.code(),
            Some(code),
        );
    }
}

#[test]
fn missing_program_exits_with_127() {
    different(
        |case| ended(&mut case.run(&["/not/there"])).status.code(),
        Some(69),
        Some(127),
    );
}

#[test]
fn unexecutable_program_exits_with_126() {
    different(
        |case| ended(&mut case.run(&["/dev/null"])).status.code(),
        Some(69),
        Some(126),
    );
}

#[test]
fn lock_held_by_another_exits_with_75() {
    for options in [
        [["-n", ""], ["--no-wait", ""]],
        [["-w", "0.1"], ["--wait", "100ms"]],
    ] {
        let seen = |case: &Case| {
            let (mut holder, _) = begun(
                Command::new("flock")
                    .arg("-F")
                    .arg(case.lock_file())
                    .args(HOLD),
            );
            let options = if case.tool == Flock {
                options[0]
            } else {
                options[1]
            };
            let options: Vec<_> = options
                .into_iter()
                .filter(|option| !option.is_empty())
                .collect();
            let code = ended(&mut case.command(case.words(&options), &["true"]))
                .status
                .code();
            holder.kill().unwrap();
            holder.wait().unwrap();
            code
        };
        different(seen, Some(1), Some(75));
    }
}

// The table.

#[test]
fn comparison_table_names_each_test_once() {
    let read = |name: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
    };
    let (table, tests) = (read("COMPARED.md"), read("tests/compared.rs"));
    let rows: Vec<_> = table
        .lines()
        .filter_map(|line| line.strip_suffix("` |")?.rsplit_once('`'))
        .collect();
    let named: BTreeSet<_> = rows.iter().map(|(_, name)| *name).collect();
    assert_eq!(named.len(), rows.len(), "two rows name the same test");
    let mut lines = tests.lines();
    let mut present = BTreeSet::new();
    while lines.any(|line| line == "#[test]") {
        present.extend(
            lines
                .next()
                .and_then(|line| line.strip_prefix("fn ")?.split('(').next()),
        );
    }
    present.remove("comparison_table_names_each_test_once");
    assert_eq!(named, present);
    assert!(rows.len() >= 30, "{}", rows.len());
    for (row, name) in rows {
        // A row agrees with its test about same or different.
        let body = tests
            .split_once(&format!("fn {name}("))
            .unwrap()
            .1
            .split("\n#[test]")
            .next()
            .unwrap();
        let tested = if body.contains("    same(") {
            "same"
        } else {
            "different"
        };
        assert!(
            row.contains(&format!("| {tested}")),
            "{name} is {tested}: {row}"
        );
    }
}
