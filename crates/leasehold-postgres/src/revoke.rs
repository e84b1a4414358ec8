//! Taking a lock from a holder that an inspection showed.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use leasehold_core::{ErrorKind, HolderRef, Result, Revocation, RevokeOutcome};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    connection::{Link, read_shown},
    error,
    identity::Identity,
    keys::AdvisoryKey,
    statement::may_end,
};

/// What identifies a holder: its session, and what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HolderId {
    pub(crate) pid: i32,
    /// When the session began, in microseconds since 1970: the server uses pids again.
    pub(crate) started: i64,
    pub(crate) key: AdvisoryKey,
}

impl fmt::Display for HolderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.pid, self.started, self.key.payload())
    }
}

impl FromStr for HolderId {
    type Err = ();

    fn from_str(id: &str) -> Result<Self, ()> {
        let mut parts = id.splitn(3, ':');
        let mut next = || parts.next().ok_or(());
        let (pid, started, key) = (next()?, next()?, next()?);
        Ok(Self {
            pid: pid.parse().map_err(drop)?,
            started: started.parse().map_err(drop)?,
            key: AdvisoryKey::of_payload(key).ok_or(())?,
        })
    }
}

/// Whether the session `$1` that began at `$2` has the key `$3`, a pair if `$4`; how many others it
/// has besides `$5`, and those whose upper 44 bits are those of `$6`; its role; whether the role
/// that asks may end it; and that role.
fn held() -> String {
    let may_end = may_end(
        "us.usesysid",
        "a.usesysid",
        "(SELECT rolsuper FROM pg_roles WHERE oid = a.usesysid)",
    );
    format!(
        "SELECT coalesce(bool_or(s.k = $3 AND s.p = $4), false), \
         count(*) FILTER (WHERE NOT (s.k = $3 AND s.p = $4) AND (s.p OR s.k <> ALL ($5) AND s.k & ~1048575::int8 <> $6)), \
         coalesce(min(s.role), ''), coalesce(bool_or(s.may_end), false), session_user::text \
         FROM (SELECT (l.classid::int8 << 32) | l.objid::int8 AS k, l.objsubid = 2 AS p, a.usename::text AS role, \
         {may_end} AS may_end FROM pg_stat_get_activity(pg_backend_pid()) AS us, pg_locks AS l \
         JOIN pg_stat_activity AS a ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.granted AND l.pid = $1 \
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND coalesce((extract(epoch FROM a.backend_start) * 1000000)::int8, 0) = $2) AS s"
    )
}

/// How the session `$1` that began at `$2` is named, if it is still there and has the key `$3`, a
/// pair if `$4`; and whether it has the mark `$5`.
const NOTED: &str = "SELECT a.application_name, bool_or(l.objsubid = 1 AND ((l.classid::int8 << 32) | l.objid::int8) = $5) \
     FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.granted \
     AND l.pid = $1 AND coalesce((extract(epoch FROM a.backend_start) * 1000000)::int8, 0) = $2 \
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) GROUP BY a.application_name \
     HAVING bool_or((l.objsubid = 2) = $4 AND ((l.classid::int8 << 32) | l.objid::int8) = $3)";

/// How often it is looked whether the holder has taken note.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Holds a mark until the holder has taken note of it, which it does with a renewal. From then on
/// its deadline stands.
async fn gently(link: &Link, connection: &mut PgConnection, id: HolderId) -> Result<RevokeOutcome> {
    let failed = |error| link.failed(error, "break");
    let mark = id.key.breaks(id.pid);
    let identity = Identity::random();
    link.within(link.claim(&mut *connection, &identity, "break"))
        .await??;
    let take = AssertSqlSafe(format!(
        "SELECT pg_try_advisory_lock_shared({mark}) WHERE {}",
        identity.is_here()
    ));
    link.within(sqlx::raw_sql(take).execute(&mut *connection))
        .await?
        .map_err(failed)?;
    let begun = Instant::now();
    loop {
        let query = sqlx::query(NOTED)
            .bind(id.pid)
            .bind(id.started)
            .bind(id.key.bits())
            .bind(id.key.is_pair())
            .bind(mark);
        let row = link
            .within(query.fetch_optional(&mut *connection))
            .await?
            .map_err(failed)?;
        let Some(row) = row else {
            return Ok(RevokeOutcome::AlreadyGone);
        };
        let (name, noted): (String, bool) = (link.read(&row, 0)?, link.read(&row, 1)?);
        let Some((ttl, _)) = read_shown(&name) else {
            return Err(error::plain(
                ErrorKind::Unsupported,
                "break",
                "another program holds it, which would not notice; it can only be broken at once",
            ));
        };
        if noted {
            return Ok(RevokeOutcome::FreeWithin(Some(ttl)));
        }
        // Of many locks, not every renewal takes note.
        if begun.elapsed() > ttl * 3 / 2 {
            return Err(error::plain(
                ErrorKind::Unavailable,
                "break",
                "its holder lives on and has taken no note; is it of an older version? Break it at once",
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

pub(crate) async fn revoke(
    link: &Link,
    holder: &HolderRef,
    revocation: Revocation,
) -> Result<RevokeOutcome> {
    let id: HolderId = std::str::from_utf8(&holder.id)
        .ok()
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| {
            error::plain(
                ErrorKind::InvalidInput,
                "break",
                "this holder was not shown by an inspection of Postgres",
            )
        })?;
    let failed = |error| link.failed(error, "break");
    let mut connection = link.connect("leasehold breaks", "break").await?;
    // What goes with the lock: markers of those who wait for it in the same session, and the count
    // of a semaphore.
    let semaphore = link.names.semaphore(&holder.key, 1)?;
    let markers = vec![
        id.key.waits(),
        id.key.writer_waits(),
        semaphore.key().waits(),
    ];
    let query = sqlx::query(AssertSqlSafe(held()))
        .bind(id.pid)
        .bind(id.started)
        .bind(id.key.bits())
        .bind(id.key.is_pair())
        .bind(markers)
        .bind(semaphore.any_count());
    let row = link
        .within(query.fetch_one(&mut connection))
        .await?
        .map_err(failed)?;
    let (held, others): (bool, i64) = (link.read(&row, 0)?, link.read(&row, 1)?);
    if !held {
        return Ok(RevokeOutcome::AlreadyGone);
    }
    if !link.read(&row, 3)? {
        let (whose, ours): (String, String) = (link.read(&row, 2)?, link.read(&row, 4)?);
        return Err(error::plain(
            ErrorKind::Denied,
            "break",
            format!(
                "its session is of the role `{whose}`, which `{ours}` may not end; be a member of that role or of \
                 pg_signal_backend, or a superuser if it is one"
            ),
        ));
    }
    if revocation == Revocation::Graceful {
        let broken = gently(link, &mut connection, id).await;
        drop(connection.close().await);
        return broken;
    }
    if others > 0 {
        return Err(error::plain(
            ErrorKind::Unsupported,
            "break",
            format!(
                "its session has {others} other locks and markers, and the server frees all or none; run SELECT \
                 pg_terminate_backend({}) to free them all",
                id.pid
            ),
        ));
    }
    let query = sqlx::query("SELECT pg_terminate_backend($1)").bind(id.pid);
    link.within(query.execute(&mut connection))
        .await?
        .map_err(failed)?;
    drop(connection.close().await);
    Ok(RevokeOutcome::Freed)
}
