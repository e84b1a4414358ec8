//! Processes: their start, their state, and signals to them.

use std::{
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use crate::support::{lives, signal, started_with_stderr, until};

/// Starts a command, and waits for the number that its program prints first.
pub fn begun(command: &mut Command) -> (Child, u32) {
    let (child, number) = started_with_stderr(command);
    (child, number.parse().unwrap())
}

pub fn is_gone(process: u32) {
    until("the work is over", || !lives(process));
}

pub fn is_stopped(process: u32) {
    until("it is stopped", || state(process) == Some('T'));
}

pub fn is_running(process: u32) {
    until("it runs", || matches!(state(process), Some('S' | 'R')));
}

pub fn state(process: u32) -> Option<char> {
    std::fs::read_to_string(format!("/proc/{process}/stat"))
        .ok()?
        .rsplit_once(") ")?
        .1
        .chars()
        .next()
}

pub fn children_of(process: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"))
        .unwrap_or_default();
    children
        .split_whitespace()
        .map(|child| child.parse().unwrap())
        .collect()
}

pub fn kill(process: u32) {
    signal(process, "KILL");
    is_gone(process);
}

/// Sleeps longer than the TTL of the locks in the tests of stops.
pub fn longer_than_the_ttl() {
    std::thread::sleep(Duration::from_millis(1200));
}

/// Returns the code as a shell reports it: the exit code, or 128 and the signal.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap()
}

pub fn group_of(process: u32) -> u32 {
    fields_of(process)[4].parse().unwrap()
}

pub fn parent_of(process: u32) -> u32 {
    fields_of(process)[3].parse().unwrap()
}

/// Returns the fields of `/proc/PID/stat`, with the name as one field.
pub fn fields_of(process: u32) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (begin, rest) = stat.rsplit_once(") ").unwrap();
    let (id, name) = begin.split_once(" (").unwrap();
    [id, name]
        .into_iter()
        .chain(rest.split(' '))
        .map(String::from)
        .collect()
}

pub fn signal_group(group: u32, name: &str) {
    assert!(
        Command::new("kill")
            .args(["-s", name, "--", &format!("-{group}")])
            .status()
            .unwrap()
            .success()
    );
}
