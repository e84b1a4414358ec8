//! Exit codes.

use std::process::Command;

use crate::{
    case::{Case, Flock, HOLD, different, same},
    processes::begun,
    support::ended,
};

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
