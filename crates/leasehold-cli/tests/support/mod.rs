//! Helpers of the tests of the command.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

#[cfg(target_os = "linux")]
pub mod terminal;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Longer than any step takes on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the command, without the `LEASEHOLD_URL` of the environment.
pub fn leasehold() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    command.env_remove("LEASEHOLD_URL").stdin(Stdio::null());
    command
}

/// Returns `leasehold run` with this URL.
pub fn run_on(url: &str, options: &[&str], program: &[&str]) -> Command {
    let mut command = leasehold();
    command
        .args(["run", "--url", url])
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

/// Returns the JSON of `leasehold status`.
pub fn status(url: &str, name: &str) -> serde_json::Value {
    let output = ended(leasehold().args(["status", "--json", "--url", url, name]));
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)))
}

/// Waits until one process waits for the lock.
pub fn until_one_waits(url: &str, name: &str) {
    until("one process waits", || {
        status(url, name)["waiters"].as_array().map(Vec::len) == Some(1)
    });
}

/// Returns the JSON of `leasehold leader`, and the exit code.
pub fn leader(url: &str, name: &str) -> (serde_json::Value, Option<i32>) {
    let output = ended(leasehold().args(["leader", "--json", "--url", url, name]));
    let json = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
    (json, output.status.code())
}

/// Starts the command, and returns the first line that its program prints.
pub fn started(command: &mut Command) -> (Child, String) {
    started_with_stderr(command.stderr(Stdio::piped()))
}

/// Starts the command as [`started`] does, with a standard error that was set before.
pub fn started_with_stderr(command: &mut Command) -> (Child, String) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    // A larger buffer would lose the bytes after the line.
    BufReader::with_capacity(1, child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    if line.is_empty() {
        let output = child.wait_with_output().unwrap();
        panic!(
            "the program printed nothing, and the command: {} ({})",
            stderr(&output),
            output.status
        );
    }
    (child, line.trim().to_owned())
}

/// Ends the command by a signal, and its program with it.
pub fn end(mut command: Child) {
    signal(command.id(), "TERM");
    command.wait().unwrap();
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

/// Returns whether the process is alive. A zombie is not.
pub fn lives(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    })
}

pub fn until(what: &str, done: impl FnMut() -> bool) {
    assert!(within_timeout(done), "not in time: {what}");
}

/// Waits until `done` returns true. Returns false after a time-out.
pub fn within_timeout(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + TIMEOUT;
    while !done() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A Redis server on a free port, for one test.
pub struct Redis {
    pub process: Child,
    pub url: String,
    port: u16,
    dir: TempDir,
}

impl Redis {
    pub fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = leasehold_testkit::free_port().unwrap();
        let process = serve(port, dir.path(), options);
        // Some tests stop the server; on a busy machine it may also be slow.
        let url = format!("redis://127.0.0.1:{port}/?timeout=2s&connect-timeout=20s");
        Self {
            process,
            url,
            port,
            dir,
        }
    }

    /// Kills the server. It has no data when it is started again.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts the killed server again.
    pub fn start_again(&mut self) {
        self.process = serve(self.port, self.dir.path(), &[]);
    }
}

/// Starts a Redis server, and waits until it answers.
fn serve(port: u16, dir: &Path, options: &[&str]) -> Child {
    let start = || {
        Command::new("redis-server")
            .args(["--port", &port.to_string()])
            .args(["--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(dir)
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is not installed; run integration/setup.sh")
    };
    let mut process = start();
    until("redis-server answers", || {
        // A program that another test starts at this moment inherits the socket by which the port
        // was found to be free, until it is executed. The port is in use until then.
        if process.try_wait().unwrap().is_some() {
            process = start();
        }
        answers(port).is_ok()
    });
    process
}

/// Waits for an answer of the server at this port, which may be a refusal.
fn answers(port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"PING\r\n")?;
    stream.read_exact(&mut [0])
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
