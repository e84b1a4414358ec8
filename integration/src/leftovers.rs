//! The check for leftovers: two TTLs after a fault, no lock is held and no client waits.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

#[cfg(feature = "etcd")]
use crate::server::EtcdMember;
#[cfg(feature = "postgres")]
use crate::server::PostgresServer;
#[cfg(feature = "redis")]
use crate::server::RedisServer;
#[cfg(feature = "zookeeper")]
use crate::server::ZookeeperServer;
use crate::{HarnessError, Result};

/// The interval between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Key parts of data that outlives the locks: token counters, records, and the state of a quorum
/// node.
#[cfg(feature = "redis")]
const LASTING: [&[u8]; 6] = [
    b":token",
    b":record",
    b":fence",
    b":lh4:mark",
    b":lh4:since",
    b":lh4:top",
];

/// Returns the keys of all locks that are held or waited for.
///
/// # Errors
/// The server does not answer.
#[cfg(feature = "redis")]
pub fn redis(server: &RedisServer) -> Result<BTreeSet<String>> {
    let failed =
        |error: redis::RedisError| HarnessError::caused_by("cannot check for leftovers", error);
    let mut connection = server.connection()?;
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS")
        .arg("*")
        .query(&mut connection)
        .map_err(failed)?;
    let mut found = BTreeSet::new();
    for key in keys
        .into_iter()
        .filter(|key| !LASTING.iter().any(|lasting| key.ends_with(lasting)))
    {
        // The set of waiters may outlive its last member, so only members that have not expired
        // count.
        let kind: String = redis::cmd("TYPE")
            .arg(&key)
            .query(&mut connection)
            .map_err(failed)?;
        let name = String::from_utf8_lossy(&key).into_owned();
        if kind != "zset" {
            found.insert(name);
            continue;
        }
        let (secs, micros): (u64, u64) =
            redis::cmd("TIME").query(&mut connection).map_err(failed)?;
        let living: Vec<String> = redis::cmd("ZRANGEBYSCORE")
            .arg(&key)
            .arg(secs * 1000 + micros / 1000)
            .arg("+inf")
            .query(&mut connection)
            .map_err(failed)?;
        found.extend(living.into_iter().map(|member| format!("{name} {member}")));
    }
    Ok(found)
}

/// Returns the advisory locks that are held or waited for, with process, key and mode.
///
/// # Errors
/// The server does not answer.
#[cfg(feature = "postgres")]
pub fn postgres(server: &PostgresServer) -> Result<BTreeSet<String>> {
    let locks = server.psql(
        "SELECT l.pid, l.classid, l.objid, l.objsubid, l.mode, l.granted, a.application_name \
         FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory'",
    )?;
    Ok(locks.lines().map(str::to_owned).collect())
}

/// Returns the keys of all holders and waiters, without those of sessions and records.
///
/// # Errors
/// The member does not answer.
#[cfg(feature = "etcd")]
pub fn etcd(member: &EtcdMember) -> Result<BTreeSet<String>> {
    let keys = member.keys("")?.into_iter();
    let lasting = ["%session/", "%record/"];
    Ok(keys
        .filter(|key| !lasting.iter().any(|lasting| key.starts_with(lasting)))
        .collect())
}

/// Returns the nodes of all holders and waiters, without those of sessions.
///
/// # Errors
/// The server does not answer.
#[cfg(feature = "zookeeper")]
pub fn zookeeper(server: &ZookeeperServer) -> Result<BTreeSet<String>> {
    let mut nodes = server.ephemerals()?;
    nodes.retain(|node| !node.starts_with("/%sessions/"));
    Ok(nodes)
}

/// Returns the files under `folder` that any process has locked, held locks and waiters' markers.
///
/// # Errors
/// The folder or `/proc/locks` cannot be read.
pub fn files(folder: &Path) -> Result<BTreeSet<String>> {
    let unreadable = |error| HarnessError::caused_by("cannot check for leftovers", error);
    let locks = fs::read_to_string("/proc/locks").map_err(unreadable)?;
    // proc(5): `1: FLOCK ADVISORY WRITE 593 08:01:1048602 0 EOF`. A waiter's line begins with `1:
    // -> …`.
    let locked: BTreeSet<u64> = locks
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.matches(':').count() == 2)
        })
        .filter_map(|place| place.rsplit(':').next()?.parse().ok())
        .collect();
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let metadata = entry.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            found.extend(files(&entry.path())?);
        } else if locked.contains(&metadata.ino()) {
            found.insert(entry.path().display().to_string());
        }
    }
    Ok(found)
}

/// Repeats a check until it finds nothing.
///
/// # Errors
/// The check still finds something after `patience`, or fails.
pub fn nothing_left(
    patience: Duration,
    mut leftovers: impl FnMut() -> Result<BTreeSet<String>>,
) -> Result<()> {
    let end = Instant::now() + patience;
    loop {
        let found = leftovers()?;
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(HarnessError::new(format!(
                "after {patience:?} there is still {found:?}"
            )));
        }
        thread::sleep(POLL_INTERVAL);
    }
}
