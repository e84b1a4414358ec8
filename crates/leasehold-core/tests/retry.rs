//! The retry loops: after a refusal, after an error, and in a new session.

use std::{
    future::{pending, ready},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use leasehold_core::{
    AcquisitionId, ClockDrift, Error, ErrorKind, LockKey, Result, TestClock, Ttl,
    backend::{
        Attempt, BoxFuture, Contention, Lease, LockBackend, Request, Waiting, acquire_with_retry,
        support::RetryBudget,
    },
    session::{attempt_with_session_retry, queue_with_session_retry},
};
use leasehold_local::MemoryBackend;
use tokio::time::Instant;

const TTL: Duration = Duration::from_secs(10);
/// No loop makes more attempts than this.
const MAX_ATTEMPTS: usize = 1_000;

fn request() -> Request {
    Request::new(LockKey::new("k").unwrap())
        .with_ttl(Ttl::try_from(TTL).unwrap())
        .with_clock(Arc::new(TestClock::new()), ClockDrift::NONE)
}

async fn lease() -> Arc<dyn Lease> {
    Arc::new(MemoryBackend::new())
        .acquire(Request::new(LockKey::new("k").unwrap()))
        .await
        .unwrap()
}

fn failure<T>(kind: ErrorKind) -> Result<T> {
    Err(Error::new(kind, "made to fail"))
}

/// One attempt, as the backend sees it.
#[derive(Clone, Copy)]
struct Seen {
    at: Instant,
    owner: AcquisitionId,
    waiting: Waiting,
}

/// The attempts that a loop makes.
#[derive(Default)]
struct Attempts(Mutex<Vec<Seen>>);

impl Attempts {
    /// Records an attempt. Returns the number of earlier ones.
    fn record(&self, request: &Request) -> usize {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push(Seen {
            at: Instant::now(),
            owner: request.owner(),
            waiting: request.waiting(),
        });
        assert!(seen.len() < MAX_ATTEMPTS, "the loop does not end");
        seen.len() - 1
    }

    fn seen(&self) -> Vec<Seen> {
        self.0.lock().unwrap().clone()
    }

    /// Returns the delays between the attempts.
    fn delays(&self) -> Vec<Duration> {
        let seen = self.seen();
        seen.windows(2)
            .map(|pair| pair[1].at - pair[0].at)
            .collect()
    }
}

/// Runs the loop over these refusals, after which the lock is granted.
async fn refused(request: Request, refusals: Vec<Contention>) -> Attempts {
    let (attempts, lease) = (Attempts::default(), lease().await);
    let refusals = Mutex::new(refusals.into_iter());
    acquire_with_retry(request, |request| {
        attempts.record(&request);
        ready(Ok(match refusals.lock().unwrap().next() {
            Some(contention) => Attempt::Contended(contention),
            None => Attempt::Granted(Arc::clone(&lease)),
        }))
    })
    .await
    .unwrap();
    attempts
}

fn contention(retry_after: Option<u64>, wake: Option<u64>) -> Contention {
    Contention {
        retry_after: retry_after.map(Duration::from_millis),
        wake: wake.map(|millis| -> BoxFuture<'static, ()> {
            // The sleep begins when the future is first polled.
            Box::pin(async move { tokio::time::sleep(Duration::from_millis(millis)).await })
        }),
        ..Contention::default()
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_notified_waiter_is_served_in_order() {
    let cases = [
        (contention(None, None), 100, false),
        (contention(Some(7), None), 7, false),
        (contention(None, Some(5)), 5, true),
        (contention(Some(7), Some(5)), 5, true),
        (contention(Some(7), Some(9)), 7, false),
    ];
    let (refusals, expected): (Vec<_>, Vec<_>) = cases
        .into_iter()
        .map(|(refusal, millis, in_order)| (refusal, (Duration::from_millis(millis), in_order)))
        .unzip();
    let attempts = refused(request(), refusals).await;
    let in_order = attempts.seen()[1..]
        .iter()
        .map(|seen| seen.waiting.in_order)
        .collect::<Vec<_>>();
    assert_eq!(
        attempts
            .delays()
            .into_iter()
            .zip(in_order)
            .collect::<Vec<_>>(),
        expected
    );
}

#[tokio::test(start_paused = true)]
async fn waiter_yields_at_its_first_attempt_only() {
    let request = request().with_waiting(|waiting| waiting.yields = true);
    let refusals = vec![contention(Some(1), None), contention(Some(1), None)];
    let seen = refused(request.clone(), refusals).await.seen();
    assert!(seen.iter().all(|seen| seen.waiting.keeps_waiting));
    assert!(seen.iter().all(|seen| seen.owner == request.owner()));
    let yields: Vec<_> = seen.iter().map(|seen| seen.waiting.yields).collect();
    assert_eq!(yields, [true, false, false]);
}

#[tokio::test(start_paused = true)]
async fn only_an_unknown_outcome_needs_a_new_owner() {
    for (kind, is_new) in [
        (ErrorKind::Unavailable, false),
        (ErrorKind::Indeterminate, true),
    ] {
        let (attempts, lease) = (Attempts::default(), lease().await);
        acquire_with_retry(request(), |request| {
            ready(match attempts.record(&request) {
                0 => failure(kind),
                _ => Ok(Attempt::Granted(Arc::clone(&lease))),
            })
        })
        .await
        .unwrap();
        let seen = attempts.seen();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].owner != seen[1].owner, is_new, "{kind:?}");
        assert_eq!(seen[0].waiting.id, seen[1].waiting.id, "it is one waiter");
    }
}

#[tokio::test(start_paused = true)]
async fn errors_are_retried_with_pauses_for_one_ttl() {
    let attempts = Attempts::default();
    let error = acquire_with_retry(request(), |request| {
        attempts.record(&request);
        ready(failure(ErrorKind::Unavailable))
    })
    .await
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let delays = attempts.delays();
    assert!(delays.iter().all(|delay| !delay.is_zero()), "{delays:?}");
    let total: Duration = delays.iter().sum();
    assert!(
        total >= TTL && total <= TTL + RetryBudget::LONGEST_PAUSE,
        "{total:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn errors_that_no_retry_cures_are_returned_at_once() {
    for kind in [ErrorKind::Denied, ErrorKind::InvalidInput] {
        let attempts = Attempts::default();
        let error = acquire_with_retry(request(), |request| {
            attempts.record(&request);
            ready(failure(kind))
        })
        .await
        .unwrap_err();
        assert_eq!((error.kind(), attempts.seen().len()), (kind, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn cancellation_ends_every_kind_of_wait() {
    let waits: [fn() -> Contention; 3] = [
        || contention(Some(u64::from(u32::MAX)), None),
        || Contention {
            wake: Some(Box::pin(pending())),
            ..Contention::default()
        },
        || Contention {
            retry_after: Some(Duration::from_secs(3600)),
            wake: Some(Box::pin(pending())),
            ..Contention::default()
        },
    ];
    for wait in waits {
        let (request, attempts) = (request(), Attempts::default());
        let begun = Instant::now();
        let waiting = acquire_with_retry(request.clone(), |request| {
            attempts.record(&request);
            ready(Ok(Attempt::Contended(wait())))
        });
        let cancelling = async {
            tokio::time::sleep(Duration::from_millis(3)).await;
            request.cancel();
        };
        let (ended, ()) = tokio::join!(waiting, cancelling);
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(attempts.seen().len(), 1);
        assert_eq!(begun.elapsed(), Duration::from_millis(3), "in paused time");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_is_repeated_in_a_few_new_sessions() {
    for ends in 0..=3 {
        let attempts = Attempts::default();
        let ended = attempt_with_session_retry(request(), |request| {
            ready(match attempts.record(&request) {
                number if number < ends => failure(ErrorKind::Lost),
                number => Ok(number),
            })
        })
        .await;
        assert_eq!(ended.unwrap(), ends);
        let mut owners: Vec<_> = attempts.seen().iter().map(|seen| seen.owner).collect();
        owners.sort_unstable();
        owners.dedup();
        assert_eq!(owners.len(), ends + 1, "each session has a new owner");
    }
    let attempts = Attempts::default();
    let error = attempt_with_session_retry(request(), |request| {
        attempts.record(&request);
        ready(failure::<()>(ErrorKind::Lost))
    })
    .await
    .unwrap_err();
    assert_eq!(
        (error.kind(), attempts.seen().len()),
        (ErrorKind::Unavailable, 4)
    );
}

#[tokio::test(start_paused = true)]
async fn an_attempt_repeats_no_other_error() {
    for kind in [ErrorKind::Unavailable, ErrorKind::Denied] {
        let attempts = Attempts::default();
        let error = attempt_with_session_retry(request(), |request| {
            attempts.record(&request);
            ready(failure::<()>(kind))
        })
        .await
        .unwrap_err();
        assert_eq!((error.kind(), attempts.seen().len()), (kind, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_survives_sessions_that_end_after_long_waits() {
    const SESSIONS: usize = 20;
    let (attempts, lease) = (Attempts::default(), lease().await);
    let begun = Instant::now();
    let queueing = queue_with_session_retry(request(), |request| {
        let (number, lease) = (attempts.record(&request), Arc::clone(&lease));
        async move {
            if number == SESSIONS {
                return Ok(lease);
            }
            request.set_contended();
            tokio::time::sleep(RetryBudget::LONGEST_PAUSE * 2).await;
            failure(ErrorKind::Lost)
        }
    });
    queueing.await.unwrap();
    assert_eq!(attempts.seen().len(), SESSIONS + 1);
    // Each fault is the first one, so the next session is opened without a pause.
    assert_eq!(
        begun.elapsed(),
        RetryBudget::LONGEST_PAUSE * 2 * SESSIONS as u32
    );
}

#[tokio::test(start_paused = true)]
async fn sessions_that_end_at_once_end_the_wait_after_a_ttl() {
    // A short wait, and one that no answer interrupted, do not count as undisturbed.
    for (contended, waited) in [
        (false, Duration::ZERO),
        (true, Duration::ZERO),
        (false, RetryBudget::LONGEST_PAUSE * 2),
    ] {
        let attempts = Attempts::default();
        let error = queue_with_session_retry(request(), |request| {
            let number = attempts.record(&request);
            async move {
                if contended && number == 0 {
                    request.set_contended();
                }
                tokio::time::sleep(waited).await;
                failure(ErrorKind::Lost)
            }
        })
        .await
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let delays = attempts.delays();
        let at_once = delays.iter().take_while(|delay| **delay == waited).count();
        assert_eq!(at_once, 3, "the number of retries without a pause");
        let total: Duration = delays.iter().sum::<Duration>() + waited;
        assert!(
            total >= TTL && total <= TTL + (waited + RetryBudget::LONGEST_PAUSE) * 2,
            "{total:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_entered_again_by_a_new_owner_that_yields_not() {
    for kind in [ErrorKind::Lost, ErrorKind::Unavailable] {
        let (attempts, lease) = (Attempts::default(), lease().await);
        let request = request().with_waiting(|waiting| waiting.yields = true);
        queue_with_session_retry(request, |request| {
            ready(match attempts.record(&request) {
                0 => failure(kind),
                _ => Ok(Arc::clone(&lease)),
            })
        })
        .await
        .unwrap();
        let seen = attempts.seen();
        assert!(seen.iter().all(|seen| seen.waiting.keeps_waiting));
        assert_ne!(seen[0].owner, seen[1].owner);
        assert_eq!(
            (seen[0].waiting.yields, seen[1].waiting.yields),
            (true, false)
        );
        // Only the end of a session is retried without a pause.
        assert_eq!(
            attempts.delays()[0].is_zero(),
            kind == ErrorKind::Lost,
            "{kind:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_queue_is_not_entered_again() {
    let (request, attempts) = (request(), Attempts::default());
    let error = queue_with_session_retry(request.clone(), |asked| {
        attempts.record(&asked);
        request.cancel();
        ready(failure(ErrorKind::Unavailable))
    })
    .await
    .unwrap_err();
    assert_eq!(
        (error.kind(), attempts.seen().len()),
        (ErrorKind::Cancelled, 1)
    );
}
