use std::thread;

use leasehold_integration::{
    server::EtcdCluster,
    steps::{SOON, millis, until},
};
use rand::{RngExt, rngs::StdRng};
use tempfile::TempDir;

use super::{Target, elections::elects, survives};

/// The shortest TTL of etcd.
const TTL: u64 = 2000;
const MEMBERS: usize = 3;

/// Three members with users, and relays between them.
struct Etcd {
    cluster: EtcdCluster,
    roles: u32,
    /// Has the key with which the members sign tokens.
    _folder: TempDir,
    /// Whether an administrator writes the holders' keys. That would be the value of a leader.
    written: bool,
}

impl Etcd {
    /// Runs `etcdctl` as root against any member that answers. Does nothing while no member does.
    fn ctl(&self, arguments: &[&str]) {
        let as_root: Vec<_> = ["--user=root:root"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        for at in 0..MEMBERS {
            if self.cluster.at(at).ctl(&as_root).is_ok() {
                return;
            }
        }
    }
}

impl Target for Etcd {
    fn url(&self, _: usize) -> String {
        self.cluster
            .url()
            .replacen("etcd://", "etcd://app:secret@", 1)
            + "?timeout=1s"
    }

    fn ttl_ms(&self) -> u64 {
        TTL
    }

    fn strike(&mut self, rng: &mut StdRng) {
        thread::sleep(millis(rng.random_range(300..1000)));
        let at = rng.random_range(0..MEMBERS);
        match rng.random_range(0..if self.written { 6 } else { 5 }) {
            0 => {
                // Shorter than the TTL: before 3.5.13 a leader that was deposed for longer revokes
                // live leases when it continues (etcd issue 15247).
                self.cluster.member(at).pause().unwrap();
                thread::sleep(millis(rng.random_range(10..TTL / 2)));
                self.cluster.member(at).resume().unwrap();
            }
            1 => {
                self.cluster.member(at).kill();
                thread::sleep(millis(rng.random_range(0..500)));
                self.cluster.member(at).restart().unwrap();
            }
            2 => {
                // A paused member is cut off when it continues.
                self.cluster.member(at).pause().unwrap();
                thread::sleep(millis(rng.random_range(10..TTL / 4)));
                self.cluster.links().unwrap().cut_off(at);
                self.cluster.member(at).resume().unwrap();
                thread::sleep(millis(rng.random_range(10..TTL / 4)));
                self.cluster.links().unwrap().heal();
            }
            3 | 4 => {
                // A change of roles invalidates all JWT tokens.
                self.roles += 1;
                let role = format!("role{}", self.roles);
                self.ctl(&["role", "add", &role]);
                self.ctl(&["user", "grant-role", "app", &role]);
            }
            _ => {
                // An administrator writes the holder's key. Watchers are notified, and the lock is
                // not free.
                let listed = self.cluster.at(at).ctl(&[
                    "--user=root:root",
                    "get",
                    "--prefix",
                    "--keys-only",
                    "",
                ]);
                let keys = listed
                    .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
                    .unwrap_or_default();
                if let Some(key) = keys.lines().find(|line| !line.is_empty()) {
                    self.ctl(&["put", "--ignore-lease", key, "an administrator was here"]);
                }
            }
        }
    }

    fn settle(&mut self) {
        until("a leader", SOON, || self.cluster.leader().is_ok());
    }
}

fn start(written: bool) -> Etcd {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "a key that all members sign and check tokens with").unwrap();
    let option = format!("jwt,sign-method=HS256,priv-key={},ttl=10m", key.display());
    let cluster = EtcdCluster::builder()
        .members(MEMBERS)
        .linked()
        .in_memory()
        .option("--auth-token", &option);
    let cluster = cluster.start().unwrap();
    for arguments in [
        &["user", "add", "root:root"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "app:secret"],
        &["role", "add", "locks"],
        &[
            "role",
            "grant-permission",
            "locks",
            "--prefix=true",
            "readwrite",
            "",
        ],
        &["user", "grant-role", "app", "locks"],
        &["auth", "enable"],
    ] {
        cluster.at(0).ctl(arguments).unwrap();
    }
    Etcd {
        cluster,
        roles: 0,
        _folder: folder,
        written,
    }
}

#[test]
fn etcd_keeps_its_promises_in_chaos() {
    survives(start(true));
}

#[test]
fn etcd_elects_one_leader_at_a_time_in_chaos() {
    elects(start(false));
}
