//! The acquisition of a lock: one attempt, and the wait for the next.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use leasehold_core::{
    ErrorKind, Mode, Result,
    backend::{Attempt, BoxFuture, Contention, Lease, Request, acquire_with_retry},
    quorum::VoteRequirements,
};
use redis::{Cmd, Value};

use crate::{
    backend::{POLL, RedisBackend},
    cleanup,
    commands::{self, AcquireReply, Operation, Refusal, TOKEN_LIMIT},
    config::NotificationMode,
    error::{self, ERRORS, SideEffect},
    job::Job,
    keys::{Keys, Kind, LockValue},
    lease::RedisLease,
    quorum::vote,
    waiters::{Generation, ObservedHolder},
};

/// The longest wait without a notification for a lock that never expires. Only other programs set
/// such locks.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// The longest interval between the attempts of a waiter. Each attempt renews the waiter's
/// registration, which expires after 5 s (`LIFE` in `shared/waiters.lua`), so a waiter keeps its
/// place if one request is lost or late. A process that waits for 1 000 locks sends 500 requests
/// per second.
const REFRESH: Duration = Duration::from_secs(2);

impl RedisBackend {
    /// Makes one attempt. `requirements` are those of a quorum, if this is a vote. `registered`
    /// means that an earlier attempt of this acquisition has registered it as a waiter.
    pub(crate) async fn attempt(
        &self,
        request: Request,
        requirements: Option<&VoteRequirements>,
        registered: bool,
    ) -> Result<Attempt> {
        let prefix = &self.manager.config.prefix;
        Keys::check(prefix, request.key()).map_err(in_acquire)?;
        if requirements
            .is_some_and(|requirements| requirements.token_floor.get() >= TOKEN_LIMIT - 2)
        {
            return Err(ERRORS.error(
                ErrorKind::InvalidInput,
                "acquire",
                "a token floor must stay below 2^53",
            ));
        }
        let keys = Keys::new(prefix, request.key());
        let mut before = self.manager.waiters.generation();
        let mut sent = request.now();
        let mut answer = self
            .ask(&request, requirements, &keys, registered, false)
            .await;
        let mut again = false;
        // Without pushes, a closed connection is noticed only when it is used.
        if answer.as_ref().is_err_and(error::is_broken_connection)
            && Box::pin(cleanup::undo_attempt(&self.manager, &request)).await
        {
            (before, sent, again) = (self.manager.waiters.generation(), request.now(), true);
            answer = Box::pin(self.ask(&request, requirements, &keys, registered, again)).await;
        }
        let answer = answer.and_then(|answer| AcquireReply::read(&answer, request.mode()));
        match answer {
            Ok(AcquireReply::RefusedNoInfo) => Ok(Attempt::Contended(Contention::default())),
            Ok(AcquireReply::Granted(token)) => Ok(Attempt::Granted(Arc::new(RedisLease::new(
                &self.manager,
                request,
                token,
                sent,
            )))),
            Ok(AcquireReply::Refused(refusal, left, found)) => {
                let mut contention = self.contention(&request, &keys, before, refusal, left);
                if request.waiting().keeps_waiting {
                    self.delay_notification(&mut contention, &request, found);
                }
                Ok(Attempt::Contended(contention))
            }
            Ok(AcquireReply::Mismatch { theirs }) => Err(ERRORS.error(
                ErrorKind::Conflict,
                "acquire",
                format!(
                    "`{}` is held as permit of {theirs} and was asked for as {}; use the same count everywhere",
                    request.key(),
                    request.mode()
                ),
            )),
            Err(error) => {
                if error::may_have_taken(&error) || again && request.waiting().keeps_waiting {
                    self.cleanup_queue.add(&self.manager, &request);
                }
                Err(error)
            }
        }
    }

    /// Sends one attempt. `again` means that the attempt was sent before and may have registered a
    /// waiter.
    async fn ask(
        &self,
        request: &Request,
        requirements: Option<&VoteRequirements>,
        keys: &Keys<'_>,
        registered: bool,
        again: bool,
    ) -> Result<Value> {
        let registered = registered || again && request.waiting().keeps_waiting;
        match (requirements, request.mode()) {
            (Some(requirements), Mode::Exclusive | Mode::Shared) => {
                Box::pin(vote::acquire(
                    &self.manager,
                    request,
                    requirements,
                    keys,
                    again,
                ))
                .await
            }
            (_, Mode::Exclusive) => self.exclusive(request, keys, registered).await,
            (_, Mode::Shared | Mode::Permit { .. }) => {
                let options = commands::options(request, registered);
                // Boxed, so that rare cases do not enlarge the usual future.
                Box::pin(self.acquire_by_script(request, keys, &options)).await
            }
            // The client refuses a mode that the capabilities do not have.
            _ => Err(ERRORS.unexpected("acquire")),
        }
    }

    /// Makes one exclusive attempt. The answer nil is a refusal that does not say when to retry.
    async fn exclusive(
        &self,
        request: &Request,
        keys: &Keys<'_>,
        registered: bool,
    ) -> Result<Value> {
        match self
            .manager
            .operate(Job::Single(
                Operation::Acquire { registered },
                request.clone(),
            ))
            .await?
        {
            // The refusal came from commands that neither request a notification nor register a
            // waiter. The script does both.
            Value::Nil if request.waiting().keeps_waiting || request.waiting().yields => {
                let options = commands::options(request, registered);
                Box::pin(self.acquire_by_script(request, keys, &options)).await
            }
            // Granted, but the token counter was lost.
            Value::Okay => Box::pin(self.draw_token(request, keys)).await,
            answer => Ok(answer),
        }
    }

    async fn acquire_by_script(
        &self,
        request: &Request,
        keys: &Keys<'_>,
        options: &[&str],
    ) -> Result<Value> {
        let (mode, conn) = (
            request.mode(),
            self.manager.connection_flushed("acquire").await?,
        );
        let arguments = |cmd: &mut Cmd| {
            commands::acquire_arguments(cmd, keys, request, options, conn.run_id());
        };
        let script = commands::acquire_script(mode);
        let answer = self
            .manager
            .run_on(&conn, script, "acquire", SideEffect::Writes, arguments)
            .await?;
        if let (Mode::Exclusive, Value::BulkString(_)) = (mode, &answer) {
            conn.mark_seeded(keys.slot());
        }
        Ok(answer)
    }

    /// Draws the token of a lock that is held and has no token yet.
    async fn draw_token(&self, request: &Request, keys: &Keys<'_>) -> Result<Value> {
        self.acquire_by_script(request, keys, &["draw_token"])
            .await
            .map_err(|error| match error.kind() {
                // The script has released the lock.
                ErrorKind::UnexpectedResponse => error,
                _ => ERRORS
                    .error(
                        ErrorKind::Indeterminate,
                        "acquire",
                        "the lock was taken, but its token could not be drawn",
                    )
                    .with_source(error),
            })
    }

    /// Waits until the lock is granted. `first` is the result of an attempt that was already made.
    pub(crate) async fn wait(
        &self,
        request: Request,
        first: Option<Result<Attempt>>,
    ) -> Result<Arc<dyn Lease>> {
        // The request that is registered as a waiter, so that a failed wait can withdraw it. Its
        // owner changes after an attempt of unknown outcome. The first attempt may have registered
        // the request even if it is cancelled by now and not tried again.
        let registered = matches!(first, Some(Ok(Attempt::Contended(_)))).then(|| request.clone());
        let (first, waiter) = (Mutex::new(first), Mutex::new(registered));
        let (first, waiter) = (&first, &waiter);
        let acquired = acquire_with_retry(request, |request| async move {
            let waiting = || waiter.lock().unwrap_or_else(PoisonError::into_inner);
            let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let attempt = match first {
                Some(attempt) => attempt,
                None => {
                    let registered = waiting()
                        .as_ref()
                        .is_some_and(|waiter| waiter.owner() == request.owner());
                    // A registered waiter asks in order even without a notification, because the
                    // server passes over a waiter that does not take a free lock in time.
                    self.attempt(
                        request
                            .clone()
                            .with_waiting(|waiting| waiting.in_order = registered),
                        None,
                        registered,
                    )
                    .await
                }
            };
            if let Ok(Attempt::Contended(_)) = attempt {
                *waiting() = Some(request);
            }
            attempt
        })
        .await;
        if acquired.is_err() {
            let waiter = waiter.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(request) = waiter {
                self.withdraw_waiter(&request).await;
            }
        }
        acquired
    }

    /// Removes a waiter's registration, now or as soon as the server can be reached.
    async fn withdraw_waiter(&self, request: &Request) {
        let withdrawn = match self.manager.current_connection() {
            Some(conn) => {
                cleanup::stop_waiting(&self.manager, &conn, request, LockValue::of(request))
                    .await
                    .is_ok()
            }
            None => false,
        };
        if !withdrawn {
            self.cleanup_queue.add(&self.manager, request);
        }
    }

    fn contention(
        &self,
        request: &Request,
        keys: &Keys<'_>,
        before: Generation,
        refusal: Refusal,
        left: i64,
    ) -> Contention {
        // If there is no connection, it has just broken. The generation has changed since, so the
        // waiter is notified at once.
        let pushes = self.manager.config.notifications == NotificationMode::Pushed
            && self
                .manager
                .current_connection()
                .is_none_or(|conn| conn.pushes);
        let waiters = &self.manager.waiters;
        let wake = pushes.then(|| match request.mode() {
            Mode::Shared => waiters.register([keys.lock(), keys.derived(Kind::Writers)], before),
            Mode::Permit { .. } => waiters.register([keys.derived(Kind::Permits)], before),
            _ => waiters.register([keys.lock()], before),
        });
        // A waiter that only renews its registration asks as if it had been notified, so that it
        // keeps its place in a quorum, too.
        let refresh = self
            .manager
            .config
            .fallback_poll_interval
            .unwrap_or(REFRESH);
        let wake = wake.map(|wake| {
            let (manager, waiter) = (Arc::clone(&self.manager), request.waiting().id);
            let refreshed = async move {
                if tokio::time::timeout(refresh, wake).await.is_ok() {
                    manager.notification_backoff.notified(waiter);
                }
            };
            Box::pin(refreshed) as BoxFuture<'static, ()>
        });
        // Spreads the attempts of waiters for the same deadline.
        let spread = Duration::from_micros((request.owner().as_u128() % 4_000) as u64);
        let left = u64::try_from(left).map_or(MAX_WAIT, Duration::from_millis);
        let mut retry_after = match refusal {
            // A member of a sorted set expires without a push, so its expiry is the only signal.
            Refusal::Offered | Refusal::Writers => left,
            Refusal::Held if request.mode().is_permit() => left,
            Refusal::Held => self.manager.config.fallback_poll_interval.unwrap_or(left),
        } + spread;
        if !pushes {
            retry_after = retry_after.min(POLL / 2 + spread * 8);
        }
        Contention {
            retry_after: Some(retry_after),
            last_token: None,
            wake,
        }
    }

    /// Delays the next notification if the previous ones were needless.
    fn delay_notification(
        &self,
        contention: &mut Contention,
        request: &Request,
        found: ObservedHolder,
    ) {
        let pause = self
            .manager
            .notification_backoff
            .refused(request.waiting().id, found);
        if pause.is_zero() {
            return;
        }
        let not_before = tokio::time::Instant::now() + pause;
        if let Some(wake) = contention.wake.take() {
            contention.wake = Some(Box::pin(async move {
                wake.await;
                tokio::time::sleep_until(not_before).await;
            }));
        }
    }
}

fn in_acquire(error: leasehold_core::Error) -> leasehold_core::Error {
    ERRORS.named(error, "acquire")
}
