//! Ignored and blocked signals.

use std::process::{Command, Stdio};

use crate::{
    case::{Case, different, same},
    processes::begun,
    support::{ended, signal, stdout},
};

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
