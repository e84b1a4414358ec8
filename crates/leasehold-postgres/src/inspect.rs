//! Who holds a key and who waits for it.

use std::{
    collections::BTreeSet,
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use leasehold_core::{HolderConnection, HolderRef, Inspection, LockKey, Mode, Result, WaiterRef};
use sqlx::{Connection, PgConnection, postgres::PgRow};

use crate::{
    connection::{Link, read_shown},
    keys::{AdvisoryKey, Family},
    revoke::HolderId,
};

/// All who have one of the keys `$1`, of which `$2` are pairs, or one whose upper 44 bits are those
/// of `$3`, with what the server tells of their sessions. Of other roles' it tells less to a role
/// without `pg_read_all_stats`.
const WHO: &str = "SELECT s.classid, s.objid, s.objsubid, s.mode = 'ExclusiveLock', s.granted, s.pid, \
     coalesce(a.application_name, ''), host(a.client_addr), (extract(epoch FROM a.backend_start) * 1000000)::int8, \
     CASE WHEN a.state = 'idle' THEN (extract(epoch FROM clock_timestamp() - a.state_change) * 1000)::int8 END, \
     extract(epoch FROM clock_timestamp() - a.backend_start)::int8 \
     FROM (SELECT l.classid::int8, l.objid::int8, l.objsubid, l.mode, l.granted, l.pid FROM pg_locks AS l \
     WHERE l.locktype = 'advisory' \
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS s \
     LEFT JOIN pg_stat_activity AS a ON a.pid = s.pid \
     WHERE ((s.classid << 32) | s.objid, s.objsubid = 2) IN (SELECT k, p FROM unnest($1::int8[], $2::bool[]) AS w(k, p)) \
     OR s.objsubid = 1 AND ((s.classid << 32) | s.objid) & ~1048575::int8 = $3 \
     ORDER BY a.backend_start, s.pid";

/// One who has a key, or waits for it in the server itself.
struct Seen {
    key: AdvisoryKey,
    exclusive: bool,
    granted: bool,
    pid: i32,
    name: String,
    address: Option<String>,
    /// When its session began, in microseconds since 1970.
    started: i64,
    /// For how long it has said nothing.
    silent: Option<Duration>,
    /// For how long it is connected.
    connected: Option<Duration>,
}

pub(crate) async fn inspect(link: &Link, key: &LockKey) -> Result<Inspection> {
    let sight = see(link, key).await?;
    let mut inspection = Inspection::default();
    inspection.holders = sight
        .holders()
        .map(|(seen, mode)| seen.holder(key, mode))
        .collect();
    inspection.waiters = sight.waiters().collect();
    Ok(inspection)
}

/// What was seen of a name, and what its keys are.
struct Snapshot {
    seen: Vec<Seen>,
    /// A semaphore may have a name of which the key scheme makes no lock: of such a lock there is
    /// nothing to see.
    lock: Option<AdvisoryKey>,
    semaphore: Family,
    of: Option<NonZeroU32>,
    permits: Vec<AdvisoryKey>,
}

async fn see(link: &Link, key: &LockKey) -> Result<Snapshot> {
    let mut connection = link.connect("leasehold inspects", "inspect").await?;
    let lock = link.names.lock(key).ok();
    let semaphore = link.names.semaphore(key, 1)?;
    let mut sight = Snapshot {
        seen: Vec::new(),
        lock,
        semaphore,
        of: None,
        permits: Vec::new(),
    };
    let asked: Vec<AdvisoryKey> = [
        lock,
        sight.waits(),
        sight.writer_waits(),
        Some(sight.permit_waits()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let any_count = sight.semaphore.any_count();
    sight.seen = look(link, &mut connection, &asked, any_count).await?;
    sight.of = sight
        .seen
        .iter()
        .filter_map(|seen| count(&sight.semaphore, seen.key))
        .next();
    if let Some(of) = sight.of {
        sight.permits = permits(link, key, of)?;
        sight
            .seen
            .extend(look(link, &mut connection, &sight.permits, any_count).await?);
    }
    drop(connection.close().await);
    Ok(sight)
}

impl Snapshot {
    fn waits(&self) -> Option<AdvisoryKey> {
        self.lock.map(|lock| AdvisoryKey::Int64(lock.waits()))
    }

    fn writer_waits(&self) -> Option<AdvisoryKey> {
        self.lock
            .map(|lock| AdvisoryKey::Int64(lock.writer_waits()))
    }

    fn permit_waits(&self) -> AdvisoryKey {
        AdvisoryKey::Int64(self.semaphore.key().waits())
    }

    fn permit_mode(&self) -> Option<Mode> {
        self.of.map(|of| Mode::Permit { of })
    }

    /// How this one has the lock or a permit, or waits for it in the server itself, if that is what
    /// it was seen with.
    fn mode(&self, seen: &Seen) -> Option<Mode> {
        if self.permits.contains(&seen.key) {
            return self.permit_mode();
        }
        (Some(seen.key) == self.lock).then_some(if seen.exclusive {
            Mode::Exclusive
        } else {
            Mode::Shared
        })
    }

    fn holders(&self) -> impl Iterator<Item = (&Seen, Mode)> {
        self.seen
            .iter()
            .filter(|seen| seen.granted)
            .filter_map(|seen| Some((seen, self.mode(seen)?)))
    }

    fn waiters(&self) -> impl Iterator<Item = WaiterRef> {
        let (waits, writer_waits) = (self.waits(), self.writer_waits());
        let is_writers = move |seen: &&Seen| Some(seen.key) == writer_waits;
        let writers: BTreeSet<i32> = self
            .seen
            .iter()
            .filter(is_writers)
            .map(|seen| seen.pid)
            .collect();
        self.seen.iter().filter_map(move |seen| {
            let mode = if Some(seen.key) == waits {
                Some(if writers.contains(&seen.pid) {
                    Mode::Exclusive
                } else {
                    Mode::Shared
                })
            } else if seen.key == self.permit_waits() {
                self.permit_mode()
            } else if seen.granted {
                return None;
            } else {
                Some(self.mode(seen)?)
            };
            Some(WaiterRef::new(mode, seen.label()))
        })
    }
}

/// The count of a semaphore, if this is its key.
fn count(semaphore: &Family, key: AdvisoryKey) -> Option<NonZeroU32> {
    let AdvisoryKey::Int64(key) = key else {
        return None;
    };
    if key & !Family::COUNT != semaphore.any_count() {
        return None;
    }
    u32::try_from(key & Family::COUNT)
        .ok()
        .and_then(NonZeroU32::new)
}

fn permits(link: &Link, key: &LockKey, of: NonZeroU32) -> Result<Vec<AdvisoryKey>> {
    let family = link.names.semaphore(key, of.get())?;
    Ok((1..=of.get())
        .map(|number| AdvisoryKey::Int64(family.permit(number)))
        .collect())
}

async fn look(
    link: &Link,
    connection: &mut PgConnection,
    keys: &[AdvisoryKey],
    count: i64,
) -> Result<Vec<Seen>> {
    let bits: Vec<i64> = keys.iter().map(|key| key.bits()).collect();
    let pairs: Vec<bool> = keys.iter().map(|key| key.is_pair()).collect();
    let asked = sqlx::query(WHO)
        .bind(bits)
        .bind(pairs)
        .bind(count)
        .fetch_all(connection);
    let rows = link
        .within(asked)
        .await?
        .map_err(|error| link.failed(error, "inspect"))?;
    rows.iter().map(|row| read(link, row)).collect()
}

fn read(link: &Link, row: &PgRow) -> Result<Seen> {
    let millis: Option<i64> = link.read(row, 9)?;
    let seconds: Option<i64> = link.read(row, 10)?;
    Ok(Seen {
        key: AdvisoryKey::of_pg_locks(link.read(row, 0)?, link.read(row, 1)?, link.read(row, 2)?),
        exclusive: link.read(row, 3)?,
        granted: link.read(row, 4)?,
        pid: link.read(row, 5)?,
        name: link.read(row, 6)?,
        address: link.read(row, 7)?,
        started: link.read::<Option<i64>, _>(row, 8)?.unwrap_or(0),
        silent: millis
            .and_then(|millis| u64::try_from(millis).ok())
            .map(Duration::from_millis),
        connected: seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs),
    })
}

impl Seen {
    fn holder(&self, key: &LockKey, mode: Mode) -> HolderRef {
        let id = HolderId {
            pid: self.pid,
            started: self.started,
            key: self.key,
        };
        let mut holder = HolderRef::new(key.clone(), id.to_string());
        holder.mode = Some(mode);
        holder.label = self.label();
        holder.connection = Some(self.connection());
        if let (Some((ttl, _)), Some(silent)) = (read_shown(&self.name), self.silent) {
            holder.expires_in = Some(ttl.saturating_sub(silent));
        }
        holder
    }

    fn connection(&self) -> HolderConnection {
        let mut connection = HolderConnection::new(self.pid.to_string(), self.name.clone());
        connection.address = self
            .address
            .as_ref()
            .and_then(|address| address.parse().ok());
        let since = u64::try_from(self.started)
            .ok()
            .filter(|micros| *micros > 0);
        connection.since =
            since.map(|micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros));
        connection
    }

    /// The label of a session of ours; of another program its name, its address and how long it has
    /// been connected.
    fn label(&self) -> String {
        if let Some((_, label)) = read_shown(&self.name) {
            return label.to_owned();
        }
        let mut label = if self.name.is_empty() {
            format!("pid {}", self.pid)
        } else {
            self.name.clone()
        };
        if let Some(address) = &self.address {
            label.push_str(&format!(" from {address}"));
        }
        if let Some(connected) = self.connected {
            label.push_str(&format!(", connected for {connected:?}"));
        }
        label
    }
}
