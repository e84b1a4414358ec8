//! The transactions of the lock recipe: that of Go's `concurrency.Mutex`, with readers and permits.
//!
//! Who has the lowest create revision under the lock's lock_prefix holds it. A reader looks only at
//! those who are not readers; of permits the lowest `of` hold.

use etcd_client::{
    Compare, CompareOp, GetOptions, GetResponse, KeyValue, PutOptions, SortOrder, SortTarget, Txn,
    TxnOp, TxnOpResponse, TxnResponse,
};
use leasehold_core::{ErrorKind, LockKey, Mode, Result};

use crate::{
    error,
    keys::{EtcdKey, KeyLayout, LockPrefix},
};

/// One acquisition's queue_key.
#[derive(Clone, Debug)]
pub(crate) struct QueueKey {
    pub(crate) lock_prefix: LockPrefix,
    pub(crate) key: EtcdKey,
    pub(crate) mode: Mode,
    /// Of this acquisition and no other.
    pub(crate) value: Vec<u8>,
    pub(crate) layout: KeyLayout,
}

/// What is asked for it.
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
    /// See [`QueueKey::release`]. `again`: an earlier release may have done it.
    Release { revision: i64, again: bool },
}

/// What the server says to a kind.
#[derive(Debug)]
pub(crate) enum TxnResult {
    Txn(TxnResponse),
    /// How many keys were deleted.
    Deleted(i64),
}

impl TxnResult {
    /// Of a kind that is a transaction always.
    pub(crate) fn txn(&self) -> Result<&TxnResponse> {
        match self {
            Self::Txn(answer) => Ok(answer),
            Self::Deleted(_) => Err(error::protocol("acquire")),
        }
    }

    /// Of a release: whether the key was there.
    pub(crate) fn freed(&self) -> bool {
        match self {
            Self::Txn(answer) => answer.succeeded(),
            Self::Deleted(count) => *count > 0,
        }
    }
}

/// Where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum QueuePosition {
    /// It holds; its key was created at this revision.
    Holds(i64),
    /// It waits; its key was created at this revision.
    Waits(i64),
    /// It has no key: a try that was refused, or a session that is over.
    Absent,
}

impl QueueKey {
    /// The transaction of a kind.
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

    /// Queues, if it is not queued already, and says who is first.
    fn enqueue(&self, lease: i64) -> Txn {
        let put = TxnOp::put(
            self.key.to_vec(),
            self.value.clone(),
            Some(PutOptions::new().with_lease(lease)),
        );
        let mine = TxnOp::get(self.key.to_vec(), None);
        Txn::new()
            .when([Compare::create_revision(
                self.key.to_vec(),
                CompareOp::Equal,
                0,
            )])
            .and_then([vec![put], self.first_keys()].concat())
            .or_else([vec![mine], self.first_keys()].concat())
    }

    /// Takes the lock if it is free, in one transaction that compares the whole range; else leaves
    /// nothing. Of permits there is no comparison that counts: those queue, and leave if they were
    /// too late.
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
        // Sent again after a lost answer, it finds its own key, which is there only if the lock was
        // free.
        let mine = TxnOp::get(self.key.to_vec(), None);
        Txn::new().when(compares).and_then([put]).or_else([mine])
    }

    /// Moves a key that holds to the lease of its session: a waiter's is of another lease. Its
    /// create revision stays.
    fn hold(&self, lease: i64, revision: i64) -> Txn {
        Txn::new()
            .when(self.may_hold(revision))
            .and_then([self.moved(lease)])
    }

    /// As [`hold`](Self::hold), if no key is ahead; otherwise asks where it stands. For exclusive
    /// locks.
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

    /// Its key is still there, and no operator has broken the lock that it is about to hold: the
    /// mark would be of the lease that the key leaves.
    fn may_hold(&self, revision: i64) -> Vec<Compare> {
        let mark = self.layout.mark(self.key.as_bytes(), revision);
        let unmarked =
            mark.map(|mark| Compare::create_revision(mark.to_vec(), CompareOp::Equal, 0));
        let still = Compare::create_revision(self.key.to_vec(), CompareOp::Equal, revision);
        std::iter::once(still).chain(unmarked).collect()
    }

    fn moved(&self, lease: i64) -> TxnOp {
        TxnOp::put(
            self.key.to_vec(),
            self.value.clone(),
            Some(PutOptions::new().with_lease(lease)),
        )
    }

    /// Asks where it stands; `revision` is its own.
    pub(crate) fn position_txn(&self, revision: i64) -> Txn {
        Txn::new().and_then(self.position_ops(revision))
    }

    fn position_ops(&self, revision: i64) -> Vec<TxnOp> {
        let mine = TxnOp::get(self.key.to_vec(), Some(GetOptions::new().with_keys_only()));
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
        std::iter::once(mine).chain(ranges).collect()
    }

    /// Whether a kind that travels alone is a plain delete of the key, which costs the server a
    /// tenth less of a pair than a transaction that compares first (measured).
    ///
    /// The name of the key is what is compared: it has the lease and a slot of this acquisition in
    /// it, and nobody else uses it before the answer to this delete is in, nor ever if an answer is
    /// missing ([`Claim::retire`]). So there is nothing that a comparison could save, unless an
    /// earlier release may have been done.
    ///
    /// [`Claim::retire`]: leasehold_core::session::Claim::retire
    pub(crate) fn is_delete(kind: TxnKind) -> bool {
        matches!(kind, TxnKind::Leave | TxnKind::Release { again: false, .. })
    }

    /// Leaves, whether it holds or waits.
    fn leave(&self) -> Txn {
        Txn::new().and_then([TxnOp::delete(self.key.to_vec(), None)])
    }

    /// Gives up what was created at this revision, and nothing else.
    fn release(&self, revision: i64) -> Txn {
        Txn::new()
            .when([Compare::create_revision(
                self.key.to_vec(),
                CompareOp::Equal,
                revision,
            )])
            .and_then([TxnOp::delete(self.key.to_vec(), None)])
    }

    /// Reads the answer to [`enqueue`](Self::enqueue).
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
            Some(TxnOpResponse::Get(mine)) => self.own_revision(&mine)?,
            _ => None,
        };
        let revision = revision
            .filter(|revision| *revision > 0)
            .ok_or_else(|| error::protocol("acquire"))?;
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

    /// Reads the answer to [`attempt`](Self::attempt).
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
                    .ok_or_else(|| error::protocol("acquire"))
            }
            Some(TxnOpResponse::Get(mine)) => Ok(self
                .own_revision(&mine)?
                .map_or(QueuePosition::Absent, QueuePosition::Holds)),
            _ => Err(error::protocol("acquire")),
        }
    }

    /// Reads the answer to [`look`](Self::look): where it stands, and whose leaving to wait for.
    pub(crate) fn parse_position(
        &self,
        name: &LockKey,
        revision: i64,
        answer: &TxnResponse,
    ) -> Result<(QueuePosition, Vec<EtcdKey>)> {
        let mut parts = answer.op_responses().into_iter().map(as_range);
        let mine = parts.next().ok_or_else(|| error::protocol("acquire"))??;
        if mine
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

    /// The create revision of its key, if it is there.
    fn own_revision(&self, read: &GetResponse) -> Result<Option<i64>> {
        match read.kvs().first() {
            Some(kv) if kv.value() != self.value => Err(error::plain(
                ErrorKind::Indeterminate,
                "acquire",
                "what an earlier acquisition left behind is in the way; try again",
            )),
            kv => Ok(kv.map(KeyValue::create_revision)),
        }
    }

    /// The first of each range that matters.
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

    /// Where those are who exclude it.
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

    /// How many can hold beside it.
    fn max_holders(&self) -> i64 {
        match self.mode {
            Mode::Permit { of } => of.get().into(),
            _ => 1,
        }
    }

    fn check_permits(&self, name: &LockKey, ours: u32, seen: &[GetResponse]) -> Result<()> {
        let counts = seen
            .iter()
            .flat_map(GetResponse::kvs)
            .map(|kv| self.lock_prefix.read(kv.key()).of);
        match counts.flatten().find(|of| *of != ours) {
            None => Ok(()),
            Some(theirs) => Err(error::plain(
                ErrorKind::Conflict,
                "acquire",
                format!(
                    "`{name}` was asked for as one of {ours} permits and is used as one of {theirs}; say the same count \
                     everywhere"
                ),
            )),
        }
    }
}

fn as_range(part: TxnOpResponse) -> Result<GetResponse> {
    match part {
        TxnOpResponse::Get(range) => Ok(range),
        _ => Err(error::protocol("acquire")),
    }
}
