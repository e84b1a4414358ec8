//! Helpers shared by the tests.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use leasehold_core::{LockClient, Released, Ttl};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::{held::Held, server::EtcdCluster, steps::SOON};
use tokio::time::{Instant, sleep};

pub(crate) async fn backend(url: &str) -> Arc<EtcdBackend> {
    EtcdBackend::connect(url).await.unwrap()
}

pub(crate) async fn client(url: &str) -> LockClient {
    LockClient::new(backend(url).await)
}

pub(crate) fn ttl(secs: u64) -> Ttl {
    Ttl::from_secs(secs).unwrap()
}

pub(crate) async fn free(guard: impl Into<Held>) {
    assert_eq!(guard.into().release().await.unwrap(), Released::Freed);
}

/// Returns the keys of holders and waiters, without those of sessions.
pub(crate) fn locks(cluster: &EtcdCluster) -> Vec<String> {
    let mut keys = cluster.at(0).keys("").unwrap();
    keys.retain(|key| !key.starts_with("%session/"));
    keys
}

/// Waits until the keys of holders and waiters satisfy a condition.
pub(crate) async fn until_locks(
    cluster: &EtcdCluster,
    what: &str,
    are: impl Fn(&[String]) -> bool,
) {
    let begun = Instant::now();
    loop {
        let keys = locks(cluster);
        if are(&keys) {
            return;
        }
        assert!(begun.elapsed() < SOON, "{what}: {keys:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the number of requests of this kind that the server has executed.
pub(crate) fn executed(cluster: &EtcdCluster, kind: &str) -> u64 {
    let metrics = cluster.at(0).metrics().unwrap();
    let (kind, ok) = (format!("\"{kind}\""), "\"OK\"");
    let counted = metrics.lines().filter(|line| {
        line.starts_with("grpc_server_handled_total") && line.contains(&kind) && line.contains(ok)
    });
    let number = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64;
    counted.map(number).sum()
}

/// Returns the lease id in a key of `name`.
pub(crate) fn lease_of(key: &str, name: &str) -> String {
    key.strip_prefix(&format!("{name}/"))
        .unwrap()
        .split('-')
        .next()
        .unwrap()
        .to_owned()
}

/// A running `etcdctl`, whose output is read. Killed on drop.
pub(crate) struct Ctl {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Ctl {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Returns whether there is a line that was not returned yet, and discards it.
    pub(crate) fn has_printed(&self) -> bool {
        self.lines.try_recv().is_ok()
    }

    /// Waits for the next line, without blocking the runtime.
    pub(crate) async fn line(&self) -> String {
        let begun = Instant::now();
        loop {
            match self.lines.try_recv() {
                Ok(line) => return line,
                Err(error) => assert!(
                    error == mpsc::TryRecvError::Empty && begun.elapsed() < SOON,
                    "etcdctl prints nothing: {error}"
                ),
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Interrupts it, and waits until it has released its lock.
    pub(crate) fn interrupt(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Ctl {
    fn drop(&mut self) {
        // An error means that the process has already ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
