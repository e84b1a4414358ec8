//! Records beside locks, as the client writes, reads and watches them.

#[macro_use]
mod support;

use std::{
    fmt,
    future::{pending, ready},
    panic::resume_unwind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use leasehold_core::{
    Capabilities, Error, ErrorKind, LockClient, LossReason, Record, Records, Released, Renewal,
    Result, TestClock,
    backend::{
        Attempt, LazyBackend, Lease, LockBackend, RecordRead, RecordReading, RecordWrite, Request,
        async_trait,
    },
    quorum::{QuorumBackend, QuorumConfig, QuorumMember},
};
use leasehold_local::MemoryBackend;
use support::{secs, settle};
use tokio::sync::Semaphore;

/// The behaviour of the backend of these tests, and the calls that it has received.
#[derive(Debug)]
struct Script {
    records: Records,
    why_not: Option<&'static str>,
    /// How many of the next reads fail.
    reads_fail: AtomicUsize,
    /// The kind of the error with which all reads fail.
    reads_refused: Mutex<Option<ErrorKind>>,
    notification: Mutex<Notification>,
    reads: AtomicUsize,
    /// The answer to the next writes, which take effect nevertheless, and their number.
    answered_as: Mutex<Option<(ErrorKind, usize)>>,
    /// Each write takes one permit before it is made.
    writes_allowed: Semaphore,
    writes: Mutex<Vec<RecordWrite>>,
    /// How many writes are under way, and whether there were ever two.
    under_way: AtomicUsize,
    overlapped: AtomicBool,
}

/// How watches are notified of changes.
#[derive(Clone, Copy, Debug)]
enum Notification {
    Memory,
    None,
    Panics,
    Never,
}

#[derive(Debug)]
struct Scripted(Arc<MemoryBackend>, Arc<Script>);

impl fmt::Display for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("scripted")
    }
}

#[async_trait]
impl LockBackend for Scripted {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.0.capabilities();
        capabilities.backend = "scripted";
        capabilities.records = self.1.records;
        capabilities.why_no_records = self.1.why_not;
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        Ok(match Arc::clone(&self.0).try_acquire(request).await? {
            Attempt::Granted(lease) => {
                Attempt::Granted(Arc::new(ScriptedLease(lease, Arc::clone(&self.1))))
            }
            contended => contended,
        })
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        let script = &self.1;
        script.reads.fetch_add(1, SeqCst);
        if let Some(kind) = *script.reads_refused.lock().unwrap() {
            return Err(Error::new(kind, "made to refuse"));
        }
        let left = script
            .reads_fail
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if left.is_ok() {
            return Err(Error::new(ErrorKind::Unavailable, "made to fail"));
        }
        let mut reading = Arc::clone(&self.0).read_record(read).await?;
        match *script.notification.lock().unwrap() {
            Notification::Memory => {}
            Notification::None => reading.changed = None,
            Notification::Panics => {
                reading.changed =
                    Some(Box::pin(async { resume_unwind(Box::new("made to panic")) }));
            }
            Notification::Never => reading.changed = Some(Box::pin(pending())),
        }
        Ok(reading)
    }
}

#[derive(Debug)]
struct ScriptedLease(Arc<dyn Lease>, Arc<Script>);

#[async_trait]
impl Lease for ScriptedLease {
    forward_lease_state!(0);

    async fn renew(self: Arc<Self>) -> Result<()> {
        Arc::clone(&self.0).renew().await
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        Arc::clone(&self.0).release().await
    }

    async fn write_record(self: Arc<Self>, write: RecordWrite) -> Result<u64> {
        let script = &self.1;
        if script.under_way.fetch_add(1, SeqCst) > 0 {
            script.overlapped.store(true, SeqCst);
        }
        script.writes_allowed.acquire().await.unwrap().forget();
        script.writes.lock().unwrap().push(write.clone());
        let written = Arc::clone(&self.0).write_record(write).await;
        script.under_way.fetch_sub(1, SeqCst);
        match &mut *script.answered_as.lock().unwrap() {
            Some((kind, left)) if *left > 0 => {
                *left -= 1;
                Err(Error::new(*kind, "made to answer so"))
            }
            _ => written,
        }
    }
}

fn script(records: Records) -> Script {
    Script {
        records,
        why_not: None,
        reads_fail: AtomicUsize::new(0),
        reads_refused: Mutex::default(),
        notification: Mutex::new(Notification::Memory),
        reads: AtomicUsize::new(0),
        answered_as: Mutex::default(),
        writes_allowed: Semaphore::new(Semaphore::MAX_PERMITS),
        writes: Mutex::default(),
        under_way: AtomicUsize::new(0),
        overlapped: AtomicBool::new(false),
    }
}

/// Returns a client of a scripted backend, and its script.
fn scripted() -> (LockClient, Arc<Script>) {
    scripted_as(script(Records::Durable))
}

fn scripted_as(script: Script) -> (LockClient, Arc<Script>) {
    let (clock, script) = (Arc::new(TestClock::new()), Arc::new(script));
    let memory = Arc::new(MemoryBackend::with_clock(clock.clone()));
    let client = LockClient::builder(Scripted(memory, Arc::clone(&script)))
        .with_ttl(secs(10))
        .with_clock(clock)
        .build();
    (client, script)
}

impl Script {
    fn sequences(&self) -> Vec<u64> {
        let writes = self.writes.lock().unwrap();
        writes.iter().map(RecordWrite::sequence).collect()
    }
}

async fn value(client: &LockClient, key: &str) -> Option<Vec<u8>> {
    let record = client.record(key).await.unwrap();
    record.map(|record| record.value)
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_to_a_backend_without_records() {
    for why_not in [None, Some("it forgets")] {
        let mut script = script(Records::None);
        script.why_not = why_not;
        let (client, script) = scripted_as(script);
        let guard = client.mutex("k").try_lock().await.unwrap().unwrap();
        for error in [
            client.record("k").await.unwrap_err(),
            client.watch("k").next().await.unwrap_err(),
            guard.write_record("v").await.unwrap_err(),
            guard.clear_record().await.unwrap_err(),
            guard.info().write_record("v").await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!(error.backend(), Some("scripted"));
            let told = why_not.unwrap_or("choose another backend");
            assert!(error.message().contains(told), "{error}");
        }
        assert_eq!(script.reads.load(SeqCst), 0);
        assert_eq!(script.sequences(), []);
        assert!(guard.is_held(), "a refusal loses nothing");
    }
}

#[tokio::test(start_paused = true)]
async fn backend_that_implements_no_records_refuses_them() {
    /// A backend written before records existed.
    #[derive(Debug)]
    struct Older(Arc<MemoryBackend>);

    impl fmt::Display for Older {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("older")
        }
    }

    #[async_trait]
    impl LockBackend for Older {
        fn capabilities(&self) -> Capabilities {
            Capabilities::new("older")
        }

        async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
            Ok(match Arc::clone(&self.0).try_acquire(request).await? {
                Attempt::Granted(lease) => Attempt::Granted(Arc::new(OlderLease(lease))),
                contended => contended,
            })
        }
    }

    #[derive(Debug)]
    struct OlderLease(Arc<dyn Lease>);

    #[async_trait]
    impl Lease for OlderLease {
        forward_lease_state!(0);

        async fn renew(self: Arc<Self>) -> Result<()> {
            Arc::clone(&self.0).renew().await
        }

        async fn release(self: Arc<Self>) -> Result<Released> {
            Arc::clone(&self.0).release().await
        }
    }

    let backend = Arc::new(Older(Arc::new(MemoryBackend::new())));
    let key = leasehold_core::LockKey::new("k").unwrap();
    let read = Arc::clone(&backend).read_record(RecordRead::new(key.clone()));
    let error = read.await.unwrap_err();
    assert_eq!(
        (error.kind(), error.backend()),
        (ErrorKind::Unsupported, Some("older"))
    );
    let lease = backend.acquire(Request::new(key)).await.unwrap();
    let written = lease.write_record(RecordWrite::clear(1)).await;
    assert_eq!(written.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test(start_paused = true)]
async fn lazy_backend_refuses_records_once_it_is_connected() {
    let script = Arc::new(script(Records::None));
    let lazy = |provisional: Records| {
        let script = Arc::clone(&script);
        let mut weakest = MemoryBackend::new().capabilities();
        weakest.records = provisional;
        LockClient::new(LazyBackend::new(weakest, move || {
            let script = Arc::clone(&script);
            async move { Ok(Scripted(Arc::new(MemoryBackend::new()), script)) }
        }))
    };
    for provisional in [Records::None, Records::Durable] {
        let client = lazy(provisional);
        let error = client.record("k").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{provisional}");
        assert!(!client.capabilities().provisional);

        let client = lazy(provisional);
        let guard = client.mutex("k").lock().await.unwrap();
        let error = guard.write_record("v").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{provisional}");
    }
    assert_eq!(script.reads.load(SeqCst), 0);
    assert_eq!(script.sequences(), []);
}

#[tokio::test(start_paused = true)]
async fn lazy_backend_that_keeps_records_writes_and_reads_them() {
    let mut weakest = MemoryBackend::new().capabilities();
    weakest.records = Records::None;
    let client = LockClient::new(LazyBackend::new(weakest, || async {
        Ok(MemoryBackend::new())
    }));
    assert_eq!(client.record("k").await.unwrap(), None);
    let guard = client.mutex("k").lock().await.unwrap();
    assert_eq!(guard.write_record("v").await.unwrap(), 1);
    assert_eq!(value(&client, "k").await.unwrap(), b"v");
}

#[tokio::test(start_paused = true)]
async fn quorum_refuses_records_and_says_why() {
    let nodes = (0..3).map(|_| QuorumMember::Voting(Arc::new(MemoryBackend::new())));
    let quorum = QuorumBackend::open(nodes, QuorumConfig::new()).await;
    let client = LockClient::new(quorum.unwrap());
    let guard = client.mutex("k").lock().await.unwrap();
    for error in [
        client.record("k").await.unwrap_err(),
        guard.write_record("v").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("use a single backend"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn readers_and_permits_are_not_sent() {
    let (client, script) = scripted();
    let reader = client.rwlock("k").read().await.unwrap();
    let permit = client.semaphore("s", 2).acquire().await.unwrap();
    for error in [
        reader.write_record("v").await.unwrap_err(),
        reader.info().clear_record().await.unwrap_err(),
        permit.info().write_record("v").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("use a mutex"), "{error}");
    }
    drop(reader);
    let writer = client.rwlock("k").write().await.unwrap();
    assert_eq!(writer.write_record("v").await.unwrap(), 1);
    assert_eq!(script.sequences(), [1]);
}

#[tokio::test(start_paused = true)]
async fn oversized_value_is_not_sent() {
    let (client, script) = scripted();
    let guard = client.mutex("k").lock().await.unwrap();
    let error = guard
        .write_record(vec![0; Record::MAX_LEN + 1])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("16385 bytes"), "{error}");
    assert_eq!(script.sequences(), []);
    assert_eq!(
        guard.write_record(vec![0; Record::MAX_LEN]).await.unwrap(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn writes_of_one_lease_are_made_one_at_a_time_in_order() {
    let (client, script) = scripted();
    script.writes_allowed.forget_permits(Semaphore::MAX_PERMITS);
    let owner = client.reentrant_owner();
    let outer = owner.lock("k").await.unwrap();
    let inner = owner.lock("k").await.unwrap();
    let views = [outer.info(), inner.info(), outer.info()];
    let writes = views.iter().enumerate().map(|(at, view)| {
        let value = [u8::try_from(at).unwrap()];
        async move { view.write_record(value).await.unwrap() }
    });
    let mut writes = futures_util::future::join_all(writes);
    assert!((&mut writes).now_or_never().is_none());
    script.writes_allowed.add_permits(3);
    assert_eq!(writes.await, [1, 2, 3]);
    assert_eq!(script.sequences(), [1, 2, 3]);
    assert!(!script.overlapped.load(SeqCst));
    assert_eq!(value(&client, "k").await.unwrap(), [2]);
}

#[tokio::test(start_paused = true)]
async fn repeated_write_whose_answer_was_lost_counts_once() {
    let (client, script) = scripted();
    let guard = client.mutex("k").lock().await.unwrap();
    *script.answered_as.lock().unwrap() = Some((ErrorKind::Indeterminate, 2));
    for _ in 0..2 {
        let error = guard.write_record("v").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Indeterminate);
        assert_eq!(error.operation(), Some("write_record"));
    }
    assert_eq!(guard.write_record("v").await.unwrap(), 1);
    // The same value again, after an answer, is another write.
    assert_eq!(guard.write_record("v").await.unwrap(), 2);
    assert_eq!(script.sequences(), [1, 1, 1, 2]);
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn dropped_write_is_completed_before_the_next() {
    let (client, script) = scripted();
    script.writes_allowed.forget_permits(Semaphore::MAX_PERMITS);
    let guard = client.mutex("k").lock().await.unwrap();
    assert!(guard.write_record("dropped").now_or_never().is_none());
    let mut next = Box::pin(guard.write_record("next"));
    assert!((&mut next).now_or_never().is_none());
    script.writes_allowed.add_permits(2);
    assert_eq!(next.await.unwrap(), 2);
    assert_eq!(script.sequences(), [1, 2]);
    assert!(!script.overlapped.load(SeqCst));
    assert_eq!(value(&client, "k").await.unwrap(), b"next");
}

#[tokio::test(start_paused = true)]
async fn write_that_arrives_after_the_hold_changes_nothing() {
    let (client, script) = scripted();
    let mutex = client.mutex("k").with_renewal(Renewal::Manual);
    let guard = mutex.lock().await.unwrap();
    script.writes_allowed.forget_permits(Semaphore::MAX_PERMITS);
    let mut writing = Box::pin(guard.write_record("late"));
    assert!((&mut writing).now_or_never().is_none());
    tokio::time::sleep(Duration::from_secs(11)).await;
    let other = client.mutex("k").lock().await.unwrap();
    script.writes_allowed.add_permits(1);
    assert_eq!(writing.await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(guard.loss(), Some(LossReason::Expired));
    assert_eq!(value(&client, "k").await, None);
    assert!(other.is_held());
}

#[tokio::test(start_paused = true)]
async fn write_that_the_backend_refuses_loses_the_lease() {
    for is_dropped in [false, true] {
        let (client, script) = scripted();
        let guard = client.mutex("k").lock().await.unwrap();
        *script.answered_as.lock().unwrap() = Some((ErrorKind::Lost, 1));
        if is_dropped {
            script.writes_allowed.forget_permits(Semaphore::MAX_PERMITS);
            assert!(guard.write_record("v").now_or_never().is_none());
            script.writes_allowed.add_permits(1);
            guard.lost().await;
        } else {
            let error = guard.write_record("v").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Lost);
        }
        assert_eq!(guard.loss(), Some(LossReason::Replaced));
        assert_eq!(
            guard.write_record("v").await.unwrap_err().kind(),
            ErrorKind::Lost
        );
        assert_eq!(script.sequences(), [1], "a lost lease writes nothing more");
    }
}

#[tokio::test(start_paused = true)]
async fn no_write_is_sent_after_the_hold() {
    let (client, script) = scripted();
    let expired = client.mutex("expires").with_renewal(Renewal::Manual);
    let expired = expired.lock().await.unwrap();
    tokio::time::sleep(Duration::from_secs(11)).await;
    let error = expired.write_record("v").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);

    let guard = client.mutex("released").lock().await.unwrap();
    let view = guard.info();
    guard.release().await.unwrap();
    let error = view.write_record("v").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(error.message().contains("was released"), "{error}");

    let guard = client.mutex("closed").lock().await.unwrap();
    client.close().await.unwrap();
    let error = guard.write_record("v").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert_eq!(script.sequences(), []);
}

#[tokio::test(start_paused = true)]
async fn write_that_waits_for_its_turn_is_not_sent_after_the_hold() {
    let (client, script) = scripted();
    script.writes_allowed.forget_permits(Semaphore::MAX_PERMITS);
    let guard = client.mutex("k").lock().await.unwrap();
    let view = guard.info();
    let mut first = Box::pin(view.write_record("first"));
    assert!((&mut first).now_or_never().is_none());
    let mut second = Box::pin(view.write_record("second"));
    assert!((&mut second).now_or_never().is_none());
    guard.release().await.unwrap();
    script.writes_allowed.add_permits(2);
    assert_eq!(first.await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(second.await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(script.sequences(), [1]);
}

#[tokio::test(start_paused = true)]
async fn watch_shows_the_present_state_and_then_each_change() {
    let (client, script) = scripted();
    let mut watch = client.watch("k");
    assert_eq!(script.reads.load(SeqCst), 0);
    assert_eq!(watch.next().await.unwrap(), None);
    let guard = client.mutex("k").lock().await.unwrap();
    for value in ["a", "b"] {
        guard.write_record(value).await.unwrap();
        let seen = watch.next().await.unwrap().unwrap();
        assert_eq!(seen.value, value.as_bytes());
    }
    // States in between are skipped.
    guard.write_record("c").await.unwrap();
    guard.write_record("b").await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().version, 4);
    guard.clear_record().await.unwrap();
    assert_eq!(watch.next().await.unwrap(), None);
    drop(guard);
    settle().await;
    assert!(watch.next().now_or_never().is_none());
    let reads = script.reads.load(SeqCst);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(script.reads.load(SeqCst), reads, "nothing polls");
}

#[tokio::test(start_paused = true)]
async fn watch_reads_again_by_itself_without_notifications() {
    for notification in [Notification::None, Notification::Panics] {
        let (client, script) = scripted();
        *script.notification.lock().unwrap() = notification;
        let mut watch = client.watch("k");
        assert_eq!(watch.next().await.unwrap(), None);
        let guard = client.mutex("k").lock().await.unwrap();
        let write = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            guard.write_record("v").await.unwrap();
        };
        let (seen, ()) = futures_util::join!(watch.next(), write);
        assert_eq!(seen.unwrap().unwrap().value, b"v", "{notification:?}");
        let reads = script.reads.load(SeqCst);
        assert!((3..=8).contains(&reads), "{notification:?}: {reads} reads");
    }
}

#[tokio::test(start_paused = true)]
async fn watch_waits_through_an_outage() {
    let (client, script) = scripted();
    script.reads_fail.store(30, SeqCst);
    assert_eq!(client.watch("k").next().await.unwrap(), None);
    assert_eq!(script.reads.load(SeqCst), 31);
}

#[tokio::test(start_paused = true)]
async fn watch_whose_calls_are_soon_dropped_reads_after_a_fault() {
    for notification in [
        Notification::Memory,
        Notification::None,
        Notification::Panics,
    ] {
        let (client, script) = scripted();
        *script.notification.lock().unwrap() = notification;
        let mut watch = client.watch("k");
        assert_eq!(watch.next().await.unwrap(), None);
        let guard = client.mutex("k").lock().await.unwrap();
        guard.write_record("v").await.unwrap();
        script.reads_fail.store(3, SeqCst);
        let mut seen = None;
        for _ in 0..100 {
            let next = tokio::time::timeout(Duration::from_millis(100), watch.next()).await;
            if let Ok(next) = next {
                seen = next.unwrap();
                break;
            }
        }
        let seen = seen.map(|record| record.value);
        assert_eq!(seen, Some(b"v".to_vec()), "{notification:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_wait_of_a_watch_loses_no_state() {
    let (client, _) = scripted();
    let mut watch = client.watch("k");
    // Dropped at each of its first polls.
    for polls in 0..4 {
        let mut next = Box::pin(watch.next());
        for _ in 0..polls {
            if (&mut next).now_or_never().is_some() {
                break;
            }
        }
    }
    let guard = client.mutex("k").lock().await.unwrap();
    guard.write_record("v").await.unwrap();
    let mut seen = None;
    while seen.is_none() {
        seen = watch.next().await.unwrap();
    }
    assert_eq!(seen.unwrap().value, b"v");
}

#[tokio::test(start_paused = true)]
async fn close_ends_a_waiting_watch() {
    let (client, script) = scripted();
    *script.notification.lock().unwrap() = Notification::Never;
    let mut watch = client.watch("k");
    assert_eq!(watch.next().await.unwrap(), None);
    let close = async {
        settle().await;
        client.close().await.unwrap();
    };
    let (seen, ()) = futures_util::join!(watch.next(), close);
    assert_eq!(seen.unwrap_err().kind(), ErrorKind::Closed);
    let error = client.record("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn stream_of_a_watch_ends_after_an_error() {
    let (client, script) = scripted();
    let states = client.watch("k").into_stream();
    let guard = client.mutex("k").lock().await.unwrap();
    let mut states = states.map(|state| state.map(|record| record.map(|record| record.value)));
    assert_eq!(states.next().await.unwrap().unwrap(), None);
    guard.write_record("v").await.unwrap();
    assert_eq!(states.next().await.unwrap().unwrap().unwrap(), b"v");
    *script.reads_refused.lock().unwrap() = Some(ErrorKind::Conflict);
    guard.write_record("w").await.unwrap();
    let error = states.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error.operation(), Some("read_record"));
    assert!(states.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn invalid_key_is_reported_by_the_read() {
    let (client, script) = scripted();
    let errors = [
        client.record("").await.unwrap_err(),
        client.watch("").next().await.unwrap_err(),
    ];
    assert!(
        errors
            .iter()
            .all(|error| error.kind() == ErrorKind::InvalidInput)
    );
    assert_eq!(script.reads.load(SeqCst), 0);
}

#[test]
fn futures_of_records_can_be_spawned() {
    fn is_send<T: Send>(_: T) {}
    let (client, _) = scripted();
    let mut watch = client.watch("k");
    is_send(client.record("k"));
    is_send(watch.next());
    is_send(ready(client.watch("k").into_stream()));
}
