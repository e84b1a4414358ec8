//! Random trees of processes with random ends: no process of a holder runs under the next holder.
#![cfg(target_os = "linux")]

use std::{
    fmt::Write,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use fastrand::Rng;

use crate::support::{files, run_on, started_with_stderr};

mod support;

const ROUNDS: u32 = 12;

#[test]
fn no_work_outlives_its_lock_on_files() {
    let ends = [
        "",
        "",
        "TERM",
        "INT",
        "HUP",
        "USR1",
        "program TERM",
        "program KILL",
        "KILL",
    ];
    rounds(&|dir| files(dir), &ends);
}

/// KILL is not among the ends: processes that the program started then continue without the lock.
#[cfg(feature = "redis")]
#[test]
fn no_work_outlives_its_lock_on_redis() {
    let redis = support::Redis::start(&[]);
    let ends = [
        "",
        "TERM",
        "INT",
        "HUP",
        "USR1",
        "program TERM",
        "program KILL",
    ];
    rounds(&|_| redis.url.clone(), &ends);
}

fn rounds(url: &dyn Fn(&tempfile::TempDir) -> String, ends: &[&str]) {
    let seed = std::env::var("LEASEHOLD_TEST_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("LEASEHOLD_TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    for round in 0..ROUNDS {
        let dir = tempfile::tempdir().unwrap();
        let url = url(&dir);
        let mark = format!("LEASEHOLD_TEST_WORK={}", dir.path().display());
        let tree = Tree::write(&mut rng, dir.path());
        let end = *rng.choice(ends).unwrap();
        let wrapper: &[&str] = rng
            .choice([
                &[][..],
                &["timeout", "0.5"],
                &["timeout", "-s", "INT", "0.5"],
            ])
            .unwrap();

        let command = run_on(&url, &["k"], &["env", &mark, "sh", &tree]);
        let mut holder = wrapped(wrapper, command);
        let mut holder = holder
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut program = String::new();
        BufReader::with_capacity(1, holder.stdout.as_mut().unwrap())
            .read_line(&mut program)
            .unwrap();
        // The program prints nothing if `timeout` ends it first.
        let end = if program.is_empty() { "" } else { end };
        match end.split_once(' ') {
            Some((_, name)) => try_signal(program.trim(), name),
            None if end.is_empty() => {}
            None => try_signal(&holder.id().to_string(), end),
        }
        let mut next = run_on(&url, &["k"], &["sh", "-c", "echo granted; read -r line"]);
        let (next, _) = started_with_stderr(next.stdin(Stdio::piped()));
        let at_work = at_work(&mark);
        assert!(
            at_work.is_empty(),
            "round {round} after `{end}` in {wrapper:?}:\n{at_work}\n{}",
            scripts(dir.path())
        );
        drop(next.wait_with_output().unwrap());
        holder.wait().unwrap();
    }
}

/// A script for each process of a tree. The first prints its process id.
struct Tree<'a> {
    rng: &'a mut Rng,
    dir: &'a Path,
    count: u32,
}

impl<'a> Tree<'a> {
    fn write(rng: &'a mut Rng, dir: &'a Path) -> String {
        let mut tree = Self { rng, dir, count: 0 };
        let root = tree.node(3);
        format!("{}/{root}", dir.display())
    }

    /// Writes the script of one process that starts others, and returns its name.
    fn node(&mut self, depth: u32) -> String {
        let name = format!("{}.sh", self.count);
        self.count += 1;
        let mut script = String::new();
        if self.rng.u8(..4) == 0 {
            let signal = self.rng.choice(["TERM", "INT", "HUP"]).unwrap();
            let action = self.rng.choice(["", "exit 3", "wait"]).unwrap();
            writeln!(script, "trap '{action}' {signal}").unwrap();
        }
        if name == "0.sh" {
            // After the start of a child, so that there is a process to leave behind.
            self.start(&mut script, depth, "&");
            writeln!(script, "echo $$").unwrap();
        }
        for _ in 0..self.rng.u32(0..3) {
            let how = self.rng.choice(["&", "&", ""]).unwrap();
            self.start(&mut script, depth, how);
        }
        let end = [
            "wait",
            "exit 4",
            "kill -KILL $$",
            "exec sleep 0.2",
            "sleep 0.1",
        ];
        writeln!(script, "{}", self.rng.choice(end).unwrap()).unwrap();
        fs::write(self.dir.join(&name), script).unwrap();
        name
    }

    fn start(&mut self, script: &mut String, depth: u32, how: &str) {
        let command = match depth {
            0 => format!("sleep 0.{}", self.rng.u8(1..8)),
            _ => {
                let node = format!("{}/{}", self.dir.display(), self.node(depth - 1));
                // A child, an orphan, a job, a process group, and a daemon.
                let ways = [
                    "sh NODE",
                    "(sh NODE &)",
                    "bash -c 'set -m; . NODE'",
                    "timeout 5 sh NODE",
                    "setsid -f sh NODE",
                ];
                self.rng.choice(ways).unwrap().replace("NODE", &node)
            }
        };
        writeln!(script, "{command} {how}").unwrap();
    }
}

fn scripts(dir: &Path) -> String {
    let mut all = String::new();
    for number in 0.. {
        let Ok(script) = fs::read_to_string(dir.join(format!("{number}.sh"))) else {
            break;
        };
        write!(all, "--- {number}.sh\n{script}").unwrap();
    }
    all
}

/// Returns the command, started by `wrapper`.
fn wrapped(wrapper: &[&str], command: Command) -> Command {
    let Some((program, arguments)) = wrapper.split_first() else {
        return command;
    };
    let mut outer = Command::new(program);
    outer
        .args(arguments)
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    outer.env_remove("LEASEHOLD_URL");
    outer
}

/// Sends a signal to a process that may have ended.
fn try_signal(process: &str, name: &str) {
    Command::new("kill")
        .args(["-s", name, process])
        .stderr(Stdio::null())
        .status()
        .unwrap();
}

/// Returns the processes with the mark that have not ended and are not daemons.
fn at_work(mark: &str) -> String {
    let session = |process: &str| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        Some(stat.rsplit_once(") ")?.1.split(' ').nth(3)?.to_owned())
    };
    let (own, mut found) = (session("self"), String::new());
    for process in fs::read_dir("/proc").unwrap() {
        let process = process.unwrap().file_name().into_string().unwrap();
        // The environment of a process that has ended is empty.
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        if environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == mark.as_bytes())
            && session(&process) == own
        {
            let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            writeln!(
                found,
                "{process}: {}",
                String::from_utf8_lossy(&words).replace('\0', " ")
            )
            .unwrap();
        }
    }
    found
}
