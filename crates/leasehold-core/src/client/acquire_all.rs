//! One acquisition of several keys: all of them, or none.
//!
//! Every caller requests its keys in the order of their bytes. While it waits for a key, it holds
//! only smaller ones, so that no two callers wait for each other:
//!
//! 1. It waits for its place in the local queue of the first key, and takes those of the following
//!    keys up to the first that it would have to wait for.
//! 2. It makes one attempt for all keys that have a place. They travel in one or two requests.
//! 3. It keeps the grants before the first refusal. It releases the grants and leaves the places
//!    behind it at once.
//! 4. It waits for the refused key as [`Mutex::lock`](crate::Mutex::lock) does, and continues with
//!    the keys behind it at 1.
//!
//! If a lock is lost while later ones are waited for, all are released and requested again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    future::{FutureExt, join_all},
    stream::{FuturesUnordered, StreamExt},
};
use tokio::time::Instant;

use crate::{
    backend::{
        attempt::Attempt,
        request::{Request, RequestContext},
    },
    client::{
        acquire::{Wait, enter_queue, finish, try_once, unanswered, wait_at_backend},
        engine::{Client, Spec},
    },
    error::{Error, ErrorKind, Result},
    key::LockKey,
    lease::{
        grant::{CompleteOnDrop, Grant},
        held_lease::{HeldLease, Renewal},
        release::OwnedLease,
    },
    local_queue::Place,
    mode::Mode,
    signal::LossReason,
    telemetry::{self, AcquireTimer, Span, TracedOp},
    ttl::Ttl,
};

/// The largest number of keys. It bounds the locks that one caller holds while it waits, and the
/// requests that are sent together.
pub(crate) const MAX_KEYS: usize = 64;
/// An acquisition that loses locks this often, while it waits for others, fails.
const MAX_LOSSES: u32 = 3;
/// With manual renewal, locks that are kept while others are waited for are renewed after this part
/// of their remaining time.
const RENEW_PART: u32 = 3;
/// The least delay between two such renewals is the TTL divided by this.
const SHORTEST_PART: u32 = 20;

/// The keys, their modes and the options of locks that are acquired together.
#[derive(Clone, Debug)]
pub(crate) struct AllSpec {
    /// The keys in the order in which they are acquired. An invalid key is reported by the first
    /// acquisition.
    pub(crate) keys: Result<BTreeMap<LockKey, Mode>>,
    pub(crate) ttl: Option<Result<Ttl>>,
    pub(crate) renewal: Renewal,
    pub(crate) context: Arc<RequestContext>,
}

impl AllSpec {
    /// Returns the locks in the order in which they are acquired.
    fn locks(&self) -> Result<Vec<Spec>> {
        let keys = self.keys.as_ref().map_err(Error::clone)?;
        if keys.is_empty() || keys.len() > MAX_KEYS {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{} names were given to be locked together; give 1 to {MAX_KEYS}",
                    keys.len()
                ),
            ));
        }
        let lock = |(key, mode): (&LockKey, &Mode)| Spec {
            key: Ok(key.clone()),
            mode: *mode,
            ttl: self.ttl.clone(),
            renewal: self.renewal,
            proposal: None,
            context: Arc::clone(&self.context),
        };
        Ok(keys.iter().map(lock).collect())
    }
}

/// Waits until all locks are granted.
pub(crate) async fn acquire_all(client: &Arc<Client>, spec: &AllSpec) -> Result<Vec<OwnedLease>> {
    match acquire_all_with(client, spec, Wait::Forever).await? {
        Some(leases) => Ok(leases),
        None => unreachable!("a wait without a limit ends with a grant or an error"),
    }
}

/// Makes one attempt. Returns `None` if one of the locks is held.
pub(crate) async fn try_acquire_all(
    client: &Arc<Client>,
    spec: &AllSpec,
) -> Result<Option<Vec<OwnedLease>>> {
    acquire_all_with(client, spec, Wait::Not).await
}

/// Waits for at most `timeout`. Returns `None` if one of the locks was held until then.
pub(crate) async fn acquire_all_for(
    client: &Arc<Client>,
    spec: &AllSpec,
    timeout: Duration,
) -> Result<Option<Vec<OwnedLease>>> {
    acquire_all_with(client, spec, Wait::AtMost(timeout)).await
}

async fn acquire_all_with(
    client: &Arc<Client>,
    spec: &AllSpec,
    wait: Wait,
) -> Result<Option<Vec<OwnedLease>>> {
    // Closing waits until the guard exists or the releases of the grants have started.
    let _under_way = client.context.under_way();
    let locks = spec.locks()?;
    let waiting = AcquireTimer::begin(&client.context);
    let traced = TracedOp::of(Span::of(|| {
        tracing::debug_span!(
            target: "leasehold",
            "wait_all",
            backend = client.context.capabilities.backend,
            keys = locks.len(),
            outcome = tracing::field::Empty,
        )
    }));
    let acquired = traced
        .span
        .around(with_adapted_ttl(client, &locks, wait))
        .await;
    let outcome = match &acquired {
        Ok(Some(_)) => telemetry::GRANTED,
        _ => wait.refusal(),
    };
    traced.end(&acquired, outcome);
    waiting.end(&acquired, wait.refusal());
    acquired
}

/// Acquires with the TTL of `locks`, as a single acquisition does: a lazy backend learns at its
/// first use which TTLs its server accepts.
async fn with_adapted_ttl(
    client: &Arc<Client>,
    locks: &[Spec],
    wait: Wait,
) -> Result<Option<Vec<OwnedLease>>> {
    let is_default = locks.iter().all(|lock| lock.ttl.is_none());
    let begun = (is_default && client.capabilities().provisional).then(Instant::now);
    match (acquire_within(client, locks, wait).await, begun) {
        (Err(error), Some(begun))
            if error.kind() == ErrorKind::InvalidInput && !client.capabilities().provisional =>
        {
            acquire_within(client, locks, wait.less(begun.elapsed())).await
        }
        (acquired, _) => acquired,
    }
}

async fn acquire_within(
    client: &Arc<Client>,
    locks: &[Spec],
    wait: Wait,
) -> Result<Option<Vec<OwnedLease>>> {
    let wanted = locks
        .iter()
        .map(|lock| Ok((client.check(lock)?, lock)))
        .collect::<Result<Vec<_>>>()?;
    // As for a single acquisition: a loop must yield to other tasks.
    tokio::task::coop::consume_budget().await;
    match wait {
        Wait::Not | Wait::AtMost(Duration::ZERO) => try_all(client, &wanted).await,
        Wait::Forever => wait_for_all(client, &wanted, &Asked::default())
            .await
            .map(Some),
        Wait::AtMost(timeout) => {
            let asked = Asked::default();
            let first = requests_of(&wanted[..1])?;
            asked.set(&first);
            let waiting = wait_for_all(client, &wanted, &asked);
            match tokio::time::timeout(timeout, waiting).await {
                Ok(leases) => leases.map(Some),
                Err(_elapsed) => asked.outcome_after(client, timeout).map(|()| None),
            }
        }
    }
}

type Wanted<'a> = (Ttl, &'a Spec);

fn requests_of(wanted: &[Wanted<'_>]) -> Result<Vec<Request>> {
    let request = |(ttl, lock): &Wanted<'_>| {
        let key = lock.key.clone()?;
        let context = Arc::clone(&lock.context);
        Ok(Request::in_context(key, lock.mode, *ttl, context))
    };
    wanted.iter().map(request).collect()
}

/// Makes one attempt for each key, all at the same time.
async fn try_all(client: &Arc<Client>, wanted: &[Wanted<'_>]) -> Result<Option<Vec<OwnedLease>>> {
    let attempts = requests_of(wanted)?
        .into_iter()
        .map(|request| try_once(client, request));
    // Grants that are dropped here are released in the background.
    let answers: Result<Option<Vec<_>>> = join_all(attempts).await.into_iter().collect();
    match answers? {
        Some(grants) => finish_all(client, wanted, grants).map(Some),
        None => Ok(None),
    }
}

fn finish_all(
    client: &Client,
    wanted: &[Wanted<'_>],
    grants: Vec<Grant<'_>>,
) -> Result<Vec<OwnedLease>> {
    let leases = wanted.iter().zip(grants);
    leases
        .map(|((_, lock), grant)| finish(client, lock.renewal, grant))
        .collect()
}

/// Waits until all locks are held. Begins again if one of them is lost meanwhile.
async fn wait_for_all(
    client: &Arc<Client>,
    wanted: &[Wanted<'_>],
    asked: &Asked,
) -> Result<Vec<OwnedLease>> {
    client.context.room_in_background(None).await;
    if let Some(order) = &client.order {
        let requests = requests_of(wanted)?;
        let keys: Vec<_> = requests.iter().map(Request::key).collect();
        order.waits_for(client.context.capabilities.backend, &keys);
    }
    let mut losses = 0;
    loop {
        match hold_all(client, wanted, asked).await {
            Ok(leases) => return Ok(leases),
            Err(Ended::Failed(error)) => return Err(error),
            Err(Ended::Lost(key, reason)) => {
                losses += 1;
                if losses == MAX_LOSSES {
                    return Err(Error::new(
                        ErrorKind::Lost,
                        format!(
                            "a lock was lost {losses} times while others were waited for, at last `{key}`: {reason}; \
                             give a longer TTL"
                        ),
                    )
                    .with_backend(client.context.capabilities.backend));
                }
            }
        }
    }
}

/// Why an attempt to hold all locks ended.
enum Ended {
    Lost(LockKey, LossReason),
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Acquires one lock after the other in the order of the keys, and as many as possible together.
async fn hold_all(
    client: &Arc<Client>,
    wanted: &[Wanted<'_>],
    asked: &Asked,
) -> Result<Vec<OwnedLease>, Ended> {
    let mut held = Vec::with_capacity(wanted.len());
    while held.len() < wanted.len() {
        let rest = &wanted[held.len()..];
        let round = unless_lost(&held, attempt_in_order(client, rest, asked)).await??;
        held.extend(finish_all(client, rest, round.granted)?);
        if let (Some((request, place)), Some((_, lock))) = (round.refused, wanted.get(held.len())) {
            let waiting = wait_at_backend(client, request, place);
            let grant = unless_lost(&held, waiting).await??;
            held.push(finish(client, lock.renewal, grant)?);
        }
    }
    match held.iter().find_map(|lease| lost_already(lease.held())) {
        Some((key, reason)) => Err(Ended::Lost(key, reason)),
        None => Ok(held),
    }
}

/// The outcome of an attempt for several keys.
struct Round<'a> {
    /// The grants before the first refusal.
    granted: Vec<Grant<'a>>,
    /// The request to wait with, and its place: the first that was refused, or that failed and may
    /// be repeated, or the only one.
    refused: Option<(Request, Place)>,
}

/// Takes places in the queues of the keys, up to the first that must be waited for, and makes one
/// attempt for all of these keys together.
async fn attempt_in_order<'a>(
    client: &'a Arc<Client>,
    rest: &[Wanted<'_>],
    asked: &Asked,
) -> Result<Round<'a>> {
    let requests = requests_of(rest)?;
    asked.set(&requests);
    let mut placed = Vec::with_capacity(requests.len());
    for request in requests {
        let entering = enter_queue(client, &request);
        let place = if placed.is_empty() {
            entering.await?
        } else {
            // Nobody waits with a place whose lock is not requested yet: it would hold up other
            // tasks of this process, and among them readers that could share the lock.
            match entering.now_or_never() {
                Some(place) => place?,
                None => break,
            }
        };
        placed.push((request, place));
    }
    // A single key can be waited for at once, because no other is held up meanwhile.
    if placed.len() == 1 {
        return Ok(Round {
            granted: Vec::new(),
            refused: placed.pop(),
        });
    }
    let attempts = placed
        .into_iter()
        .map(|(request, place)| attempt(client, request, place));
    // Everything behind the first refusal is dropped when this function returns: a place that was
    // kept could close a cycle of waiters.
    let mut answers = join_all(attempts).await.into_iter();
    let mut granted = Vec::with_capacity(rest.len());
    let refused = loop {
        match answers.next() {
            Some(Answer::Granted(grant)) => granted.push(grant),
            Some(Answer::Refused(request, place)) => break Some((request, place)),
            Some(Answer::Failed(error)) => return Err(error),
            None => break None,
        }
    };
    let failure = answers.find_map(|answer| match answer {
        Answer::Failed(error) => Some(error),
        _ => None,
    });
    match failure {
        // The same attempt would fail again later.
        Some(error) => Err(error),
        None => Ok(Round { granted, refused }),
    }
}

/// The answer to one of several attempts.
enum Answer<'a> {
    Granted(Grant<'a>),
    /// The lock is held, or the attempt failed and may be repeated.
    Refused(Request, Place),
    Failed(Error),
}

async fn attempt<'a>(client: &'a Arc<Client>, request: Request, place: Place) -> Answer<'a> {
    let context = &client.context;
    let request = request.with_waiting(|waiting| waiting.yields = place.yields_to_waiters());
    let attempt = || Arc::clone(&context.backend).try_acquire(request.clone());
    let attempted = CompleteOnDrop::acquisition(context, &request, attempt).await;
    match attempted {
        Ok(Attempt::Granted(lease)) => match Grant::of(context, request, lease, Some(place)) {
            Ok(grant) => Answer::Granted(grant),
            Err(error) => Answer::Failed(error),
        },
        Ok(Attempt::Contended(_)) => {
            request.set_contended();
            Answer::Refused(request, place)
        }
        Err(error) if error.is_retryable() => {
            // A grant that this attempt may have left behind is not one of the next attempt.
            let request = if error.kind() == ErrorKind::Indeterminate {
                request.as_new_owner()
            } else {
                request
            };
            request.signal().note_fault(error, request.now());
            Answer::Refused(request, place)
        }
        Err(error) => Answer::Failed(error),
    }
}

/// Runs `work`, unless one of the held locks is lost before it ends.
async fn unless_lost<T>(held: &[OwnedLease], work: impl Future<Output = T>) -> Result<T, Ended> {
    let mut losses: FuturesUnordered<_> = held.iter().map(|lease| loss(lease.held())).collect();
    tokio::select! {
        biased;
        Some((key, reason)) = losses.next() => Err(Ended::Lost(key, reason)),
        done = work => Ok(done),
    }
}

/// Waits until a kept lock is lost. Renews it meanwhile if its owner would have to.
async fn loss(held: &Arc<HeldLease>) -> (LockKey, LossReason) {
    let shortest = held.request.ttl().as_duration() / SHORTEST_PART;
    let reason = loop {
        let renewal = async {
            match held.renewal {
                Renewal::Automatic => std::future::pending::<()>().await,
                Renewal::Manual => {
                    let pause = held.remaining() / RENEW_PART;
                    tokio::time::sleep(pause.max(shortest)).await;
                }
            }
        };
        tokio::select! {
            biased;
            ended = held.ended() => break ended.unwrap_or(LossReason::Expired),
            () = renewal => {}
        }
        // A failed renewal is repeated. A loss ends the loop.
        drop(held.renew().await);
    };
    (held.request.key().clone(), reason)
}

fn lost_already(held: &Arc<HeldLease>) -> Option<(LockKey, LossReason)> {
    Some((held.request.key().clone(), held.loss()?))
}

/// The requests of an acquisition with a time limit, from which its outcome is read when the limit
/// is reached.
#[derive(Debug, Default)]
struct Asked(Mutex<AskedState>);

#[derive(Debug, Default)]
struct AskedState {
    /// The requests of the present attempt.
    requests: Vec<Request>,
    /// Whether an earlier request was known to be refused.
    contended: bool,
}

impl Asked {
    fn set(&self, requests: &[Request]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.contended |= state.is_contended();
        state.requests = requests.to_vec();
    }

    /// Returns the error of a wait that ended after `timeout`, or `Ok` if one of the locks was
    /// known to be held.
    fn outcome_after(&self, client: &Client, timeout: Duration) -> Result<()> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.contended || state.is_contended() {
            return Ok(());
        }
        let fault = |request: &Request| Some((request.key().clone(), request.signal().fault()?));
        let failed = state.requests.iter().find_map(fault);
        let first = state
            .requests
            .first()
            .map(|first| (first.key().clone(), None));
        match failed.map(|(key, fault)| (key, Some(fault))).or(first) {
            Some((key, fault)) => Err(unanswered(client, &key, timeout, fault)),
            None => Ok(()),
        }
    }
}

impl AskedState {
    fn is_contended(&self) -> bool {
        self.requests
            .iter()
            .any(|request| request.signal().is_contended())
    }
}
