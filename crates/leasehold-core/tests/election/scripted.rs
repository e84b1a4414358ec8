//! A backend in memory with the answers that a test wants.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use leasehold_core::{
    Capabilities, Error, ErrorKind, FencingToken, HolderRef, Inspection, LockClient, LockKey,
    Record, Records, Released, Result, Revocation, RevokeOutcome, TestClock,
    backend::{
        Attempt, Lease, LockBackend, RecordRead, RecordReading, RecordWrite, Request, async_trait,
    },
};
use leasehold_local::MemoryBackend;
use tokio::sync::Notify;

/// The answers of the backend of these tests.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// Whether the backend stores the proposals of candidates itself.
    pub(crate) proposals: bool,
    pub(crate) records: Option<Records>,
    /// How many writes of records fail, and how.
    pub(crate) failing_writes: Mutex<Option<(usize, ErrorKind)>>,
    /// How many reads fail.
    pub(crate) failing_reads: AtomicUsize,
    /// The number of times that each call yields, before and after it takes effect.
    pub(crate) yields: usize,
    /// The time that an acquisition takes after its grant.
    pub(crate) answer_takes: Duration,
    /// The calls of the backend, without inspections.
    pub(crate) calls: AtomicUsize,
    /// The answers of reads, the next one first. Without one, the backend answers itself.
    pub(crate) readings: Mutex<Vec<Option<Record>>>,
    /// Notifies the watchers of the answers in `readings`.
    pub(crate) changed: Arc<Notify>,
    pub(crate) proposed: Mutex<Vec<Option<Vec<u8>>>>,
}

/// A backend in memory with answers of its own.
#[derive(Debug)]
pub(crate) struct Scripted {
    inner: Arc<MemoryBackend>,
    script: Arc<Script>,
}

impl Scripted {
    pub(crate) fn client(script: Script) -> (LockClient, Arc<Script>) {
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

/// Returns the record of a term with this token.
pub(crate) fn record(version: u64, token: u64) -> Option<Record> {
    let owner = Request::new(LockKey::new("e").unwrap()).owner();
    let mut record = Record::new(owner, format!("{token}.{version}"));
    (record.version, record.token) = (version, Some(FencingToken::new(token)));
    Some(record)
}
