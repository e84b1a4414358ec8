//! Warnings about etcd releases in which a deposed leader revokes live leases (etcd issue 15247),
//! and none about other releases.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use leasehold_core::{Restart, backend::LockBackend};
use leasehold_integration::server::EtcdCluster;
use leasehold_testkit::subscribe;
use tokio::time::{Duration, Instant, sleep};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::backend;

/// The timeout for two checks of the members on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn read(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Returns the number of warnings about this member that contain `says`.
    fn warnings(&self, member: &str, says: &str) -> usize {
        let of = format!("member=\"{member}\"");
        self.read()
            .lines()
            .filter(|line| line.contains("WARN") && line.contains(&of) && line.contains(says))
            .count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn logging() -> (Log, impl Sized) {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    (log, subscribe(subscriber))
}

/// The warning includes members that the URL does not name. The system's etcd has the fault on
/// Debian 12.
#[tokio::test]
async fn members_that_revoke_live_leases_are_reported() {
    let (log, _logging) = logging();
    let cluster = EtcdCluster::start_members(3).unwrap();
    let version = cluster.at(0).version().unwrap();
    let faulty = version.starts_with("3.4.");
    let backend = backend(&cluster.at(1).url()).await;
    let expected = if faulty {
        Restart::FailOverMayFree
    } else {
        Restart::Keeps
    };
    assert_eq!(backend.capabilities().restart, expected, "{version}");
    for member in ["m0", "m1", "m2"] {
        assert_eq!(
            log.warnings(member, &version),
            usize::from(faulty),
            "{}",
            log.read()
        );
    }
    backend.close().await.unwrap();
}

#[tokio::test]
async fn a_later_release_keeps_locks_over_a_fail_over() {
    let (log, _logging) = logging();
    let cluster = EtcdCluster::builder()
        .members(3)
        .later_release()
        .start()
        .unwrap();
    let backend = backend(&cluster.url()).await;
    assert_eq!(backend.capabilities().restart, Restart::Keeps);
    assert_eq!(log.read(), "");
    backend.close().await.unwrap();
}

/// A single member is never deposed.
#[tokio::test]
async fn a_member_that_is_alone_is_no_matter_of_warnings() {
    let (log, _logging) = logging();
    let cluster = EtcdCluster::start().unwrap();
    let backend = backend(&cluster.url()).await;
    assert_eq!(backend.capabilities().restart, Restart::Keeps);
    assert_eq!(log.read(), "");
    backend.close().await.unwrap();
}

/// A rolling upgrade: the last member is down, restarts as the old release, and then as the later
/// one.
#[tokio::test]
async fn a_member_that_joins_later_is_reported() {
    let (log, _logging) = logging();
    let mut cluster = EtcdCluster::start_members(3).unwrap();
    let version = cluster.at(2).version().unwrap();
    for at in [0, 1] {
        cluster.member(at).restart_as(true).unwrap();
    }
    cluster.member(2).kill();
    let backend = backend(&cluster.at(0).url()).await;
    assert_eq!(
        backend.capabilities().restart,
        Restart::FailOverMayFree,
        "the release is unknown"
    );
    assert_eq!(log.warnings("m2", "is unknown"), 1, "{}", log.read());
    assert_eq!(
        (log.warnings("m0", ""), log.warnings("m1", "")),
        (0, 0),
        "{}",
        log.read()
    );

    cluster.member(2).restart_as(false).unwrap();
    let begun = Instant::now();
    while log.warnings("m2", &version) == 0 && version.starts_with("3.4.") {
        assert!(begun.elapsed() < PATIENCE, "{}", log.read());
        sleep(Duration::from_millis(50)).await;
    }
    cluster.member(2).restart_as(true).unwrap();
    let begun = Instant::now();
    while backend.capabilities().restart != Restart::Keeps {
        assert!(begun.elapsed() < PATIENCE, "{}", log.read());
        sleep(Duration::from_millis(50)).await;
    }
    backend.close().await.unwrap();
}
