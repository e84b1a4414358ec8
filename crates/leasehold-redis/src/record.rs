//! The record beside a lock: how it is read and written.

use std::time::{Duration, SystemTime};

use leasehold_core::{
    ErrorKind, FencingToken, LockKey, Mode, Result,
    backend::{
        BoxFuture, RecordRead, RecordReading, RecordWrite, Request,
        support::{StoredRecord, record_label},
    },
};
use redis::{Cmd, Value};

use crate::{
    commands::add_keys,
    config::NotificationMode,
    connection_manager::ConnectionManager,
    error::{self, ERRORS, SideEffect},
    keys::{Keys, Kind, LockValue},
    scripts,
    waiters::Generation,
};

const READ: &str = "read_record";
pub(crate) const WRITE: &str = "write_record";
/// The longest wait for a notification. It bounds the delay after a fail-over that the connection
/// does not notice.
const LONGEST_WATCH: Duration = Duration::from_secs(30);
/// The time in ms that is added to the remaining time of a lock, because the server rounds it.
const ROUNDING: u64 = 2;

/// Reads the record of a lock.
pub(crate) async fn read(manager: &ConnectionManager, read: RecordRead) -> Result<RecordReading> {
    let prefix = &manager.config.prefix;
    Keys::check(prefix, &read.key).map_err(|error| ERRORS.named(error, READ))?;
    let keys = Keys::new(prefix, &read.key);
    let before = manager.waiters.generation();
    let answer = manager
        .run(&scripts::READ_RECORD, READ, SideEffect::None, |cmd| {
            read_arguments(cmd, &keys, &read);
        })
        .await?;
    let answer = Answer::parse(answer).ok_or_else(|| ERRORS.unexpected(READ))?;

    let stored = match &answer.stored {
        Some(bytes) => Some(decode(&read.key, bytes, READ)?),
        None => None,
    };
    let mut reading = RecordReading::new(
        stored
            .filter(|_| answer.matters)
            .and_then(StoredRecord::into_record),
    );
    reading.now = read.clock.then_some(answer.now);
    if read.watch {
        reading.changed = changed(manager, &keys, &read, before, answer.left);
    }
    Ok(reading)
}

fn read_arguments(cmd: &mut Cmd, keys: &Keys<'_>, read: &RecordRead) {
    // On servers up to 7.0, a script tracks all its keys: without the lock among them, a renewal
    // notifies nobody.
    if read.while_held {
        add_keys(cmd, [keys.derived(Kind::Record), keys.lock()]);
    } else {
        add_keys(cmd, [keys.derived(Kind::Record)]);
    }
    if read.watch {
        cmd.arg("watch");
    }
}

/// Returns the notification of a change, or `None` if the server does not notify.
fn changed(
    manager: &ConnectionManager,
    keys: &Keys<'_>,
    read: &RecordRead,
    before: Generation,
    left: Option<Duration>,
) -> Option<BoxFuture<'static, ()>> {
    // If there is no connection, it has just broken. The generation has changed since, so the
    // watcher is notified at once.
    let pushes = manager.config.notifications == NotificationMode::Pushed
        && manager.current_connection().is_none_or(|conn| conn.pushes);
    if !pushes {
        return None;
    }
    let waiters = &manager.waiters;
    let notified = if read.while_held {
        waiters.register([keys.derived(Kind::Record), keys.lock()], before)
    } else {
        waiters.register([keys.derived(Kind::Record)], before)
    };
    let longest = manager
        .config
        .fallback_poll_interval
        .unwrap_or(LONGEST_WATCH);
    // The server may notify of the expiry of a lock late.
    let limit = left.map_or(longest, |left| left.min(longest));
    Some(Box::pin(async move {
        drop(tokio::time::timeout(limit, notified).await);
    }))
}

/// The reply of the script that reads.
pub(crate) struct Answer {
    pub(crate) now: SystemTime,
    pub(crate) stored: Option<Vec<u8>>,
    /// Whether the writer holds the lock, or it is of no interest.
    pub(crate) matters: bool,
    /// The time after which the lock has expired.
    pub(crate) left: Option<Duration>,
}

impl Answer {
    pub(crate) fn parse(answer: Value) -> Option<Self> {
        let (now, stored, matters, left): (u64, Option<Vec<u8>>, i64, i64) =
            redis::from_redis_value(answer).ok()?;
        let left = u64::try_from(left).ok();
        Some(Self {
            now: SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(now))?,
            stored,
            matters: matters == 1,
            left: left.map(|left| Duration::from_millis(left + ROUNDING)),
        })
    }
}

/// The reply of the script that writes if the lock has another value.
const NOT_HELD: i64 = 0;

/// Writes the record of a lock that is held by this request. Returns its version, or `None` if the
/// lock is not held any more.
///
/// The write is sent again if the connection breaks, because a repetition has no effect.
pub(crate) async fn write(
    manager: &ConnectionManager,
    request: &Request,
    token: Option<FencingToken>,
    write: &RecordWrite,
) -> Result<Option<u64>> {
    if request.mode() != Mode::Exclusive {
        return Err(ERRORS.error(
            ErrorKind::Unsupported,
            WRITE,
            format!(
                "`{}` is held as {}, and only an exclusive holder writes the record; lock it exclusively",
                request.key(),
                request.mode()
            ),
        ));
    }
    let send = async || {
        let conn = manager.connection_flushed(WRITE).await?;
        let arguments = |cmd: &mut Cmd| {
            write_arguments(cmd, &manager.config.prefix, request, token, write);
        };
        manager
            .run_on(
                &conn,
                &scripts::WRITE_RECORD,
                WRITE,
                SideEffect::Writes,
                arguments,
            )
            .await
    };
    let answer = match send().await {
        Err(broken) if error::is_broken_connection(&broken) => match Box::pin(send()).await {
            // The first attempt may have taken effect before the lock was lost, and the error of
            // the second says nothing about it.
            Ok(Value::Int(NOT_HELD)) | Err(_) => return Err(broken),
            again => again,
        },
        answer => answer,
    };
    written(request.key(), &answer?)
}

/// Parses the reply of the script that writes.
pub(crate) fn written(key: &LockKey, answer: &Value) -> Result<Option<u64>> {
    match answer {
        Value::Int(NOT_HELD) => Ok(None),
        Value::Int(version) => u64::try_from(*version)
            .map(Some)
            .map_err(|_| ERRORS.unexpected(WRITE)),
        Value::BulkString(beginning) => match decode(key, beginning, WRITE) {
            Err(error) => Err(error),
            Ok(_) => Err(ERRORS.unexpected(WRITE)),
        },
        _ => Err(ERRORS.unexpected(WRITE)),
    }
}

fn write_arguments(
    cmd: &mut Cmd,
    prefix: &[u8],
    request: &Request,
    token: Option<FencingToken>,
    write: &RecordWrite,
) {
    let keys = Keys::new(prefix, request.key());
    add_keys(cmd, [keys.lock(), keys.derived(Kind::Record)])
        .arg(LockValue::of(request).parts())
        .arg(write.sequence());
    match token {
        Some(token) => cmd.arg(token.get()),
        None => cmd.arg("-"),
    }
    .arg(record_label(request.label()))
    .arg(write.value().unwrap_or_default());
    if write.value().is_none() {
        cmd.arg("clear");
    }
}

fn decode(key: &LockKey, bytes: &[u8], operation: &'static str) -> Result<StoredRecord> {
    StoredRecord::decode(key, bytes).map_err(|error| ERRORS.named(error, operation))
}
