//! [`RedisLease`]: one granted lock or permit.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use leasehold_core::{
    Deadline, ErrorKind, FencingToken, LossReason, Mode, Released, Result, Timestamp,
    backend::{
        AtomicDeadline, KeepAlive, Lease, RecordWrite, Request, async_trait,
        support::ReleaseTracker,
    },
};
use redis::{Cmd, Value};

use crate::{
    commands::{Operation, release_arguments, release_script, renew_arguments, renew_script},
    connection::Connection,
    connection_manager::ConnectionManager,
    error::{self, ERRORS, SideEffect},
    job::Job,
    record,
};

/// The reply of the renewal scripts if the lock was gracefully revoked.
const REVOKED: i64 = -1;
const NOT_THE_HOLDER: &str = "the server no longer knows us as the holder";

pub(crate) struct RedisLease {
    manager: Arc<ConnectionManager>,
    request: Request,
    token: Option<FencingToken>,
    deadline: AtomicDeadline,
    release: ReleaseTracker,
    /// The run of the server in which the release was first sent; see [`ConnectionManager::runs`].
    released_in: OnceLock<u64>,
}

impl RedisLease {
    pub(crate) fn new(
        manager: &Arc<ConnectionManager>,
        request: Request,
        token: Option<FencingToken>,
        sent: Timestamp,
    ) -> Self {
        Self {
            manager: Arc::clone(manager),
            deadline: AtomicDeadline::new(request.deadline_from(sent)),
            request,
            token,
            release: ReleaseTracker::new(),
            released_in: OnceLock::new(),
        }
    }

    async fn send_release(&self) -> Result<Value> {
        let arguments =
            |cmd: &mut Cmd| release_arguments(cmd, &self.manager.config.prefix, &self.request);
        match self.request.mode() {
            Mode::Exclusive => {
                self.manager
                    .operate(Job::Single(Operation::Release, self.request.clone()))
                    .await
            }
            mode => {
                let conn = self.manager.connection_flushed("release").await?;
                let script = release_script(mode);
                Box::pin(self.manager.run_on(
                    &conn,
                    script,
                    "release",
                    SideEffect::Writes,
                    arguments,
                ))
                .await
            }
        }
    }

    async fn send_renewal(&self) -> Result<Value> {
        let arguments =
            |cmd: &mut Cmd| renew_arguments(cmd, &self.manager.config.prefix, &self.request);
        match self.request.mode() {
            Mode::Exclusive => {
                self.manager
                    .operate(Job::Single(Operation::Renew, self.request.clone()))
                    .await
            }
            mode => {
                let conn = self.manager.connection_flushed("renew").await?;
                Box::pin(self.manager.run_on(
                    &conn,
                    renew_script(mode),
                    "renew",
                    SideEffect::Writes,
                    arguments,
                ))
                .await
            }
        }
    }

    fn lost(&self, operation: &'static str, message: &'static str) -> leasehold_core::Error {
        ERRORS.error(ErrorKind::Lost, operation, message)
    }
}

#[async_trait]
impl Lease for RedisLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        self.token
    }

    fn valid_until(&self) -> Deadline {
        self.deadline.get()
    }

    fn keep_alive(&self) -> KeepAlive {
        KeepAlive::PerLease
    }

    async fn renew(self: Arc<Self>) -> Result<()> {
        if self.release.has_started() {
            return Err(ERRORS.released());
        }
        let sent = self.request.now();
        let answer = match self.send_renewal().await {
            // A renewal may be repeated.
            Err(error) if error::is_broken_connection(&error) => {
                Box::pin(self.send_renewal()).await.map_err(|_| error)?
            }
            answer => answer?,
        };
        match answer {
            Value::Int(1) => {
                if self
                    .deadline
                    .advance(self.request.deadline_from(sent), self.request.now())
                {
                    Ok(())
                } else {
                    Err(self.lost("renew", "the renewal's answer came after the deadline"))
                }
            }
            Value::Int(REVOKED) => Err(ERRORS.revoked()),
            Value::Int(0) if self.release.has_started() => Err(ERRORS.released()),
            Value::Int(0) => {
                self.request.loss_notifier().lost(LossReason::Replaced);
                Err(self.lost("renew", NOT_THE_HOLDER))
            }
            _ => Err(ERRORS.unexpected("renew")),
        }
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        if let Some(released) = self.release.start() {
            return Ok(released);
        }
        let run = *self.released_in.get_or_init(|| self.manager.runs());
        // Another run of the server, or another server, may have forgotten the lock before the
        // release came.
        let still_valid =
            || self.manager.runs() == run && !self.deadline.get().is_past(self.request.now());
        let mut answer = self.send_release().await;
        if let Err(error) = &answer
            && error::is_broken_connection(error)
        {
            // The second answer is judged as that of a release that may already have taken effect.
            let again = Box::pin(self.send_release());
            drop(self.release.complete(Err(error.clone()), still_valid));
            if let Ok(again) = again.await {
                answer = Ok(again);
            }
        }
        let freed = match answer {
            Ok(Value::Int(1)) => Ok(true),
            Ok(Value::Int(0)) => Ok(false),
            Ok(_) => return Err(ERRORS.unexpected("release")),
            Err(error) => Err(error),
        };
        self.release.complete(freed, still_valid)
    }

    async fn write_record(self: Arc<Self>, write: RecordWrite) -> Result<u64> {
        let released = || self.lost(record::WRITE, "the lock was released");
        if self.release.has_started() {
            return Err(released());
        }
        let written = record::write(&self.manager, &self.request, self.token, &write).await?;
        written.ok_or_else(|| {
            if self.release.has_started() {
                released()
            } else {
                self.lost(record::WRITE, NOT_THE_HOLDER)
            }
        })
    }
}

impl fmt::Debug for RedisLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLease")
            .field("request", &self.request)
            .field("token", &self.token)
            .field("deadline", &self.deadline.get())
            .field("release", &self.release)
            .finish_non_exhaustive()
    }
}

/// Releases what this request may hold. Does not report whether it held anything.
pub(crate) async fn release(
    manager: &ConnectionManager,
    conn: &Connection,
    request: &Request,
) -> Result<()> {
    let script = release_script(request.mode());
    manager
        .run_on(conn, script, "undo", SideEffect::Writes, |cmd| {
            release_arguments(cmd, &manager.config.prefix, request);
        })
        .await?;
    Ok(())
}
