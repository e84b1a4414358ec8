//! [`ClientContext`]: the parts of a client that its leases and its operations need.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use tokio::{runtime::Handle, sync::Notify, task::coop::unconstrained, time::timeout};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use crate::{
    backend::{
        capability::{Capabilities, Restart},
        contract::LockBackend,
        lease::BoxFuture,
        request::RequestContext,
    },
    error::{Error, ErrorKind, Result},
    panics::contain,
    runtime,
};

/// Acquisitions wait while this many operations run in the background. A backend that answers stays
/// far below it, and this many operations need little memory and few descriptors.
const MAX_IN_BACKGROUND: usize = 1024;

/// The backend, the runtime and the tasks of a client. It lives as long as the client or a guard.
#[derive(Debug)]
pub(crate) struct ClientContext {
    pub(crate) backend: Arc<dyn LockBackend>,
    /// The capabilities when the client was built, which may be provisional.
    pub(crate) capabilities: Capabilities,
    pub(crate) requests: Arc<RequestContext>,
    runtime: OnceLock<Handle>,
    /// Whether that runtime has a timer. Determined once.
    has_timer: OnceLock<bool>,
    background_releases: Arc<BackgroundReleases>,
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the renewal task is to end.
    pub(crate) renewals_stopped: CancellationToken,
    next_hold: AtomicU64,
}

impl ClientContext {
    pub(crate) fn new(
        backend: Arc<dyn LockBackend>,
        capabilities: Capabilities,
        requests: RequestContext,
    ) -> Self {
        Self {
            backend,
            runtime: runtime_of(&capabilities).map_or_else(OnceLock::new, OnceLock::from),
            capabilities,
            requests: Arc::new(requests),
            has_timer: OnceLock::new(),
            background_releases: Arc::default(),
            tasks: TaskTracker::new(),
            renewals_stopped: CancellationToken::new(),
            next_hold: AtomicU64::new(0),
        }
    }

    pub(crate) fn next_hold_id(&self) -> u64 {
        self.next_hold.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.requests.closing.is_cancelled()
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, "the client is closed; create a new one")
            .with_backend(self.capabilities.backend)
    }

    /// Returns the error of an acquisition if the client is closed or drains.
    pub(crate) fn refusal(&self) -> Option<Error> {
        if self.is_closed() {
            return Some(self.closed());
        }
        self.requests.draining.is_cancelled().then(|| {
            Error::new(
                ErrorKind::Closed,
                "the client drains and acquires no new locks; create a new one",
            )
            .with_backend(self.capabilities.backend)
        })
    }

    pub(crate) fn check_usable(&self) -> Result<()> {
        if self.is_closed() {
            return Err(self.closed());
        }
        self.check_runtime()
    }

    pub(crate) fn check_runtime(&self) -> Result<()> {
        let here = runtime::current()?;
        let ours = self.runtime.get_or_init(|| here.clone());
        if ours.id() != here.id() {
            return Err(Error::new(
                ErrorKind::WrongRuntime,
                "this client belongs to another tokio runtime, on which it was created or first used, and where its connection and \
                 its renewals live; create a client per runtime",
            ));
        }
        if !*self.has_timer.get_or_init(runtime::has_timer) {
            return Err(runtime::without_timer());
        }
        Ok(())
    }

    /// Drives an operation to completion in the background, if the client's runtime is alive. It
    /// never panics or blocks, and may be called outside of the runtime.
    ///
    /// On the client's runtime the operation is first polled once in place, so that a backend which
    /// answers at once leaves no task behind. A backend in this process is polled on any thread, so
    /// that its locks are free at once even if the runtime has ended.
    pub(crate) fn in_background(&self, operation: impl Future<Output = ()> + Send + 'static) {
        let mut operation: BoxFuture<'static, ()> = Box::pin(self.tasks.track_future(operation));
        let here = Handle::try_current().ok();
        let ours = self.runtime.get();
        // A second panic during a panic would abort the process.
        let on_ours = || here.is_some_and(|here| ours.is_some_and(|ours| ours.id() == here.id()));
        if !std::thread::panicking() && (is_in_this_process(&self.capabilities) || on_ours()) {
            // The backend may spawn tasks, so the runtime is entered.
            let poll = || {
                let _entered = ours.map(Handle::enter);
                poll_once(operation)
            };
            match catch_unwind(AssertUnwindSafe(poll)) {
                Ok(None) => return,
                Ok(Some(rest)) => operation = rest,
                Err(_panic) => {
                    contain(|| {
                        tracing::error!(
                            target: "leasehold",
                            backend = self.capabilities.backend,
                            "the backend panicked in the background; a lock that was to be released expires"
                        );
                    });
                    return;
                }
            }
        }
        let counted = self.background_releases.enter();
        self.spawn(async move {
            operation.await;
            drop(counted);
        });
    }

    /// Runs a task that `LockClient::close` stops and waits for.
    pub(crate) fn spawn_tracked(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(self.tasks.track_future(task));
    }

    /// Waits until there is room for another operation in the background, for at most `limit`.
    pub(crate) async fn room_in_background(&self, limit: Option<Duration>) {
        match limit {
            _ if self.background_releases.has_room() => {}
            Some(limit) => drop(timeout(limit, self.background_releases.room()).await),
            None => self.background_releases.room().await,
        }
    }

    /// Returns a token for an operation that is polled in place. Closing waits until it is dropped.
    pub(crate) fn under_way(&self) -> TaskTrackerToken {
        self.tasks.token()
    }

    /// Runs a task that `LockClient::close` does not wait for.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = self.runtime.get() {
            drop(runtime.spawn(work));
        }
    }
}

impl Drop for ClientContext {
    fn drop(&mut self) {
        self.renewals_stopped.cancel();
    }
}

/// Returns the runtime of the backend's connection. A backend in this process has none.
fn runtime_of(capabilities: &Capabilities) -> Option<Handle> {
    Handle::try_current()
        .ok()
        .filter(|_| !is_in_this_process(capabilities))
}

/// Returns whether the backend is in this process, because it ends with its holders.
fn is_in_this_process(capabilities: &Capabilities) -> bool {
    capabilities.restart == Restart::EndsHolders
}

/// Polls an operation once, and returns it if it is not complete. It must be polled again, with a
/// real waker.
fn poll_once(mut operation: BoxFuture<'static, ()>) -> Option<BoxFuture<'static, ()>> {
    // The task that drops a guard may have used up its tokio budget. That must not delay a release.
    let polled =
        pin!(unconstrained(operation.as_mut())).poll(&mut Context::from_waker(Waker::noop()));
    polled.is_pending().then_some(operation)
}

/// Counts the operations in the background: releases of dropped guards, and cancelled acquisitions.
/// Each of them follows an acquisition, so delaying acquisitions bounds their number.
#[derive(Debug, Default)]
struct BackgroundReleases {
    count: AtomicUsize,
    shrank: Notify,
}

impl BackgroundReleases {
    /// Counts one more operation until the returned value is dropped.
    fn enter(self: &Arc<Self>) -> Counted {
        self.count.fetch_add(1, Ordering::AcqRel);
        Counted(Arc::clone(self))
    }

    fn has_room(&self) -> bool {
        self.count.load(Ordering::Acquire) < MAX_IN_BACKGROUND
    }

    /// Waits until there is room for another operation.
    async fn room(&self) {
        loop {
            // Created before the count is read, so that no change in between is missed.
            let shrank = self.shrank.notified();
            if self.has_room() {
                return;
            }
            shrank.await;
        }
    }
}

/// Counts one operation in the background until it is dropped.
struct Counted(Arc<BackgroundReleases>);

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == MAX_IN_BACKGROUND {
            self.0.shrank.notify_waiters();
        }
    }
}
