//! The batcher with random callers, of whom some stop polling, leave, or are never polled again.

use std::{
    collections::HashMap,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt;
use leasehold_core::{
    ErrorKind, Result,
    backend::{
        BoxFuture,
        support::{BatchExecutor, BatchLimits, Batcher},
    },
};
use proptest::{collection::vec, prelude::*};
use tokio::{
    runtime::Builder,
    time::{sleep, timeout},
};

/// Longer than all jobs of a case take together.
const LONG: Duration = Duration::from_secs(60);
/// The time for which a stalled caller is not polled. Nobody else may wait for it.
const STALL: Duration = Duration::from_secs(3_600);

#[derive(Clone, Copy, Debug)]
enum Caller {
    Waits,
    /// Is not polled for a long time after a number of polls.
    Stalls(usize),
    /// Is dropped after a number of polls.
    Leaves(usize),
    /// Is neither polled nor dropped after a number of polls.
    IsForgotten(usize),
    /// Uses the connection for something else.
    TakesConnection,
    Flushes,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    caller: Caller,
    starts: u64,
    takes: u64,
    lane: Option<u64>,
    panics: bool,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    number: usize,
    step: Step,
}

/// A connection. A batch occupies it until it is answered, if `blocks`.
struct Connection {
    blocks: bool,
    occupied: tokio::sync::Mutex<()>,
    batches: Mutex<Vec<Vec<Job>>>,
    running: AtomicUsize,
    most_running: AtomicUsize,
}

impl Connection {
    fn new(blocks: bool) -> Self {
        Self {
            blocks,
            occupied: tokio::sync::Mutex::default(),
            batches: Mutex::default(),
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
        }
    }
}

/// Returns a job whose caller waits.
fn job(number: usize) -> Job {
    let step = Step {
        caller: Caller::Waits,
        starts: 0,
        takes: 1,
        lane: None,
        panics: false,
    };
    Job { number, step }
}

impl BatchExecutor for Connection {
    type Job = Job;
    type Answer = usize;

    fn lane(&self, job: &Job) -> Option<u64> {
        job.step.lane
    }

    fn execute(self: Arc<Self>, jobs: Vec<Job>) -> BoxFuture<'static, Vec<usize>> {
        self.batches.lock().unwrap().push(jobs.clone());
        let running = self.running.fetch_add(1, SeqCst) + 1;
        self.most_running.fetch_max(running, SeqCst);
        Box::pin(async move {
            let occupied = self.occupied.lock();
            let _occupied = if self.blocks {
                Some(occupied.await)
            } else {
                None
            };
            for job in &jobs {
                sleep(Duration::from_millis(job.step.takes)).await;
            }
            self.running.fetch_sub(1, SeqCst);
            assert!(!jobs.iter().any(|job| job.step.panics), "made to panic");
            jobs.iter().map(|job| job.number).collect()
        })
    }
}

/// Polls a number of times, and returns the output if there is one by then.
async fn polled<T>(future: &mut Pin<Box<impl Future<Output = T>>>, times: usize) -> Option<T> {
    let mut polls = 0;
    poll_fn(|cx| {
        polls += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls < times => Poll::Pending,
            Poll::Pending => Poll::Ready(None),
        }
    })
    .await
}

/// The answer to a job, if its caller has stayed.
async fn call(
    batcher: Arc<Batcher<Connection>>,
    connection: Arc<Connection>,
    job: Job,
    polled_first: Arc<Mutex<Vec<Job>>>,
) -> Option<Result<usize>> {
    sleep(Duration::from_millis(job.step.starts)).await;
    let mut run = Box::pin(async {
        polled_first.lock().unwrap().push(job);
        batcher.run(&connection, job).await
    });
    match job.step.caller {
        Caller::Waits => Some(
            timeout(LONG, run)
                .await
                .expect("a caller waits for another one"),
        ),
        Caller::Stalls(polls) => {
            if let Some(answer) = polled(&mut run, polls).await {
                return Some(answer);
            }
            sleep(STALL).await;
            Some(timeout(LONG, run).await.expect("a stalled caller hangs"))
        }
        Caller::Leaves(polls) => polled(&mut run, polls).await,
        Caller::IsForgotten(polls) => {
            // It owns what it uses, as it lives on.
            let (batcher, connection) = (Arc::clone(&batcher), Arc::clone(&connection));
            polled_first.lock().unwrap().push(job);
            let mut run = Box::pin(async move { batcher.run(&connection, job).await });
            let answer = polled(&mut run, polls).await;
            std::mem::forget(run);
            answer
        }
        Caller::TakesConnection => {
            let _occupied = timeout(LONG, connection.occupied.lock())
                .await
                .expect("a job without a caller keeps the connection");
            sleep(Duration::from_millis(job.step.takes)).await;
            None
        }
        Caller::Flushes => {
            batcher.flush(&connection);
            None
        }
    }
}

async fn check(limits: BatchLimits, steps: Vec<Step>) {
    let connection = Arc::new(Connection::new(limits.alone == 0));
    let (batcher, polled_first) = (Arc::new(Batcher::new(limits)), Arc::default());
    let tasks: Vec<_> = steps
        .iter()
        .enumerate()
        .map(|(number, step)| {
            let job = Job {
                number,
                step: *step,
            };
            let (batcher, connection) = (Arc::clone(&batcher), Arc::clone(&connection));
            tokio::spawn(call(batcher, connection, job, Arc::clone(&polled_first)))
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    // The last caller may have been forgotten, and its job still run.
    sleep(LONG).await;

    let batches = connection.batches.lock().unwrap().clone();
    let polled_first = polled_first.lock().unwrap().clone();
    let mut times = HashMap::new();
    for job in batches.iter().flatten() {
        *times.entry(job.number).or_insert(0) += 1;
    }
    // A job that is sent by its caller alone is not sent twice either, and may not be answered.
    assert!(times.values().all(|times| *times == 1), "sent twice");
    assert_eq!(times.len(), polled_first.len(), "a job was not sent");
    for lane in 0..3 {
        let of_lane = |jobs: &[Job]| -> Vec<usize> {
            let of_lane = jobs.iter().filter(|job| job.step.lane == Some(lane));
            of_lane.map(|job| job.number).collect()
        };
        assert!(batches.iter().all(|batch| of_lane(batch).len() <= 1));
        assert_eq!(of_lane(&batches.concat()), of_lane(&polled_first));
    }
    for (number, answer) in answers.into_iter().enumerate() {
        match answer {
            Some(Ok(answer)) => assert_eq!(answer, number, "the answer of another job"),
            Some(Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::Indeterminate);
                let batch = batches
                    .iter()
                    .find(|batch| batch.iter().any(|job| job.number == number))
                    .unwrap();
                assert!(batch.iter().any(|job| job.step.panics), "{error}");
            }
            None => {}
        }
    }
    let flushes = |step: &Step| matches!(step.caller, Caller::Flushes);
    if limits.alone == 0 && !steps.iter().any(flushes) {
        assert!(connection.most_running.load(SeqCst) <= limits.calls);
    }
    // The batcher still works, with an idle worker or none.
    let answer = call(batcher, connection, job(steps.len()), Arc::default()).await;
    assert_eq!(answer.unwrap().unwrap(), steps.len());
}

#[test]
fn job_that_is_polled_outside_a_runtime_blocks_no_later_one() {
    let limits = BatchLimits {
        alone: 0,
        calls: 1,
        undivided: 1,
        batch: 8,
    };
    let (batcher, connection) = (
        Arc::new(Batcher::new(limits)),
        Arc::new(Connection::new(true)),
    );
    let outside = batcher.run(&connection, job(0));
    assert!(
        catch_unwind(AssertUnwindSafe(|| outside.now_or_never())).is_err(),
        "a worker needs a runtime"
    );
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let answer = runtime.block_on(async { timeout(LONG, batcher.run(&connection, job(1))).await });
    assert_eq!(answer.unwrap().unwrap(), 1);
}

fn step(panics_alone: bool) -> impl Strategy<Value = Step> {
    let caller = prop_oneof![
        8 => Just(Caller::Waits),
        3 => (1_usize..5).prop_map(Caller::Stalls),
        3 => (1_usize..5).prop_map(Caller::Leaves),
        1 => (1_usize..4).prop_map(Caller::IsForgotten),
        2 => Just(Caller::TakesConnection),
        1 => Just(Caller::Flushes),
    ];
    let lane = prop_oneof![3 => Just(None), 1 => (0_u64..3).prop_map(Some)];
    (
        caller,
        0_u64..40,
        0_u64..6,
        lane,
        prop::bool::weighted(0.05),
    )
        .prop_map(move |(caller, starts, takes, lane, panics)| Step {
            caller,
            starts,
            takes,
            lane,
            panics: panics && panics_alone,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_caller_waits_for_one_that_is_not_polled(
        alone in 0_usize..3,
        calls in 1_usize..3,
        undivided in 1_usize..4,
        batch in 1_usize..5,
        steps in vec(step(false), 1..16),
        panicking in vec(step(true), 1..16),
    ) {
        // A job that is sent alone panics in the task of its caller.
        let steps = if alone == 0 { panicking } else { steps };
        let limits = BatchLimits {
            alone,
            calls,
            undivided,
            batch,
        };
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(check(limits, steps));
    }
}
