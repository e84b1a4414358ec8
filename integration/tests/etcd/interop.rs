//! Mutual exclusion with `etcdctl lock` in both directions, for held locks and for waiters.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use leasehold_core::{ErrorKind, LockClient, Released};
use leasehold_etcd::EtcdBackend;
use leasehold_integration::server::EtcdCluster;
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(60);

/// `etcdctl lock NAME`, which prints its key once it holds the lock, and holds it until it is
/// interrupted. Killed on drop.
struct Ctl {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Ctl {
    fn lock(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
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

    fn holds(&self, within: Duration) -> bool {
        self.lines.recv_timeout(within).is_ok()
    }

    /// Waits until the lock is held, without blocking the runtime.
    async fn comes_to_hold(&self) -> bool {
        for _ in 0..1000 {
            if self.holds(Duration::ZERO) {
                return true;
            }
            sleep(Duration::from_millis(10)).await;
        }
        false
    }

    fn release(mut self) {
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

fn ctl_lock(cluster: &mut EtcdCluster, name: &str) -> Ctl {
    Ctl::lock(cluster.member(0).ctl_command(&["lock", "--ttl=5", name]))
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_and_leasehold_exclude_each_other() {
    let mut cluster = EtcdCluster::start().unwrap();
    let client = LockClient::new(EtcdBackend::connect(&cluster.url()).await.unwrap());
    let mutex = client.mutex("item");

    // etcdctl holds the lock: the library is refused, and waits.
    let ctl = ctl_lock(&mut cluster, "item");
    assert!(ctl.comes_to_hold().await);
    assert!(mutex.try_lock().await.unwrap().is_none());
    assert!(client.rwlock("item").try_read().await.unwrap().is_none());
    let waiter = tokio::spawn({
        let mutex = mutex.clone();
        async move { mutex.lock().await.unwrap() }
    });
    sleep(Duration::from_millis(200)).await;
    assert!(!waiter.is_finished());
    ctl.release();
    let guard = timeout(SOON, waiter).await.unwrap().unwrap();

    // The library holds the lock: etcdctl waits until the release.
    let ctl = ctl_lock(&mut cluster, "item");
    sleep(Duration::from_millis(300)).await;
    assert!(!ctl.holds(Duration::ZERO));
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    assert!(ctl.comes_to_hold().await);

    // etcdctl waits behind the library, and precedes later waiters.
    let second = ctl_lock(&mut cluster, "item");
    sleep(Duration::from_millis(300)).await;
    let waiter = tokio::spawn(async move { mutex.lock().await.unwrap() });
    sleep(Duration::from_millis(200)).await;
    ctl.release();
    assert!(second.comes_to_hold().await);
    assert!(!waiter.is_finished());
    second.release();
    let guard = timeout(SOON, waiter).await.unwrap().unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);

    // A reader of the library excludes writers of etcdctl.
    let reader = client.rwlock("item").read().await.unwrap();
    let ctl = ctl_lock(&mut cluster, "item");
    sleep(Duration::from_millis(300)).await;
    assert!(!ctl.holds(Duration::ZERO));
    assert_eq!(reader.release().await.unwrap(), Released::Freed);
    assert!(ctl.comes_to_hold().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn slashes_are_shared_with_exact_names_only() {
    let mut cluster = EtcdCluster::start().unwrap();
    let exact = EtcdBackend::connect(&format!("{}?names=exact", cluster.url()))
        .await
        .unwrap();
    let (exact, encoded) = (
        LockClient::new(exact),
        LockClient::new(EtcdBackend::connect(&cluster.url()).await.unwrap()),
    );
    let ctl = ctl_lock(&mut cluster, "/locks/item");
    assert!(ctl.comes_to_hold().await);
    assert!(
        exact
            .mutex("/locks/item")
            .try_lock()
            .await
            .unwrap()
            .is_none()
    );
    drop(
        encoded
            .mutex("/locks/item")
            .try_lock()
            .await
            .unwrap()
            .unwrap(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_is_listed_and_can_only_be_revoked_immediately() {
    use leasehold_core::{Revocation, RevokeOutcome, backend::LockBackend};
    let mut cluster = EtcdCluster::start().unwrap();
    let backend = EtcdBackend::connect(&cluster.url()).await.unwrap();
    let ctl = ctl_lock(&mut cluster, "item");
    assert!(ctl.comes_to_hold().await);
    let holders = backend
        .inspect(&"item".try_into().unwrap())
        .await
        .unwrap()
        .holders;
    assert_eq!((holders.len(), holders[0].mode), (1, None));
    assert_eq!(
        backend
            .revoke(&holders[0], Revocation::Graceful)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(
        backend
            .revoke(&holders[0], Revocation::Immediate)
            .await
            .unwrap(),
        RevokeOutcome::Freed
    );
}
