//! The transactions of the lock recipe. It is the recipe of Go's `concurrency.Mutex`, extended by
//! readers and permits.
//!
//! The key with the lowest create revision under the prefix of a lock holds the lock. A reader
//! considers only the keys of writers. Of permits, the lowest `of` keys hold.

use etcd_client::{
    Compare, CompareOp, GetOptions, GetResponse, KeyValue, PutOptions, SortOrder, SortTarget, Txn,
    TxnOp, TxnOpResponse, TxnResponse,
};
use leasehold_core::{ErrorKind, LockKey, Mode, Result};

use crate::{
    error::ERRORS,
    keys::{EtcdKey, KeyLayout, LockPrefix},
};

/// The key of one acquisition in the queue of a lock.
#[derive(Clone, Debug)]
pub(crate) struct QueueKey {
    pub(crate) lock_prefix: LockPrefix,
    pub(crate) key: EtcdKey,
    pub(crate) mode: Mode,
    /// Unique to this acquisition. The key of a candidate of an election is unique instead.
    pub(crate) value: Vec<u8>,
    pub(crate) layout: KeyLayout,
}

/// The kind of a transaction on a queue key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TxnKind {
    /// See [`QueueKey::enqueue`].
    Enqueue { lease: i64 },
    /// See [`QueueKey::attempt`].
    Attempt { lease: i64 },
    /// See [`QueueKey::hold`].
    Hold { lease: i64, revision: i64 },
    /// See [`QueueKey::hold_if_first`].
    HoldIfFirst { lease: i64, revision: i64 },
    /// See [`QueueKey::leave`].
    Leave,
    /// See [`QueueKey::release`]. `again`: an earlier release may have succeeded.
    Release { revision: i64, again: bool },
}

/// The result of a transaction.
#[derive(Debug)]
pub(crate) enum TxnResult {
    Txn(TxnResponse),
    /// The number of deleted keys.
    Deleted(i64),
}

impl TxnResult {
    /// Returns the response of a kind that is always sent as a transaction.
    pub(crate) fn txn(&self) -> Result<&TxnResponse> {
        match self {
            Self::Txn(answer) => Ok(answer),
            Self::Deleted(_) => Err(ERRORS.unexpected("acquire")),
        }
    }

    /// Returns whether a release deleted the key.
    pub(crate) fn freed(&self) -> bool {
        match self {
            Self::Txn(answer) => answer.succeeded(),
            Self::Deleted(count) => *count > 0,
        }
    }
}

/// The position of an acquisition in the queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum QueuePosition {
    /// The acquisition holds the lock. The key was created at this revision.
    Holds(i64),
    /// The acquisition waits. The key was created at this revision.
    Waits(i64),
    /// The acquisition has no key: the attempt was refused, or the session has ended.
    Absent,
}

impl QueueKey {
    /// Returns the transaction of a kind.
    pub(crate) fn txn(&self, kind: TxnKind) -> Txn {
        match kind {
            TxnKind::Enqueue { lease } => self.enqueue(lease),
            TxnKind::Attempt { lease } => self.attempt(lease),
            TxnKind::Hold { lease, revision } => self.hold(lease, revision),
            TxnKind::HoldIfFirst { lease, revision } => self.hold_if_first(lease, revision),
            TxnKind::Leave => self.leave(),
            TxnKind::Release { revision, .. } => self.release(revision),
        }
    }

    /// Creates the key unless it exists, and reads the first keys of the queue.
    fn enqueue(&self, lease: i64) -> Txn {
        let put = TxnOp::put(
            self.key.to_vec(),
            self.value.clone(),
            Some(PutOptions::new().with_lease(lease)),
        );
        let own_key = TxnOp::get(self.key.to_vec(), None);
        Txn::new()
            .when([Compare::create_revision(
                self.key.to_vec(),
                CompareOp::Equal,
                0,
            )])
            .and_then([vec![put], self.first_keys()].concat())
            .or_else([vec![own_key], self.first_keys()].concat())
    }

    /// Acquires the lock if it is free, in one transaction that compares the whole range, and
    /// otherwise changes nothing. The server cannot compare a count, so permits queue, and leave
    /// the queue if they were too late.
    fn attempt(&self, lease: i64) -> Txn {
        let free = |start: Vec<u8>, end: Vec<u8>| {
            Compare::create_revision(start, CompareOp::Equal, 0).with_range(end)
        };
        let (start, end) = (self.lock_prefix.start(), self.lock_prefix.end());
        let compares = match self.mode {
            Mode::Permit { .. } => return self.enqueue(lease),
            Mode::Shared => {
                let (readers, behind) = self.lock_prefix.readers();
                vec![free(start, readers), free(behind, end)]
            }
            _ => vec![free(start, end)],
        };
        let put = TxnOp::put(
            self.key.to_vec(),
            self.value.clone(),
            Some(PutOptions::new().with_lease(lease)),
        );
        // A copy that is sent after a lost reply finds its own key, which exists only if the lock
        // was free.
        let own_key = TxnOp::get(self.key.to_vec(), None);
        Txn::new().when(compares).and_then([put]).or_else([own_key])
    }

    /// Moves the key of a new holder from the lease of waiters to the lease of its session. Its
    /// create revision stays the same, and so does its value: a late copy undoes no later proposal
    /// of a candidate.
    fn hold(&self, lease: i64, revision: i64) -> Txn {
        Txn::new()
            .when(self.may_hold(revision))
            .and_then([self.moved(lease)])
    }

    /// Moves the key like [`hold`](Self::hold) if no key is ahead, and otherwise reads its
    /// position. For exclusive locks.
    fn hold_if_first(&self, lease: i64, revision: i64) -> Txn {
        let (start, end) = (self.lock_prefix.start(), self.lock_prefix.end());
        let first =
            Compare::create_revision(start, CompareOp::Greater, revision - 1).with_range(end);
        let compares = [self.may_hold(revision), vec![first]].concat();
        Txn::new()
            .when(compares)
            .and_then([self.moved(lease)])
            .or_else(self.position_ops(revision))
    }

    /// Compares that the key still exists and that the lock was not revoked. The mark would belong
    /// to the lease that the key leaves.
    fn may_hold(&self, revision: i64) -> Vec<Compare> {
        let mark = self.layout.mark(self.key.as_bytes(), revision);
        let unmarked =
            mark.map(|mark| Compare::create_revision(mark.to_vec(), CompareOp::Equal, 0));
        let still = Compare::create_revision(self.key.to_vec(), CompareOp::Equal, revision);
        std::iter::once(still).chain(unmarked).collect()
    }

    fn moved(&self, lease: i64) -> TxnOp {
        let options = PutOptions::new().with_lease(lease).with_ignore_value();
        TxnOp::put(self.key.to_vec(), "", Some(options))
    }

    /// Reads the position of the key that was created at `revision`.
    pub(crate) fn position_txn(&self, revision: i64) -> Txn {
        Txn::new().and_then(self.position_ops(revision))
    }

    fn position_ops(&self, revision: i64) -> Vec<TxnOp> {
        let own_key = TxnOp::get(self.key.to_vec(), Some(GetOptions::new().with_keys_only()));
        let ahead = |(start, end): (Vec<u8>, Vec<u8>), limit| {
            let options = GetOptions::new()
                .with_range(end)
                .with_max_create_revision(revision - 1)
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_limit(limit)
                .with_keys_only();
            TxnOp::get(start, Some(options))
        };
        let ranges = self
            .ranges()
            .into_iter()
            .map(|range| ahead(range, self.max_holders()));
        std::iter::once(own_key).chain(ranges).collect()
    }

    /// Returns whether a transaction that is sent alone is a plain delete of the key. This costs
    /// the server a tenth less of a pair than a transaction with a comparison (measured).
    ///
    /// The comparison is not needed. The name of the key contains the lease and a slot of this
    /// acquisition, and no other acquisition uses it before the reply to this delete, nor ever if a
    /// reply is missing ([`Claim::tombstone`]). Only a release that may have succeeded before must
    /// compare.
    ///
    /// [`Claim::tombstone`]: leasehold_core::session::Claim::tombstone
    pub(crate) fn is_delete(kind: TxnKind) -> bool {
        matches!(kind, TxnKind::Leave | TxnKind::Release { again: false, .. })
    }

    /// Deletes the key, of a holder or of a waiter.
    fn leave(&self) -> Txn {
        Txn::new().and_then([TxnOp::delete(self.key.to_vec(), None)])
    }

    /// Deletes the key if it was created at this revision.
    fn release(&self, revision: i64) -> Txn {
        Txn::new()
            .when([Compare::create_revision(
                self.key.to_vec(),
                CompareOp::Equal,
                revision,
            )])
            .and_then([TxnOp::delete(self.key.to_vec(), None)])
    }

    /// Parses the response to [`enqueue`](Self::enqueue).
    pub(crate) fn parse_enqueue(
        &self,
        name: &LockKey,
        answer: &TxnResponse,
    ) -> Result<QueuePosition> {
        let mut parts = answer.op_responses().into_iter();
        let revision = match parts.next() {
            Some(TxnOpResponse::Put(put)) => {
                put.header().map(etcd_client::ResponseHeader::revision)
            }
            Some(TxnOpResponse::Get(own_key)) => self.own_revision(&own_key)?,
            _ => None,
        };
        let revision = revision
            .filter(|revision| *revision > 0)
            .ok_or_else(|| ERRORS.unexpected("acquire"))?;
        let heads = parts.map(as_range).collect::<Result<Vec<_>>>()?;
        let holds = match self.mode {
            Mode::Permit { of } => {
                self.check_permits(name, of.get(), &heads)?;
                heads
                    .iter()
                    .flat_map(GetResponse::kvs)
                    .any(|kv| kv.key() == self.key.as_bytes())
            }
            _ => heads
                .iter()
                .flat_map(GetResponse::kvs)
                .all(|kv| kv.create_revision() >= revision),
        };
        Ok(if holds {
            QueuePosition::Holds(revision)
        } else {
            QueuePosition::Waits(revision)
        })
    }

    /// Parses the response to [`attempt`](Self::attempt).
    pub(crate) fn parse_attempt(
        &self,
        name: &LockKey,
        answer: &TxnResponse,
    ) -> Result<QueuePosition> {
        if self.mode.is_permit() {
            return self.parse_enqueue(name, answer);
        }
        match answer.op_responses().into_iter().next() {
            Some(TxnOpResponse::Put(put)) => {
                let revision = put
                    .header()
                    .map(etcd_client::ResponseHeader::revision)
                    .filter(|revision| *revision > 0);
                revision
                    .map(QueuePosition::Holds)
                    .ok_or_else(|| ERRORS.unexpected("acquire"))
            }
            Some(TxnOpResponse::Get(own_key)) => Ok(self
                .own_revision(&own_key)?
                .map_or(QueuePosition::Absent, QueuePosition::Holds)),
            _ => Err(ERRORS.unexpected("acquire")),
        }
    }

    /// Parses the response to [`position_txn`](Self::position_txn). Returns the position, and the
    /// keys to wait for.
    pub(crate) fn parse_position(
        &self,
        name: &LockKey,
        revision: i64,
        answer: &TxnResponse,
    ) -> Result<(QueuePosition, Vec<EtcdKey>)> {
        let mut parts = answer.op_responses().into_iter().map(as_range);
        let own_key = parts.next().ok_or_else(|| ERRORS.unexpected("acquire"))??;
        if own_key
            .kvs()
            .first()
            .is_none_or(|kv| kv.create_revision() != revision)
        {
            return Ok((QueuePosition::Absent, Vec::new()));
        }
        let ahead = parts.collect::<Result<Vec<_>>>()?;
        let keys: Vec<_> = ahead
            .iter()
            .flat_map(GetResponse::kvs)
            .map(|kv| EtcdKey::from(kv.key()))
            .collect();
        let holds = match self.mode {
            Mode::Permit { of } => {
                self.check_permits(name, of.get(), &ahead)?;
                keys.len() < of.get() as usize
            }
            _ => keys.is_empty(),
        };
        Ok((
            if holds {
                QueuePosition::Holds(revision)
            } else {
                QueuePosition::Waits(revision)
            },
            keys,
        ))
    }

    /// Returns the create revision of the own key, if it exists.
    fn own_revision(&self, read: &GetResponse) -> Result<Option<i64>> {
        match read.kvs().first() {
            Some(kv) if kv.value() != self.value => Err(ERRORS.error(
                ErrorKind::Indeterminate,
                "acquire",
                "a key that an earlier acquisition left behind is in the way; try again",
            )),
            kv => Ok(kv.map(KeyValue::create_revision)),
        }
    }

    /// Reads the first keys of each relevant range.
    fn first_keys(&self) -> Vec<TxnOp> {
        let head = |(start, end): (Vec<u8>, Vec<u8>)| {
            let options = GetOptions::new()
                .with_range(end)
                .with_sort(SortTarget::Create, SortOrder::Ascend)
                .with_limit(self.max_holders())
                .with_keys_only();
            TxnOp::get(start, Some(options))
        };
        self.ranges().into_iter().map(head).collect()
    }

    /// Returns the ranges of the keys that exclude this one.
    fn ranges(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (start, end) = (self.lock_prefix.start(), self.lock_prefix.end());
        match self.mode {
            Mode::Shared => {
                let (readers, behind) = self.lock_prefix.readers();
                vec![(start, readers), (behind, end)]
            }
            _ => vec![(start, end)],
        }
    }

    /// Returns how many keys may hold at the same time.
    fn max_holders(&self) -> i64 {
        match self.mode {
            Mode::Permit { of } => of.get().into(),
            _ => 1,
        }
    }

    fn check_permits(&self, name: &LockKey, requested: u32, found: &[GetResponse]) -> Result<()> {
        let counts = found
            .iter()
            .flat_map(GetResponse::kvs)
            .map(|kv| self.lock_prefix.read(kv.key()).of);
        match counts.flatten().find(|of| *of != requested) {
            None => Ok(()),
            Some(existing) => Err(ERRORS.error(
                ErrorKind::Conflict,
                "acquire",
                format!(
                    "`{name}` is in use as a semaphore of {existing} permits, but {requested} were requested; use the same number \
                     for every semaphore of this name"
                ),
            )),
        }
    }
}

fn as_range(part: TxnOpResponse) -> Result<GetResponse> {
    match part {
        TxnOpResponse::Get(range) => Ok(range),
        _ => Err(ERRORS.unexpected("acquire")),
    }
}
