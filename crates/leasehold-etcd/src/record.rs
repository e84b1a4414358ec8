//! The record beside a lock: one key without a lease. A read of what the holder of a lock has
//! written also returns the proposal of a candidate of an election.
//!
//! A write compares the create revision of the holder's key and the modification revision of the
//! record, in the transaction that puts the record. A copy that is late or was sent twice therefore
//! changes nothing: the holder's key is gone, or the record has another revision. Revisions are
//! never reused, so a record that was deleted and created again has another revision, too.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
};
use leasehold_core::{
    AcquisitionId, Error, ErrorKind, FencingToken, LockKey, Mode, Record, Result,
    backend::{BoxFuture, RecordRead, RecordReading, RecordWrite, Request, support::StoredRecord},
};

use crate::{
    connection::Cluster,
    error::{ERRORS, SideEffect},
    keys::{Candidate, EtcdKey, LockPrefix},
    queue::QueueKey,
    waiters::{Generation, Registration, WaiterRegistry, Watched},
};

const READ: &str = "read_record";
pub(crate) const WRITE: &str = "write_record";

/// The number of attempts of one write. Only late copies of earlier writes of the same holder, and
/// other programs, change the record meanwhile.
pub(crate) const MAX_ATTEMPTS: usize = 8;

/// Reads the record beside a lock. If it is wanted only while its writer holds the lock, reads the
/// proposal of a holder that is a candidate of an election instead.
pub(crate) async fn read(
    cluster: &Cluster,
    waiters: &Arc<WaiterRegistry>,
    read: &RecordRead,
) -> Result<RecordReading> {
    let place = cluster.layout.record(&read.key, READ)?;
    let lock_prefix = cluster.layout.lock_prefix(&read.key, false)?;
    let watch = if read.watch {
        let queue = read.while_held.then_some(&lock_prefix);
        RecordChanges::watch(waiters, &place, queue, cluster.config.timeout).await
    } else {
        None
    };
    // One transaction shows the record and the holder at one revision. The read is linearizable.
    let mut reads = vec![TxnOp::get(place.to_vec(), None)];
    if read.while_held {
        reads.push(first_key(&lock_prefix));
    }
    let txn = Txn::new().and_then(reads);
    let timeout = cluster.config.timeout;
    let answer = cluster.txn(READ, SideEffect::None, timeout, &txn).await?;
    let mut found = answer.op_responses().into_iter().map(first_of);
    let stored = found.next().ok_or_else(|| ERRORS.unexpected(READ))??;
    let first = found.next().transpose()?.flatten();

    let proposal = first.as_ref().and_then(|kv| proposal_of(&lock_prefix, kv));
    let record = match (proposal, &stored) {
        (Some(proposal), _) => Some(proposal?),
        (None, Some(kv)) => {
            let record = decode(&read.key, kv, READ)?.into_record();
            let is_holders = |record: &Record| first.as_ref().is_some_and(|kv| wrote(kv, record));
            record.filter(|record| !read.while_held || is_holders(record))
        }
        (None, None) => None,
    };
    let mut reading = RecordReading::new(record);
    let first = first.map(|kv| EtcdKey::from(kv.key()));
    let poll_interval = cluster.config.fallback_poll_interval;
    reading.changed = watch.map(|watch| watch.changed(first, poll_interval));
    Ok(reading)
}

/// Reads the first key of a lock. It belongs to the exclusive holder, if there is one: no key is
/// ahead of an exclusive holder, not even that of a reader.
fn first_key(lock_prefix: &LockPrefix) -> TxnOp {
    let options = GetOptions::new()
        .with_range(lock_prefix.end())
        .with_sort(SortTarget::Create, SortOrder::Ascend)
        .with_limit(1);
    TxnOp::get(lock_prefix.start(), Some(options))
}

/// Returns the proposal in the key of a holder, if the holder is a candidate of an election.
///
/// The version is the modification revision of the key. The server knows neither the label of the
/// candidate nor the time of the write.
fn proposal_of(lock_prefix: &LockPrefix, holder: &KeyValue) -> Option<Result<Record>> {
    let candidate = lock_prefix.read(holder.key()).candidate?;
    if holder.value().len() > Record::MAX_LEN {
        return Some(Err(ERRORS.error(
            ErrorKind::Conflict,
            READ,
            format!(
                "another program has written {} bytes as the value of the key `{:?}`, and the limit is {}; write a shorter value",
                holder.value().len(),
                EtcdKey::from(holder.key()),
                Record::MAX_LEN
            ),
        )));
    }
    let mut record = Record::new(
        owner_of(candidate, holder.create_revision()),
        holder.value(),
    );
    record.version = holder.mod_revision().unsigned_abs();
    record.sequence = holder.version().unsigned_abs();
    record.token = token_of(holder.create_revision());
    Some(Ok(record))
}

/// Returns the id of the acquisition of a candidate. That of another program has none, but no other
/// candidate has the create revision and the lease of its key.
fn owner_of(candidate: Candidate, revision: i64) -> AcquisitionId {
    candidate.owner.unwrap_or_else(|| {
        let revision = u128::from(revision.unsigned_abs());
        AcquisitionId::from(revision << 64 | u128::from(candidate.lease.cast_unsigned()))
    })
}

/// Returns whether the grant with this key wrote the record. Its token is the create revision.
fn wrote(kv: &KeyValue, record: &Record) -> bool {
    record.token == token_of(kv.create_revision())
}

fn token_of(revision: i64) -> Option<FencingToken> {
    u64::try_from(revision).ok().map(FencingToken::new)
}

/// Returns the first key of the answer to a range.
fn first_of(answer: TxnOpResponse) -> Result<Option<KeyValue>> {
    match answer {
        TxnOpResponse::Get(mut range) => Ok(range.take_kvs().into_iter().next()),
        _ => Err(ERRORS.unexpected(READ)),
    }
}

fn decode(key: &LockKey, kv: &KeyValue, operation: &'static str) -> Result<StoredRecord> {
    StoredRecord::decode(key, kv.value()).map_err(|error| ERRORS.named(error, operation))
}

/// The watches for one reading. They were established before the read was sent.
struct RecordChanges {
    record: (Registration, Generation),
    /// The watch on the queue of the lock, if a change of the holder or of its proposal counts as
    /// well.
    queue: Option<(Registration, Generation)>,
}

impl RecordChanges {
    /// Watches the record, and the queue with this prefix. Returns `None` without a watch stream.
    async fn watch(
        waiters: &Arc<WaiterRegistry>,
        place: &EtcdKey,
        queue: Option<&LockPrefix>,
        timeout: Duration,
    ) -> Option<Self> {
        let established = async |watched: Watched| {
            let registration = waiters.register(watched);
            registration.establish(timeout).await.ok()?;
            let before = registration.generation();
            Some((registration, before))
        };
        let record = established(Watched::Record(place.clone()));
        let queue = async {
            match queue {
                Some(prefix) => established(Watched::Queue(prefix.clone())).await.map(Some),
                None => Some(None),
            }
        };
        let (record, queue) = tokio::join!(record, queue);
        Some(Self {
            record: record?,
            queue: queue?,
        })
    }

    /// Completes when another read may have another answer, and at the latest after
    /// `poll_interval`. `first` is the first key of the queue: another one becomes first only after
    /// its deletion.
    fn changed(self, first: Option<EtcdKey>, poll_interval: Duration) -> BoxFuture<'static, ()> {
        let (record, before) = &self.record;
        let written = record.changed(*before);
        let queue_changed = match (&self.queue, first) {
            (Some((queue, before)), Some(first)) => queue.any_of(vec![first], *before),
            (Some((queue, before)), None) => queue.changed(*before),
            (None, _) => Box::pin(std::future::pending()),
        };
        Box::pin(async move {
            // The watches are kept until here.
            let _registrations = self;
            tokio::select! {
                () = written => {}
                () = queue_changed => {}
                () = tokio::time::sleep(poll_interval) => {}
            }
        })
    }
}

/// A grant, as the writer of a record.
pub(crate) struct Grant<'a> {
    pub(crate) request: &'a Request,
    pub(crate) queue_key: &'a QueueKey,
    /// The lease of its session.
    pub(crate) lease: i64,
    /// The create revision of its key.
    pub(crate) revision: i64,
}

/// The record as it is stored.
struct Found {
    /// 0 if there is none.
    revision: i64,
    record: Option<StoredRecord>,
}

impl Grant<'_> {
    /// Replaces or clears the record. Each request to a member may take `timeout`.
    pub(crate) async fn write_record(
        &self,
        cluster: &Cluster,
        timeout: Duration,
        write: &RecordWrite,
    ) -> Result<u64> {
        if self.queue_key.mode != Mode::Exclusive {
            return Err(ERRORS.error(
                ErrorKind::Unsupported,
                WRITE,
                "only the holder of an exclusive lock writes its record; use a mutex or a write lock",
            ));
        }
        let (owner, sequence) = (self.request.owner(), write.sequence());
        let place = cluster.layout.record(self.request.key(), WRITE)?;
        let read = cluster.get(WRITE, timeout, &place, None).await?;
        let mut found = self.found(read.kvs().first())?;
        for _ in 0..MAX_ATTEMPTS {
            let previous = found.record.as_ref();
            if let Some(previous) = previous.filter(|it| it.supersedes(owner, sequence)) {
                return Ok(previous.version);
            }
            let (token, now) = (token_of(self.revision), SystemTime::now());
            let record = StoredRecord::after(previous, self.request, token, write, now);
            let txn = self.replace(&place, found.revision, record.encode());
            let (answer, resent) = cluster
                .txn_tracking_resends(WRITE, SideEffect::Writes, timeout, || txn.clone())
                .await?;
            if answer.succeeded() {
                return Ok(record.version);
            }
            let mut parts = answer.op_responses().into_iter().map(first_of);
            let mut next = || parts.next().ok_or_else(|| ERRORS.unexpected(WRITE))?;
            let (own_key, stored) = (next()?, next()?);
            let holds = own_key.is_some_and(|kv| kv.create_revision() == self.revision);
            found = match self.found(stored.as_ref()) {
                // An earlier copy has taken effect while the lock was held.
                Ok(Found {
                    record: Some(record),
                    ..
                }) if record.supersedes(owner, sequence) => return Ok(record.version),
                _ if !holds => return Err(not_held(resent)),
                found => found?,
            };
        }
        Err(ERRORS.error(
            ErrorKind::Unavailable,
            WRITE,
            "other programs change the record at each attempt of the write; stop them, or choose another name",
        ))
    }

    /// Puts the record if this grant holds the lock and the record has this revision. Otherwise
    /// reads both.
    fn replace(&self, place: &EtcdKey, revision: i64, record: Vec<u8>) -> Txn {
        let own_key = self.queue_key.key.to_vec();
        let holds = Compare::create_revision(own_key.clone(), CompareOp::Equal, self.revision);
        let unchanged = Compare::mod_revision(place.to_vec(), CompareOp::Equal, revision);
        let keys_only = GetOptions::new().with_keys_only();
        Txn::new()
            .when([holds, unchanged])
            .and_then([TxnOp::put(place.to_vec(), record, None)])
            .or_else([
                TxnOp::get(own_key, Some(keys_only)),
                TxnOp::get(place.to_vec(), None),
            ])
    }

    fn found(&self, kv: Option<&KeyValue>) -> Result<Found> {
        Ok(match kv {
            None => Found {
                revision: 0,
                record: None,
            },
            Some(kv) => Found {
                revision: kv.mod_revision(),
                record: Some(decode(self.request.key(), kv, WRITE)?),
            },
        })
    }
}

/// Creates the error of a write whose lock is no longer held. If it was sent again, an earlier copy
/// may have been written before the loss, and be replaced by the next holder.
pub(crate) fn not_held(resent: bool) -> Error {
    let kind = if resent {
        ErrorKind::Indeterminate
    } else {
        ErrorKind::Lost
    };
    ERRORS.error(
        kind,
        WRITE,
        "the key of the holder is gone, so the lock is no longer held; acquire it again",
    )
}
