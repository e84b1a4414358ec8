//! The child process of each test, and the assertions about it.

use std::{fs, net::SocketAddr, process::ExitStatus, time::Duration};

use leasehold_integration::child::OwnedChild;

use crate::{
    known::{self, Allowed},
    server::{Conduct, Fault, Hostile},
};

/// The memory limit of all conversations of one child, in KiB.
pub(crate) const LIMIT: u64 = 64 * 1024;
/// A child that runs longer than this is considered hung.
const HANG: Duration = Duration::from_secs(60);
/// The same limit for scenarios that are known to hang.
const KNOWN_HANG: Duration = Duration::from_secs(15);
/// The number of concurrent conversations of one child.
const AT_ONCE: usize = 24;
/// The number of tested offsets of a conversation in each direction.
const PLACES: u64 = 168;

/// Parts of a panic message from this workspace, or of a panic that reached the caller.
const OURS: [&str; 3] = ["crates/leasehold", "integration/", "reached the caller"];

/// The output of a child.
struct Told {
    all: String,
    /// The exit status; `None` if the child hung.
    exit: Option<ExitStatus>,
}

fn child(arguments: &[&str], allowed: &[Allowed]) -> Told {
    let folder = tempfile::tempdir().unwrap();
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let mut child = OwnedChild::spawn(env!("CARGO_BIN_EXE_converse"), |command| {
        command.args(arguments);
        // A backtrace of a driver's panic takes more memory than the limit.
        command.env("RUST_BACKTRACE", "0");
        command.stdout(fs::File::create(&out).unwrap());
        command.stderr(fs::File::create(&err).unwrap());
    })
    .unwrap();
    let exit = child
        .wait(if allowed.contains(&Allowed::Hang) {
            KNOWN_HANG
        } else {
            HANG
        })
        .ok();
    child.kill();
    let err = fs::read_to_string(err).unwrap_or_default();
    let all = format!(
        "{}{}\n{exit:?}",
        fs::read_to_string(out).unwrap(),
        err.chars().take(2000).collect::<String>()
    );
    Told { all, exit }
}

impl Told {
    fn memory(&self) -> Option<u64> {
        let line = self
            .all
            .lines()
            .find_map(|line| line.strip_prefix("memory: "))?;
        line.trim_end_matches(" KiB").parse().ok()
    }

    /// Returns the observed faults that are not allowed.
    fn faults(&self, allowed: &[Allowed]) -> Vec<String> {
        let mut faults = Vec::new();
        let allows = |what| allowed.contains(&what);
        match self.exit {
            None if !allows(Allowed::Hang) => faults.push("the child hangs".to_owned()),
            Some(exit) if !exit.success() && !allows(Allowed::Abort) => {
                faults.push(format!("it died: {exit}"));
            }
            _ => {}
        }
        if self.all.lines().any(|line| line.ends_with(": did not end")) {
            faults.push("a call did not end".to_owned());
        }
        // A driver's panic is an error of the call.
        let panicked =
            |line: &str| line.starts_with("panic: ") && OURS.iter().any(|ours| line.contains(ours));
        if self.all.lines().any(panicked) {
            faults.push("it panicked".to_owned());
        }
        if self.memory().is_some_and(|memory| memory > LIMIT) && !allows(Allowed::Memory) {
            faults.push(format!("it took {:?} KiB", self.memory()));
        }
        faults
    }
}

/// Makes every call to a server with this conduct, and also connects with a shorter timeout than
/// the library's. Returns the results of the calls.
pub(crate) fn survives(
    protocol: &str,
    name: &str,
    url: impl Fn(SocketAddr) -> String,
    conduct: Conduct,
) -> String {
    let relays = matches!(conduct, Conduct::Relay(..));
    let hostile = Hostile::start(conduct);
    let url = url(hostile.addr());
    let allowed = known::allowed(protocol, name);
    let told = child(&[&url], allowed);
    note(protocol, name, &told, allowed);
    // Only for servers that are hostile from the start.
    if !relays {
        note(
            protocol,
            name,
            &child(&["--impatient", &url], allowed),
            allowed,
        );
    }
    told.all
}

fn note(protocol: &str, name: &str, told: &Told, allowed: &[Allowed]) {
    eprintln!("{protocol}, {name}: {:?} KiB", told.memory());
    let faults = told.faults(allowed);
    if !faults.is_empty() {
        let failed = format!("{protocol}, {name}: {faults:?}\n{}", told.all);
        FAILED.with_borrow_mut(|all| all.push(failed));
    }
}

/// Makes every call to servers with these conducts, concurrently.
pub(crate) fn all_survive(
    protocol: &str,
    name: &str,
    url: impl Fn(SocketAddr) -> String,
    conducts: &[Conduct],
) {
    let allowed = known::allowed(protocol, name);
    for conducts in conducts.chunks(AT_ONCE) {
        let servers: Vec<Hostile> = conducts.iter().cloned().map(Hostile::start).collect();
        let urls: Vec<String> = servers.iter().map(|server| url(server.addr())).collect();
        let told = child(
            &urls.iter().map(String::as_str).collect::<Vec<_>>(),
            allowed,
        );
        let faults = told.faults(allowed);
        assert!(
            faults.is_empty(),
            "{protocol}, {name}: {faults:?}\n{}",
            told.all
        );
    }
}

thread_local! {
    static FAILED: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Fails the test if an earlier conversation failed.
#[track_caller]
pub(crate) fn all_survived() {
    let failed = FAILED.take();
    assert!(
        failed.is_empty(),
        "{} faults:\n{}",
        failed.len(),
        failed.join("\n----\n")
    );
}

/// Returns the tested offsets: all of a short conversation, or every n-th of a long one from a
/// random start.
fn places(length: u64) -> impl Iterator<Item = u64> {
    let step = length.div_ceil(PLACES).max(1);
    let first = rand::random_range(0..step);
    eprintln!("{length} bytes, each {step}th from {first}");
    (first..=length).step_by(usize::try_from(step).unwrap_or(usize::MAX))
}

/// Returns the numbers of bytes that the client and the server send when nothing fails.
fn length(target: SocketAddr, url: impl Fn(SocketAddr) -> String) -> (u64, u64) {
    // On a busy machine, the server may be late for the timeouts of the calls.
    for _ in 0..20 {
        let relay = Hostile::start(Conduct::Relay(target, Fault::None));
        let told = child(&[&url(relay.addr())], &[]);
        if told.all.contains("0 close: ok") {
            return relay.said();
        }
        eprintln!("{}", told.all);
    }
    panic!("the calls fail without a fault");
}

/// Makes every call while connections to a real server are closed at each byte, or each byte sent
/// by the server is changed.
pub(crate) fn survives_at_every_byte(
    protocol: &str,
    target: SocketAddr,
    url: impl Fn(SocketAddr) -> String,
    sweep: Sweep,
) {
    let (up, down) = length(target, &url);
    let faults: Vec<Fault> = match sweep {
        Sweep::CutDown => places(down).map(Fault::CutDown).collect(),
        Sweep::CutUp => places(up).map(Fault::CutUp).collect(),
        Sweep::Flip => places(down)
            .map(|at| Fault::Flip(at, [0xff, 0x01, 0x80, 0x10][at as usize % 4]))
            .collect(),
    };
    let allowed = known::allowed(protocol, sweep.name());
    for faults in faults.chunks(AT_ONCE) {
        let servers: Vec<Hostile> = faults
            .iter()
            .map(|fault| Hostile::start(Conduct::Relay(target, fault.clone())))
            .collect();
        let urls: Vec<String> = servers.iter().map(|server| url(server.addr())).collect();
        let told = child(
            &urls.iter().map(String::as_str).collect::<Vec<_>>(),
            allowed,
        );
        let found = told.faults(allowed);
        assert!(
            found.is_empty(),
            "{protocol}, {}: {found:?}\n{}",
            sweep.name(),
            told.all
        );
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Sweep {
    CutDown,
    CutUp,
    Flip,
}

impl Sweep {
    fn name(self) -> &'static str {
        match self {
            Self::CutDown => "closed after each byte of the server",
            Self::CutUp => "closed after each byte of the client",
            Self::Flip => "each byte of the server changed",
        }
    }
}

/// Returns bytes of no known protocol.
pub(crate) fn noise() -> Vec<u8> {
    (0..65_536_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}
