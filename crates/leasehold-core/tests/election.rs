//! Elections, as candidates and observers see them.

#[macro_use]
mod support;

use std::{
    fmt,
    future::pending,
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use leasehold_core::{
    Capabilities, Error, ErrorKind, FencingToken, HolderRef, Inspection, Leader, Leaders,
    LockClient, LockKey, LossReason, Record, Records, Released, Result, Revocation, RevokeOutcome,
    TestClock,
    backend::{
        Attempt, Lease, LockBackend, RecordRead, RecordReading, RecordWrite, Request, async_trait,
    },
};
use leasehold_local::MemoryBackend;
use support::{secs, settle, simulated, two_processes};
use tokio::{sync::Notify, time::timeout};

/// A limit that only a hang reaches, on paused time.
const SOON: Duration = Duration::from_secs(3600);

/// Returns the value of the leader as text.
fn value(leader: Option<Leader>) -> Option<String> {
    Some(String::from_utf8(leader?.value).unwrap())
}

async fn leader(client: &LockClient) -> Option<String> {
    value(client.election("e").leader().await.unwrap())
}

async fn next(leaders: &mut Leaders) -> Option<String> {
    value(timeout(SOON, leaders.next()).await.unwrap().unwrap())
}

fn some(value: &str) -> Option<String> {
    Some(value.to_owned())
}

/// The answers of the backend of these tests.
#[derive(Debug, Default)]
struct Script {
    /// Whether the backend stores the proposals of candidates itself.
    proposals: bool,
    records: Option<Records>,
    /// How many writes of records fail, and how.
    failing_writes: Mutex<Option<(usize, ErrorKind)>>,
    /// How many reads fail.
    failing_reads: AtomicUsize,
    /// The number of times that each call yields, before and after it takes effect.
    yields: usize,
    /// The time that an acquisition takes after its grant.
    answer_takes: Duration,
    /// The calls of the backend, without inspections.
    calls: AtomicUsize,
    /// The answers of reads, the next one first. Without one, the backend answers itself.
    readings: Mutex<Vec<Option<Record>>>,
    /// Notifies the watchers of the answers in `readings`.
    changed: Arc<Notify>,
    proposed: Mutex<Vec<Option<Vec<u8>>>>,
}

/// A backend in memory with answers of its own.
#[derive(Debug)]
struct Scripted {
    inner: Arc<MemoryBackend>,
    script: Arc<Script>,
}

impl Scripted {
    fn client(script: Script) -> (LockClient, Arc<Script>) {
        let clock = Arc::new(TestClock::new());
        let script = Arc::new(script);
        let backend = Self {
            inner: Arc::new(MemoryBackend::with_clock(clock.clone())),
            script: Arc::clone(&script),
        };
        let client = LockClient::builder(backend).with_clock(clock).build();
        (client, script)
    }

    async fn way(script: &Script) {
        for _ in 0..script.yields {
            tokio::task::yield_now().await;
        }
    }

    fn asked(&self, request: &Request) {
        self.script.calls.fetch_add(1, SeqCst);
        let proposal = request.proposal().map(|proposal| proposal.to_vec());
        self.script.proposed.lock().unwrap().push(proposal);
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
        capabilities.proposals = self.script.proposals;
        if let Some(records) = self.script.records {
            capabilities.records = records;
        }
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        self.asked(&request);
        Self::way(&self.script).await;
        let attempt = Arc::clone(&self.inner).try_acquire(request).await?;
        Self::way(&self.script).await;
        Ok(match attempt {
            Attempt::Granted(inner) => Attempt::Granted(Arc::new(ScriptedLease {
                inner,
                script: Arc::clone(&self.script),
            })),
            contended => contended,
        })
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        self.asked(&request);
        Self::way(&self.script).await;
        let inner = Arc::clone(&self.inner).acquire(request).await?;
        Self::way(&self.script).await;
        tokio::time::sleep(self.script.answer_takes).await;
        let script = Arc::clone(&self.script);
        Ok(Arc::new(ScriptedLease { inner, script }))
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        self.inner.inspect(key).await
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        self.inner.revoke(holder, revocation).await
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        self.script.calls.fetch_add(1, SeqCst);
        let failing = &self.script.failing_reads;
        let fails = failing.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if fails.is_ok() {
            return Err(Error::new(ErrorKind::Unavailable, "made to fail"));
        }
        let changed = Arc::clone(&self.script.changed).notified_owned();
        Self::way(&self.script).await;
        let reading = {
            let mut readings = self.script.readings.lock().unwrap();
            // The last answer stays.
            match readings.len() {
                0 => None,
                1 => readings.first().cloned(),
                _ => Some(readings.remove(0)),
            }
        };
        if let Some(record) = reading {
            let mut reading = RecordReading::new(record);
            reading.changed = Some(Box::pin(changed));
            return Ok(reading);
        }
        let reading = Arc::clone(&self.inner).read_record(read).await;
        Self::way(&self.script).await;
        reading
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
        Arc::clone(&self.inner).renew().await
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        Scripted::way(&self.script).await;
        Arc::clone(&self.inner).release().await
    }

    async fn write_record(self: Arc<Self>, write: RecordWrite) -> Result<u64> {
        self.script.calls.fetch_add(1, SeqCst);
        if let Some((left, kind)) = &mut *self.script.failing_writes.lock().unwrap()
            && *left > 0
        {
            *left -= 1;
            return Err(Error::new(*kind, "made to fail"));
        }
        Scripted::way(&self.script).await;
        let written = Arc::clone(&self.inner).write_record(write).await;
        Scripted::way(&self.script).await;
        written
    }
}

#[tokio::test(start_paused = true)]
async fn value_is_shown_until_the_resignation() {
    let (one, other) = two_processes();
    let election = one.election("e").with_label("one");
    assert_eq!(leader(&other).await, None);
    let term = election.campaign("a").await.unwrap();
    let seen = other.election("e").leader().await.unwrap().unwrap();
    assert_eq!(
        (seen.value.as_slice(), seen.label.as_str()),
        (b"a".as_slice(), "one")
    );
    assert_eq!(seen.token, term.fencing_token());
    term.proclaim("b").await.unwrap();
    assert_eq!(leader(&other).await, some("b"));
    let info = term.info();
    info.proclaim("c").await.unwrap();
    assert_eq!(leader(&other).await, some("c"));
    assert_eq!(term.resign().await.unwrap(), Released::Freed);
    assert_eq!(leader(&other).await, None);
    let error = info.proclaim("d").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_value_is_shown_as_a_leader() {
    let (one, other) = two_processes();
    let _term = one.election("e").campaign("").await.unwrap();
    assert_eq!(leader(&other).await, some(""));
}

#[tokio::test(start_paused = true)]
async fn waiting_candidate_leads_after_the_resignation() {
    let (one, other) = two_processes();
    let first = one.election("e").campaign("one").await.unwrap();
    assert!(
        other
            .election("e")
            .try_campaign("other")
            .await
            .unwrap()
            .is_none()
    );
    let election = other.election("e");
    let refused = election
        .campaign_timeout("other", Duration::from_secs(1))
        .await;
    assert!(refused.unwrap().is_none());
    let waiting = tokio::spawn(async move { election.campaign("other").await });
    settle().await;
    assert_eq!(
        leader(&one).await,
        some("one"),
        "a candidate that waits is not shown"
    );
    first.resign().await.unwrap();
    let second = timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(leader(&one).await, some("other"));
    assert!(second.is_held());
}

#[tokio::test(start_paused = true)]
async fn dropped_candidates_and_terms_leave_nothing() {
    let (one, other) = two_processes();
    let first = one.election("e").campaign("one").await.unwrap();
    let election = other.election("e");
    assert!(
        timeout(Duration::from_secs(1), election.campaign("other"))
            .await
            .is_err()
    );
    drop(first);
    settle().await;
    assert_eq!(leader(&one).await, None);
    let seen = one.inspect("e").await.unwrap();
    assert!(seen.holders.is_empty() && seen.waiters.is_empty());
}

/// Polls a campaign a number of times, and drops it. Returns whether it was complete by then.
async fn campaign_polled(client: &LockClient, standby: Option<Duration>, polls: usize) -> bool {
    let mut election = client.election("e");
    if let Some(delay) = standby {
        election = election.with_standby(delay);
    }
    let mut campaign = Box::pin(election.campaign("value"));
    for _ in 0..polls {
        if let Some(elected) = (&mut campaign).now_or_never() {
            drop(elected.unwrap());
            return true;
        }
        // A candidate on standby waits for this long.
        tokio::time::sleep(standby.unwrap_or_default()).await;
        tokio::task::yield_now().await;
    }
    false
}

#[tokio::test(start_paused = true)]
async fn campaign_dropped_at_any_poll_leaves_no_leader() {
    for standby in [None, Some(Duration::from_secs(1))] {
        let mut elected = Vec::new();
        for polls in 0..60 {
            let script = Script {
                yields: 2,
                ..Script::default()
            };
            let (client, _) = Scripted::client(script);
            elected.push(campaign_polled(&client, standby, polls).await);
            settle().await;
            assert_eq!(leader(&client).await, None, "after {polls} polls");
            let free = client.mutex("e").try_lock().await.unwrap();
            assert!(free.is_some(), "after {polls} polls");
        }
        let needed = elected.iter().filter(|elected| !**elected).count();
        assert!(
            (8..60).contains(&needed),
            "a campaign takes {needed} polls, each of which was tried"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn election_and_mutex_exclude_each_other() {
    let (one, other) = two_processes();
    let term = one.election("e").campaign("value").await.unwrap();
    assert!(other.mutex("e").try_lock().await.unwrap().is_none());
    term.resign().await.unwrap();
    let _guard = other.mutex("e").try_lock().await.unwrap().unwrap();
    assert!(
        one.election("e")
            .try_campaign("value")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test(start_paused = true)]
async fn oversized_values_are_refused_before_anything_is_sent() {
    let (client, script) = Scripted::client(Script::default());
    let oversized = vec![0; Record::MAX_LEN + 1];
    let election = client.election("e");
    let refusals = [
        election.campaign(&oversized).await.err(),
        election.try_campaign(&oversized).await.err(),
        election.campaign_timeout(&oversized, SOON).await.err(),
        election
            .lead(&oversized, async |_| ControlFlow::Break(()))
            .await
            .err(),
    ];
    for refusal in refusals {
        assert_eq!(refusal.unwrap().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(script.calls.load(SeqCst), 0, "nothing is sent");
    let term = election.campaign("value").await.unwrap();
    let refusal = term.proclaim(&oversized).await.unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::InvalidInput);
    assert_eq!(leader(&client).await, some("value"));
}

#[tokio::test(start_paused = true)]
async fn without_records_an_empty_value_elects_and_others_fail() {
    let script = Script {
        records: Some(Records::None),
        ..Script::default()
    };
    let (client, script) = Scripted::client(script);
    let election = client.election("e");
    let refusals = [
        election.campaign("value").await.err(),
        election.try_campaign("value").await.err(),
        election.campaign_timeout("value", SOON).await.err(),
        election.leader().await.err(),
        election.observe().next().await.err(),
        election.clone().with_standby(SOON).campaign("").await.err(),
        election
            .lead("value", async |_| ControlFlow::Break(()))
            .await
            .err(),
    ];
    for refusal in refusals {
        let refusal = refusal.unwrap();
        assert_eq!(refusal.kind(), ErrorKind::Unsupported, "{refusal}");
    }
    assert_eq!(script.calls.load(SeqCst), 0, "nothing is sent");
    let term = election.campaign("").await.unwrap();
    assert!(election.try_campaign("").await.unwrap().is_none());
    let refusal = term.proclaim("value").await.unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::Unsupported);
    assert!(term.is_held(), "the refusal ends no term");
}

#[tokio::test(start_paused = true)]
async fn term_has_no_value_to_clear() {
    let (client, _) = simulated();
    let term = client.election("e").campaign("value").await.unwrap();
    let refusal = term.clear_record().await.unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::Unsupported);
    assert_eq!(leader(&client).await, some("value"));
}

#[tokio::test(start_paused = true)]
async fn proposals_are_sent_with_the_request_and_not_written() {
    for proposals in [false, true] {
        let script = Script {
            proposals,
            // Any write fails.
            failing_writes: Mutex::new(Some((usize::MAX, ErrorKind::Denied))),
            ..Script::default()
        };
        let (client, script) = Scripted::client(script);
        let elected = client.election("e").try_campaign("value").await;
        assert_eq!(
            elected.is_ok(),
            proposals,
            "the record is written without proposals"
        );
        let _guard = client.mutex("other").lock().await.unwrap();
        let proposed = script.proposed.lock().unwrap().clone();
        assert_eq!(proposed, [Some(b"value".to_vec()), None]);
    }
}

#[tokio::test(start_paused = true)]
async fn candidate_whose_value_is_not_written_does_not_lead() {
    let script = Script {
        failing_writes: Mutex::new(Some((1, ErrorKind::Denied))),
        ..Script::default()
    };
    let (client, _) = Scripted::client(script);
    let error = client.election("e").campaign("value").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(
        client.mutex("e").try_lock().await.unwrap().is_some(),
        "it released the lock"
    );
}

#[tokio::test(start_paused = true)]
async fn write_of_the_value_is_repeated_after_a_transient_fault() {
    let script = Script {
        failing_writes: Mutex::new(Some((2, ErrorKind::Indeterminate))),
        ..Script::default()
    };
    let (client, script) = Scripted::client(script);
    let term = client.election("e").campaign("value").await.unwrap();
    assert_eq!(leader(&client).await, some("value"));
    term.resign().await.unwrap();

    *script.failing_writes.lock().unwrap() = Some((1, ErrorKind::Unavailable));
    let error = client
        .election("e")
        .try_campaign("value")
        .await
        .unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Unavailable,
        "a single attempt writes once"
    );

    *script.failing_writes.lock().unwrap() = Some((usize::MAX, ErrorKind::Unavailable));
    let error = timeout(SOON, client.election("e").campaign("value"))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Unavailable,
        "the campaign ends after one TTL"
    );
    assert!(client.mutex("e").try_lock().await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn candidate_on_standby_waits_for_a_vacancy() {
    let (one, other) = two_processes();
    let standby = other.election("e").with_standby(Duration::from_secs(10));
    let campaign = tokio::spawn({
        let standby = standby.clone();
        async move { standby.campaign("standby").await }
    });
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(leader(&one).await, None, "not before the delay");
    // A preferred candidate comes in time, again and again.
    for _ in 0..3 {
        let term = one.election("e").campaign("preferred").await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        term.resign().await.unwrap();
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(leader(&one).await, None, "not before the delay");
    }
    let term = timeout(SOON, campaign).await.unwrap().unwrap().unwrap();
    assert_eq!(leader(&one).await, some("standby"));
    drop(term);
}

#[tokio::test(start_paused = true)]
async fn candidate_on_standby_leaves_the_queue_for_another() {
    let (one, other) = two_processes();
    // The lock is held, but not by a leader: the standby campaigns.
    let guard = one.mutex("e").lock().await.unwrap();
    let standby = other.election("e").with_standby(Duration::from_secs(5));
    let campaign = tokio::spawn(async move { standby.campaign("standby").await });
    let queued = async || !one.inspect("e").await.unwrap().waiters.is_empty();
    timeout(SOON, async {
        while !queued().await {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await
    .expect("the candidate waits for the lock");
    // The holder shows a value, and is the leader.
    guard.write_record("holder").await.unwrap();
    timeout(SOON, async {
        while queued().await {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await
    .expect("the candidate left the queue");
    drop(guard);
    let term = timeout(SOON, campaign).await.unwrap().unwrap().unwrap();
    assert!(term.is_held());
}

/// A backend with proposals shows the value of a candidate as soon as it grants the lock.
#[tokio::test(start_paused = true)]
async fn candidate_on_standby_does_not_leave_for_itself() {
    let script = Script {
        proposals: true,
        answer_takes: Duration::from_millis(500),
        readings: Mutex::new(vec![None]),
        ..Script::default()
    };
    let (client, script) = Scripted::client(script);
    let standby = client.election("e").with_standby(Duration::from_secs(5));
    let campaign = tokio::spawn(async move { standby.campaign("value").await });
    let granted = async {
        while script.proposed.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, granted)
        .await
        .expect("the candidate campaigns");
    *script.readings.lock().unwrap() = vec![record(1, 1)];
    script.changed.notify_waiters();
    let term = timeout(SOON, campaign).await.unwrap().unwrap().unwrap();
    assert!(term.is_held());
    assert_eq!(
        script.proposed.lock().unwrap().len(),
        1,
        "it campaigned once"
    );
}

#[tokio::test(start_paused = true)]
async fn timeout_of_a_standby_names_whether_the_backend_answered() {
    let (client, script) = Scripted::client(Script::default());
    let standby = client.election("e").with_standby(SOON);
    let refused = standby
        .campaign_timeout("value", Duration::from_secs(5))
        .await;
    assert!(refused.unwrap().is_none());
    script.failing_reads.store(usize::MAX, SeqCst);
    let error = standby
        .campaign_timeout("value", Duration::from_secs(5))
        .await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unavailable);
    script.failing_reads.store(0, SeqCst);
    assert!(
        standby.try_campaign("value").await.unwrap().is_some(),
        "an attempt is made at once"
    );
}

#[tokio::test(start_paused = true)]
async fn unreachable_backend_is_no_vacancy() {
    let (client, script) = Scripted::client(Script::default());
    let standby = client.election("e").with_standby(Duration::from_secs(5));
    let campaign = tokio::spawn(async move { standby.campaign("value").await });
    settle().await;
    script.failing_reads.store(usize::MAX, SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(
        script.proposed.lock().unwrap().is_empty(),
        "it does not campaign"
    );
    script.failing_reads.store(0, SeqCst);
    let term = timeout(SOON, campaign).await.unwrap().unwrap();
    assert!(term.is_ok(), "it campaigns once the backend answers");
}

/// A delay may be shorter than the round trip of a read.
#[tokio::test(start_paused = true)]
async fn standby_without_a_delay_does_not_read_in_a_loop() {
    let (client, script) = Scripted::client(Script::default());
    let standby = client.election("e").with_standby(Duration::ZERO);
    // Another leads between the first answer of the observer and the next read.
    *script.readings.lock().unwrap() = vec![None, record(1, 1)];
    let campaign = tokio::spawn(async move { standby.campaign("standby").await });
    let reads = async || {
        let before = script.calls.load(SeqCst);
        // On paused time, a loop of reads lets no time pass.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        let at_once = script.calls.load(SeqCst) - before;
        assert!(at_once < 10, "{at_once} reads at once");
        tokio::time::sleep(Duration::from_secs(60)).await;
        script.calls.load(SeqCst) - before
    };
    let beside_a_leader = reads().await;
    assert!(beside_a_leader < 200, "{beside_a_leader} reads in a minute");
    assert!(
        script.proposed.lock().unwrap().is_empty(),
        "there is a leader"
    );
    // The backend fails at once, again and again.
    script.failing_reads.store(usize::MAX, SeqCst);
    script.changed.notify_waiters();
    let in_an_outage = reads().await;
    assert!(in_an_outage < 200, "{in_an_outage} reads in a minute");
    script.failing_reads.store(0, SeqCst);
    script.readings.lock().unwrap().clear();
    let term = timeout(SOON, campaign).await.unwrap().unwrap().unwrap();
    assert!(term.is_held());
}

#[tokio::test(start_paused = true)]
async fn observer_sees_values_vacancies_and_new_leaders() {
    let (one, other) = two_processes();
    let mut leaders = other.election("e").observe();
    assert_eq!(next(&mut leaders).await, None);
    let term = one.election("e").campaign("a").await.unwrap();
    assert_eq!(next(&mut leaders).await, some("a"));
    term.proclaim("b").await.unwrap();
    assert_eq!(next(&mut leaders).await, some("b"));
    term.resign().await.unwrap();
    assert_eq!(next(&mut leaders).await, None);
    let _term = one.election("e").campaign("c").await.unwrap();
    assert_eq!(next(&mut leaders).await, some("c"));
    let nothing = timeout(Duration::from_secs(60), leaders.next()).await;
    assert!(nothing.is_err(), "the same leader is not returned again");
    let mut stream = other.election("e").observe().into_stream();
    assert_eq!(value(stream.next().await.unwrap().unwrap()), some("c"));
    other.close().await.unwrap();
    assert_eq!(
        stream.next().await.unwrap().unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert!(
        stream.next().await.is_none(),
        "it ends after the first error"
    );
}

/// Returns the record of a term with this token.
fn record(version: u64, token: u64) -> Option<Record> {
    let owner = Request::new(LockKey::new("e").unwrap()).owner();
    let mut record = Record::new(owner, format!("{token}.{version}"));
    (record.version, record.token) = (version, Some(FencingToken::new(token)));
    Some(record)
}

#[tokio::test(start_paused = true)]
async fn observer_skips_an_older_leader_after_a_newer_one() {
    let (client, script) = Scripted::client(Script::default());
    *script.readings.lock().unwrap() = vec![
        record(5, 2),
        record(4, 1), // an older leader
        record(4, 2), // an older value
        None,
        record(4, 1), // an older leader after a vacancy
        record(6, 2),
        record(1, 3),
    ];
    let changed = Arc::clone(&script.changed);
    let changing = async move {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            changed.notify_waiters();
        }
    };
    let mut leaders = client.election("e").observe();
    let observing = async {
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(next(&mut leaders).await);
        }
        seen
    };
    let seen = tokio::select! {
        seen = observing => seen,
        () = changing => unreachable!("it is repeated for ever"),
    };
    assert_eq!(seen, [some("2.5"), None, some("2.6"), some("3.1")]);
}

#[tokio::test(start_paused = true)]
async fn observer_believes_a_backend_that_lost_its_data() {
    let (client, script) = Scripted::client(Script::default());
    *script.readings.lock().unwrap() = vec![record(5, 7), record(1, 1)];
    let mut leaders = client.election("e").observe();
    assert_eq!(next(&mut leaders).await, some("7.5"));
    script.changed.notify_waiters();
    assert_eq!(next(&mut leaders).await, some("1.1"));
    // The first leader of the new data is now the newest.
    *script.readings.lock().unwrap() = vec![record(2, 1)];
    script.changed.notify_waiters();
    assert_eq!(next(&mut leaders).await, some("1.2"));
}

/// A caller that selects among several futures may poll the observer again after a long time.
#[tokio::test(start_paused = true)]
async fn observer_reads_again_before_it_shows_an_older_leader() {
    let (client, script) = Scripted::client(Script {
        yields: 1,
        ..Script::default()
    });
    *script.readings.lock().unwrap() = vec![record(5, 7)];
    let mut leaders = client.election("e").observe();
    assert_eq!(next(&mut leaders).await, some("7.5"));
    // A late answer shows an older leader.
    *script.readings.lock().unwrap() = vec![record(1, 1)];
    script.changed.notify_waiters();
    let nothing = timeout(Duration::from_secs(1), leaders.next()).await;
    assert!(nothing.is_err(), "an older leader is not returned at once");
    *script.readings.lock().unwrap() = vec![record(6, 7)];
    script.changed.notify_waiters();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(next(&mut leaders).await, some("7.6"));
}

#[tokio::test(start_paused = true)]
async fn lead_campaigns_again_until_break() {
    let (client, _) = simulated();
    let mut tokens = Vec::new();
    let election = client.election("e");
    let led = election.lead("value", async |term| {
        tokens.push(term.fencing_token().unwrap());
        assert_eq!(leader(&client).await, some("value"));
        if tokens.len() < 3 {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break("done")
        }
    });
    assert_eq!(timeout(SOON, led).await.unwrap().unwrap(), "done");
    assert!(tokens.is_sorted() && tokens[0] < tokens[2]);
    assert_eq!(leader(&client).await, None, "it resigned");
}

#[tokio::test(start_paused = true)]
async fn lead_drops_the_work_before_another_leads_and_returns() {
    let (one, other) = two_processes();
    let election = one.election("e").with_ttl(secs(10));
    let terms = Arc::new(AtomicUsize::new(0));
    let leading = tokio::spawn({
        let terms = Arc::clone(&terms);
        async move {
            election
                .lead_with("one", move |term| {
                    let terms = Arc::clone(&terms);
                    async move {
                        if terms.fetch_add(1, SeqCst) == 0 {
                            // Dropped by the loss.
                            let _held = term;
                            pending::<()>().await;
                        }
                        ControlFlow::Break(())
                    }
                })
                .await
        }
    });
    settle().await;
    let mut leaders = other.election("e").observe();
    assert_eq!(next(&mut leaders).await, some("one"));
    let holder = other.inspect("e").await.unwrap().holders.remove(0);
    other.revoke(&holder, Revocation::Immediate).await.unwrap();
    let rival = other.election("e").campaign("other").await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        terms.load(SeqCst),
        1,
        "it leads no second term beside the rival"
    );
    rival.resign().await.unwrap();
    timeout(SOON, leading).await.unwrap().unwrap().unwrap();
    assert_eq!(terms.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn lead_retries_faults_and_ends_with_final_errors() {
    let script = Script {
        failing_writes: Mutex::new(Some((1, ErrorKind::Lost))),
        ..Script::default()
    };
    let (client, script) = Scripted::client(script);
    let election = client.election("e");
    let led = election.lead("value", async |_| ControlFlow::Break(7));
    assert_eq!(timeout(SOON, led).await.unwrap().unwrap(), 7);
    *script.failing_writes.lock().unwrap() = Some((usize::MAX, ErrorKind::Denied));
    let led = election.lead("value", async |_| ControlFlow::Break(7));
    assert_eq!(led.await.unwrap_err().kind(), ErrorKind::Denied);
    client.close().await.unwrap();
    let led = election.lead("value", async |_| ControlFlow::Break(7));
    assert_eq!(led.await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn term_that_is_lost_reports_it_and_proclaims_nothing() {
    let (one, other) = two_processes();
    let term = one.election("e").campaign("one").await.unwrap();
    let holder = other.inspect("e").await.unwrap().holders.remove(0);
    other.revoke(&holder, Revocation::Immediate).await.unwrap();
    let rival = other.election("e").campaign("other").await.unwrap();
    assert!(rival.fencing_token() > term.fencing_token());
    let error = term.proclaim("late").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert_eq!(leader(&one).await, some("other"));
    assert_eq!(
        timeout(SOON, term.lost()).await.unwrap(),
        LossReason::Replaced
    );
    assert_eq!(term.resign().await.unwrap(), Released::AlreadyLost);
}

#[test]
fn futures_of_an_election_are_send() {
    fn is_send(_: impl Send) {}
    let (client, _) = two_processes();
    let election = client.election("e").with_standby(SOON);
    is_send(election.campaign("value"));
    is_send(election.campaign_timeout("value", SOON));
    is_send(election.leader());
    is_send(election.observe());
    is_send(election.lead_with("value", |_| async { ControlFlow::Break(()) }));
    is_send(election.lead("value", async |_| ControlFlow::Break(())));
}
