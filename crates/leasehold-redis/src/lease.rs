//! [`RedisLease`]: one grant.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use leasehold_core::{
    Deadline, ErrorKind, FencingToken, LossReason, Mode, Released, Result, Timestamp,
    backend::{AtomicDeadline, KeepAlive, Lease, Request, async_trait, support::ReleaseTracker},
};
use redis::{Cmd, Value};

use crate::{
    commands::Operation,
    conn::Conn,
    connection::Link,
    error::{self, Effect},
    keys::{Keys, Kind},
    scripts::{self, Script},
    value::Holder,
};

pub(crate) struct RedisLease {
    link: Arc<Link>,
    request: Request,
    token: Option<FencingToken>,
    deadline: AtomicDeadline,
    release: ReleaseTracker,
    /// In which run of the server the release was first sent; see [`Link::runs`].
    released_in: OnceLock<u64>,
}

impl RedisLease {
    pub(crate) fn new(
        link: &Arc<Link>,
        request: Request,
        token: Option<FencingToken>,
        sent: Timestamp,
    ) -> Self {
        Self {
            link: Arc::clone(link),
            deadline: AtomicDeadline::new(request.deadline_from(sent)),
            request,
            token,
            release: ReleaseTracker::new(),
            released_in: OnceLock::new(),
        }
    }

    async fn send_release(&self) -> Result<Value> {
        let arguments =
            |cmd: &mut Cmd| release_arguments(cmd, &self.link.config.prefix, &self.request);
        match self.request.mode() {
            Mode::Exclusive => self.link.operate(Operation::Release, &self.request).await,
            mode => {
                let live = self.link.live_in_order("release").await?;
                let script = release_script(mode);
                Box::pin(
                    self.link
                        .run_on(&live, script, "release", Effect::Writes, arguments),
                )
                .await
            }
        }
    }

    async fn send_renewal(&self) -> Result<Value> {
        let arguments =
            |cmd: &mut Cmd| renew_arguments(cmd, &self.link.config.prefix, &self.request);
        match self.request.mode() {
            Mode::Exclusive => self.link.operate(Operation::Renew, &self.request).await,
            mode => {
                let live = self.link.live_in_order("renew").await?;
                Box::pin(self.link.run_on(
                    &live,
                    renew_script(mode),
                    "renew",
                    Effect::Writes,
                    arguments,
                ))
                .await
            }
        }
    }

    fn lost(&self, message: &'static str) -> leasehold_core::Error {
        error::plain(ErrorKind::Lost, "renew", message)
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
            return Err(self.lost("it was released"));
        }
        let sent = self.request.now();
        let answer = match self.send_renewal().await {
            // Once more: a renewal may be repeated.
            Err(error) if error::broke(&error) => {
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
                    Err(self.lost("the renewal's answer came after the deadline"))
                }
            }
            Value::Int(0) if self.release.has_started() => Err(self.lost("it was released")),
            Value::Int(0) => {
                self.request.loss_notifier().lost(LossReason::Replaced);
                Err(self.lost("the server no longer knows us as the holder"))
            }
            _ => Err(error::protocol("renew")),
        }
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        if let Some(outcome) = self.release.start() {
            return Ok(outcome);
        }
        let run = *self.released_in.get_or_init(|| self.link.runs());
        // Another run of the server, or another server, may have forgotten the lock before the
        // release came.
        let still_valid =
            || self.link.runs() == run && !self.deadline.get().is_past(self.request.now());
        let mut answer = self.send_release().await;
        if let Err(error) = &answer
            && error::broke(error)
        {
            // Once more. What comes now is judged as the answer to a release that may have worked
            // already.
            let again = Box::pin(self.send_release());
            drop(self.release.complete(Err(error.clone()), still_valid));
            if let Ok(again) = again.await {
                answer = Ok(again);
            }
        }
        let freed = match answer {
            Ok(Value::Int(1)) => Ok(true),
            Ok(Value::Int(0)) => Ok(false),
            Ok(_) => return Err(error::protocol("release")),
            Err(error) => Err(error),
        };
        self.release.complete(freed, still_valid)
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

/// Gives back what this request may hold. Whether it did is not told.
pub(crate) async fn release(link: &Link, live: &Conn, request: &Request) -> Result<()> {
    let script = release_script(request.mode());
    link.run_on(live, script, "undo", Effect::Writes, |cmd| {
        release_arguments(cmd, &link.config.prefix, request);
    })
    .await?;
    Ok(())
}

pub(crate) fn release_script(mode: Mode) -> &'static Script {
    match mode {
        Mode::Shared => &scripts::RELEASE_SHARED,
        Mode::Permit { .. } => &scripts::RELEASE_PERMIT,
        _ => &scripts::RELEASE,
    }
}

pub(crate) fn release_arguments(cmd: &mut Cmd, prefix: &[u8], request: &Request) {
    let keys = Keys::new(prefix, request.key());
    let holder = Holder::of(request);
    match request.mode() {
        Mode::Permit { .. } => cmd
            .arg(1)
            .arg(keys.derived(Kind::Permits))
            .arg(holder.parts()),
        Mode::Shared => cmd
            .arg(1)
            .arg(keys.lock())
            .arg(holder.parts())
            .arg(keys.derived(Kind::Readers)),
        _ => cmd.arg(1).arg(keys.lock()).arg(holder.parts()),
    };
}

fn renew_script(mode: Mode) -> &'static Script {
    match mode {
        Mode::Shared => &scripts::RENEW_SHARED,
        Mode::Permit { .. } => &scripts::RENEW_PERMIT,
        _ => &scripts::RENEW,
    }
}

pub(crate) fn renew_arguments(cmd: &mut Cmd, prefix: &[u8], request: &Request) {
    let keys = Keys::new(prefix, request.key());
    let (holder, ttl) = (Holder::of(request), request.ttl().as_millis());
    match request.mode() {
        Mode::Permit { .. } => cmd
            .arg(1)
            .arg(keys.derived(Kind::Permits))
            .arg(holder.parts())
            .arg(ttl),
        Mode::Shared => cmd
            .arg(1)
            .arg(keys.lock())
            .arg(holder.parts())
            .arg(ttl)
            .arg(keys.derived(Kind::Readers)),
        _ => cmd.arg(1).arg(keys.lock()).arg(holder.parts()).arg(ttl),
    };
}
