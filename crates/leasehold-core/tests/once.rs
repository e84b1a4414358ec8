//! Work that runs once per occurrence, as replicas see it.

#[macro_use]
mod support;

use std::{
    fmt,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use leasehold_core::{
    Capabilities, Error, ErrorKind, LockClient, Records, Released, Result, TestClock,
    backend::{
        Attempt, Lease, LockBackend, RecordRead, RecordReading, RecordWrite, Request, async_trait,
    },
    once::{Every, Missed, Occurrence, Retry, Run, RunState, Schedule, Turn},
};
use leasehold_local::MemoryBackend;
use support::{secs, settle, two_processes};

const PERIOD: Duration = Duration::from_secs(10);

/// Returns a schedule whose first occurrence is 5 s ahead.
fn soon() -> Every {
    let anchor = SystemTime::now() + PERIOD / 2;
    Every::new(PERIOD).unwrap().with_anchor(anchor)
}

/// The answers of the backend of these tests.
#[derive(Debug, Default)]
struct Script {
    /// How many writes are answered properly before all others fail with this kind.
    writes: Mutex<Option<(usize, ErrorKind)>>,
    /// How many locks were asked for.
    acquisitions: AtomicUsize,
}

/// A backend in memory whose writes of records fail.
#[derive(Debug)]
struct Scripted {
    inner: Arc<MemoryBackend>,
    records: Records,
    script: Arc<Script>,
}

impl Scripted {
    fn client(records: Records) -> (LockClient, Arc<Script>) {
        let clock = Arc::new(TestClock::new());
        let script = Arc::new(Script::default());
        let backend = Self {
            inner: Arc::new(MemoryBackend::with_clock(clock.clone())),
            records,
            script: Arc::clone(&script),
        };
        let client = LockClient::builder(backend).with_clock(clock).build();
        (client, script)
    }
}

impl fmt::Display for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("scripted")
    }
}

#[async_trait]
impl LockBackend for Scripted {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.inner.capabilities();
        capabilities.backend = "scripted";
        capabilities.records = self.records;
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        self.script.acquisitions.fetch_add(1, SeqCst);
        Ok(match Arc::clone(&self.inner).try_acquire(request).await? {
            Attempt::Granted(lease) => Attempt::Granted(Arc::new(ScriptedLease {
                inner: lease,
                script: Arc::clone(&self.script),
            })),
            contended => contended,
        })
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        Arc::clone(&self.inner).read_record(read).await
    }
}

#[derive(Debug)]
struct ScriptedLease {
    inner: Arc<dyn Lease>,
    script: Arc<Script>,
}

#[async_trait]
impl Lease for ScriptedLease {
    forward_lease_state!(inner);

    async fn renew(self: Arc<Self>) -> Result<()> {
        // The lease ends, so that a write is not repeated for ever.
        if self.script.writes.lock().unwrap().is_some() {
            return Err(Error::new(ErrorKind::Unavailable, "made to fail"));
        }
        Arc::clone(&self.inner).renew().await
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        Arc::clone(&self.inner).release().await
    }

    async fn write_record(self: Arc<Self>, write: RecordWrite) -> Result<u64> {
        let refused = match &mut *self.script.writes.lock().unwrap() {
            Some((0, kind)) => Some(*kind),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        };
        match refused {
            Some(kind) => Err(Error::new(kind, "made to fail")),
            None => Arc::clone(&self.inner).write_record(write).await,
        }
    }
}

type Failure = std::io::Error;

#[tokio::test(start_paused = true)]
async fn replicas_that_serve_run_each_occurrence_once() {
    let (one, other) = two_processes();
    let ran = Arc::new(Mutex::new(Vec::new()));
    let schedule = soon();
    let serving: Vec<_> = [one, other]
        .into_iter()
        .map(|client| {
            let ran = Arc::clone(&ran);
            let once = client.once("report").with_schedule(schedule);
            tokio::spawn(async move {
                once.serve_with(|run: Run| {
                    ran.lock().unwrap().push(run.occurrence().clone());
                    async { Ok::<_, Failure>(()) }
                })
                .await
            })
        })
        .collect();
    tokio::time::sleep(PERIOD * 5).await;
    for serving in serving {
        serving.abort();
    }
    let ran = ran.lock().unwrap().clone();
    let instants: Vec<SystemTime> = ran
        .iter()
        .map(|occurrence| match occurrence {
            Occurrence::At(at) => *at,
            Occurrence::Named(name) => panic!("{name} was not asked for"),
        })
        .collect();
    assert!(instants.len() >= 4, "{instants:?}");
    for pair in instants.windows(2) {
        assert_eq!(pair[1].duration_since(pair[0]).unwrap(), PERIOD);
    }
}

#[tokio::test(start_paused = true)]
async fn due_occurrence_runs_on_one_replica_alone() {
    let (one, other) = two_processes();
    let schedule = soon();
    let turn = |client: &LockClient| {
        let once = client
            .once("report")
            .with_schedule(schedule)
            .with_grace(Duration::ZERO)
            .with_early(PERIOD * 3 / 5);
        tokio::spawn(async move { once.run_due_with(async |_| Ok::<_, Failure>("ran")).await })
    };
    // Both wait for the first occurrence, which is near.
    let turns = [turn(&one), turn(&other)];
    let mut ran = 0;
    for turn in turns {
        match turn.await.unwrap().unwrap() {
            Turn::Ran(_) => ran += 1,
            Turn::NotDue(Some(_)) => {}
            turn => panic!("{turn:?}"),
        }
    }
    assert_eq!(ran, 1);
    let history = one.once("report").history().await.unwrap();
    assert_eq!(history.runs.len(), 1, "{history:#?}");
    assert_eq!(history.runs[0].state, RunState::Ok);
    let through = history.decided_through.unwrap();
    assert_eq!(history.runs[0].occurrence, Occurrence::At(through));
    assert_eq!(history.schedule, Some(schedule.text()));
}

#[tokio::test(start_paused = true)]
async fn standby_takes_over_from_a_dropped_runner() {
    let (one, other) = two_processes();
    let once = one.once("invoices");
    let runner = tokio::spawn(async move {
        once.run_with("2031-04", |_| pending::<Result<(), Failure>>())
            .await
    });
    settle().await;
    let once = other.once("invoices");
    let standby = tokio::spawn(async move {
        once.run_with("2031-04", async |run: Run| Ok::<_, Failure>(run.attempt()))
            .await
    });
    settle().await;
    assert!(!standby.is_finished(), "the runner has the lock");
    runner.abort();
    let turn = standby.await.unwrap().unwrap();
    assert!(matches!(turn, Turn::Ran(2)), "{turn:?}");
    let run = one.once("invoices").history().await.unwrap().runs.remove(0);
    assert_eq!((run.crashes, run.state), (1, RunState::Ok));
}

#[tokio::test(start_paused = true)]
async fn standby_leaves_when_the_run_is_decided() {
    let (one, other) = two_processes();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let once = one.once("invoices");
    let runner = tokio::spawn(async move {
        once.run_with("2031-04", |_| async { Ok::<_, Failure>(ended.await) })
            .await
    });
    settle().await;
    let once = other.once("invoices");
    let standby = tokio::spawn(async move {
        once.run_with("2031-04", async |_| Ok::<_, Failure>(()))
            .await
    });
    settle().await;
    end.send(()).unwrap();
    let turn = standby.await.unwrap().unwrap();
    let Turn::Decided(Some(run)) = turn else {
        panic!("{turn:?}");
    };
    assert_eq!(run.state, RunState::Ok);
    assert!(matches!(runner.await.unwrap().unwrap(), Turn::Ran(_)));
}

#[tokio::test(start_paused = true)]
async fn one_attempt_while_another_runs_is_busy() {
    let (one, other) = two_processes();
    let once = one.once("invoices");
    let runner = tokio::spawn(async move {
        once.run_with("2031-04", |_| pending::<Result<(), Failure>>())
            .await
    });
    settle().await;
    let once = other.once("invoices").with_wait(Duration::ZERO);
    let turn = once.run("2031-04", async |_| Ok::<_, Failure>(())).await;
    assert!(matches!(turn, Ok(Turn::Busy)), "{turn:?}");
    runner.abort();
}

#[tokio::test(start_paused = true)]
async fn failures_and_overtime_are_recorded_with_their_notes() {
    let (client, _) = Scripted::client(Records::UntilDataLoss);
    let once = client.once("invoices").with_at_most(PERIOD);
    let turn = once
        .run("a", async |_| Err::<(), _>(Failure::other("out of paper")))
        .await;
    assert!(matches!(turn, Ok(Turn::Failed(_))), "{turn:?}");
    let turn = once
        .run("b", async |run: Run| {
            run.note("half of them");
            pending::<Result<(), Failure>>().await
        })
        .await;
    assert!(matches!(turn, Ok(Turn::Overtime)), "{turn:?}");
    let runs = once.history().await.unwrap().runs;
    let shown: Vec<_> = runs
        .iter()
        .map(|run| (run.state, run.note.as_deref()))
        .collect();
    assert_eq!(
        shown,
        [
            (RunState::Overtime, Some("half of them")),
            (RunState::Failed, Some("out of paper"))
        ]
    );
    assert!(runs[0].token > runs[1].token && runs[1].token.is_some());
    assert_eq!(runs[0].ended, runs[0].began.map(|began| began + PERIOD));
}

#[tokio::test(start_paused = true)]
async fn failed_work_is_begun_again_as_the_policy_says() {
    let (client, _) = Scripted::client(Records::UntilDataLoss);
    let retry = Retry {
        failures: 1,
        ..Retry::default()
    };
    let once = client.once("invoices").with_retry(retry);
    let fails = async |_| Err::<(), _>(Failure::other("out of paper"));
    assert!(matches!(once.run("a", fails).await, Ok(Turn::Failed(_))));
    let turn = once.run("a", fails).await;
    let Ok(Turn::NotYet(wait)) = turn else {
        panic!("{turn:?}");
    };
    tokio::time::sleep(wait).await;
    assert!(matches!(once.run("a", fails).await, Ok(Turn::Failed(_))));
    assert!(matches!(once.run("a", fails).await, Ok(Turn::Decided(_))));
}

#[tokio::test(start_paused = true)]
async fn work_begins_only_after_a_confirmed_claim() {
    let (client, script) = Scripted::client(Records::UntilDataLoss);
    *script.writes.lock().unwrap() = Some((0, ErrorKind::Indeterminate));
    let once = client.once("invoices").with_ttl(secs(5));
    let turn = once
        .run("a", async |_| -> Result<(), Failure> {
            panic!("the claim is not confirmed")
        })
        .await;
    let error = turn.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Indeterminate | ErrorKind::Lost),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn complete_work_whose_end_is_not_recorded_is_indeterminate() {
    let (client, script) = Scripted::client(Records::UntilDataLoss);
    *script.writes.lock().unwrap() = Some((1, ErrorKind::Indeterminate));
    let once = client.once("invoices").with_ttl(secs(5));
    let turn = once.run("a", async |_| Ok::<_, Failure>(())).await;
    let error = turn.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Indeterminate);
    assert!(error.to_string().contains("may run again"), "{error}");
    // The next replica treats it as a crash.
    *script.writes.lock().unwrap() = None;
    let turn = once
        .run("a", async |run: Run| Ok::<_, Failure>(run.attempt()))
        .await;
    assert!(matches!(turn, Ok(Turn::Ran(2))), "{turn:?}");
}

#[tokio::test(start_paused = true)]
async fn backend_without_records_is_refused_before_a_lock() {
    let (client, script) = Scripted::client(Records::None);
    let once = client.once("report").with_schedule(soon());
    let work = async |_| Ok::<_, Failure>(());
    for error in [
        once.run_due(work).await.unwrap_err(),
        once.run("a", work).await.unwrap_err(),
        once.serve(work).await.unwrap_err(),
        once.history().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.backend(), Some("scripted"));
    }
    assert_eq!(script.acquisitions.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn record_of_another_program_is_a_conflict_and_stays() {
    let (client, _) = Scripted::client(Records::UntilDataLoss);
    let guard = client.mutex("report").lock().await.unwrap();
    guard.write_record("10.0.0.7:8080").await.unwrap();
    guard.release().await.unwrap();
    let once = client.once("report").with_schedule(soon());
    let error = once.run_due(async |_| Ok::<_, Failure>(())).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("`report`"), "{error}");
    let record = client.record("report").await.unwrap().unwrap();
    assert_eq!(record.value, b"10.0.0.7:8080");
}

#[tokio::test(start_paused = true)]
async fn invalid_options_are_refused_before_anything_is_sent() {
    let (client, script) = Scripted::client(Records::UntilDataLoss);
    let work = async |_| Ok::<_, Failure>(());
    let once = client.once("report");
    let refused = [
        once.clone().with_history(0).run_due(work).await,
        once.clone()
            .with_missed(Missed::All { limit: 0 })
            .run_due(work)
            .await,
        once.run(SystemTime::now() + Duration::from_nanos(1), work)
            .await,
        client.once("").run_due(work).await,
    ];
    for turn in refused {
        assert_eq!(turn.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let error = once.serve(work).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("set a schedule"), "{error}");
    assert_eq!(script.acquisitions.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn unused_name_has_an_empty_history() {
    let (client, _) = Scripted::client(Records::UntilDataLoss);
    let history = client.once("report").history().await.unwrap();
    assert_eq!(history.decided_through, None);
    assert!(history.runs.is_empty());
}

#[tokio::test(start_paused = true)]
async fn serving_ends_when_the_client_closes() {
    let (client, _) = Scripted::client(Records::UntilDataLoss);
    let once = client.once("report").with_schedule(soon());
    let serving =
        tokio::spawn(async move { once.serve_with(|_| async { Ok::<_, Failure>(()) }).await });
    settle().await;
    client.close().await.unwrap();
    let error = serving.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}
