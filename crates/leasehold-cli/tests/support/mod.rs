//! What the tests of the command share.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

#[cfg(target_os = "linux")]
pub mod terminal;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The command, with no environment of the tester's.
pub fn leasehold() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.env_remove("LEASEHOLD_URL").stdin(Stdio::null());
    command
}

/// `leasehold run` on this URL.
pub fn run_on(url: &str, options: &[&str], program: &[&str]) -> Command {
    let mut command = leasehold();
    command
        .args(["run", "--on", url])
        .args(options)
        .arg("--")
        .args(program);
    command
}

pub fn files(dir: &TempDir) -> String {
    format!("file:{}", dir.path().display())
}

pub fn ended(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    output
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `leasehold who --json` shows.
pub fn who(url: &str, name: &str) -> serde_json::Value {
    let seen = ended(leasehold().args(["who", "--json", "--on", url, name]));
    serde_json::from_slice(&seen.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", stderr(&seen)))
}

/// Started, and its program has said its first line, which is returned.
pub fn started(command: &mut Command) -> (Child, String) {
    said_first(command.stderr(Stdio::piped()))
}

/// As [`started`], with a standard error that was set before.
pub fn said_first(command: &mut Command) -> (Child, String) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    // One byte more than the line would be lost otherwise.
    BufReader::with_capacity(1, child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    if line.is_empty() {
        let output = child.wait_with_output().unwrap();
        panic!(
            "the program said nothing, and the command: {} ({})",
            stderr(&output),
            output.status
        );
    }
    (child, line.trim().to_owned())
}

pub fn signal(process: u32, signal: &str) {
    assert!(
        Command::new("kill")
            .args(["-s", signal, &process.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// Whether the process lives; a zombie does not.
pub fn lives(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    })
}

pub fn until(what: &str, done: impl FnMut() -> bool) {
    assert!(within_patience(done), "not in time: {what}");
}

/// Whether it comes to be so.
pub fn within_patience(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A Redis server of our own on a free port.
pub struct Redis {
    pub process: Child,
    pub url: String,
    _dir: TempDir,
}

impl Redis {
    pub fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = leasehold_testkit::free_port().unwrap();
        let process = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
            ])
            .arg(dir.path())
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is not installed; run integration/setup.sh");
        until("redis-server listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        // A server is stopped by some tests, and merely slow on a busy machine.
        let url = format!("redis://127.0.0.1:{port}/?timeout=2s&connect-timeout=20s");
        Self {
            process,
            url,
            _dir: dir,
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

pub fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}
