//! The floor: the bare driver with the requests of Go's `concurrency.Mutex`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use leasehold_etcd::etcd_client::{
    Compare, CompareOp, EventType, GetOptions, GetResponse, KvClient, LeaseClient, PutOptions,
    SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, WatchClient, WatchFilterType, WatchOptions,
    WatchStream,
};
use leasehold_integration::{HarnessError, Result};
use tokio::task::JoinHandle;

use super::{connect, failed};
use crate::{
    scenario::Scenario,
    subject::{FLOOR, Lock, Locks, Source},
};

const TTL_S: i64 = 30;

/// The bare driver with the round trips of Go's `concurrency.Mutex`, with all locks on one shared
/// lease:
///
/// - an acquisition is one transaction that creates the key and reads the first key of the range;
/// - a waiter reads the key before its own, waits for a watch to report the deletion, and reads
///   again. The watch is opened with the first wait and stays open, because a watch that starts at
///   a past revision costs 100 ms;
/// - a release deletes the key.
///
/// There is no deadline, batching, fail-over or cleanup. A task sends the keep-alives.
pub(super) struct Floor(pub(super) String);

impl Source for Floor {
    type Locks = FloorLocks;

    fn name(&self) -> &'static str {
        FLOOR
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        // A crowd without a local queue is a stampede, which is no useful floor.
        scenario != Scenario::Crowd
    }

    async fn open(&self) -> Result<FloorLocks> {
        let client = connect(&self.0).await?;
        let mut lease = client.lease_client();
        let id = lease.grant(TTL_S, None).await.map_err(failed)?.id();
        let (mut keeper, mut answers) = lease.keep_alive(id).await.map_err(failed)?;
        let keeping = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(TTL_S as u64) / 3);
            loop {
                ticks.tick().await;
                // An error means that the lease is lost, so that releases fail.
                drop(keeper.keep_alive().await);
                drop(answers.message().await);
            }
        });
        Ok(FloorLocks {
            kv: client.kv_client(),
            watch: client.watch_client(),
            lease,
            id,
            next: AtomicU64::new(0),
            keeping,
        })
    }
}

pub(super) struct FloorLocks {
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
    id: i64,
    next: AtomicU64,
    keeping: JoinHandle<()>,
}

pub(super) struct FloorLock {
    kv: KvClient,
    watch: WatchClient,
    /// Opened with the first wait.
    events: Option<WatchStream>,
    lease: i64,
    folder: String,
    key: Arc<str>,
}

impl Locks for FloorLocks {
    type Lock = FloorLock;

    fn lock(&self, name: &str) -> FloorLock {
        let folder = format!("floor/{name}/");
        let key = format!(
            "{folder}{:x}-{}",
            self.id,
            self.next.fetch_add(1, Ordering::Relaxed)
        )
        .into();
        FloorLock {
            kv: self.kv.clone(),
            watch: self.watch.clone(),
            events: None,
            lease: self.id,
            folder,
            key,
        }
    }

    async fn renew(&self, _held: &Arc<str>) -> Result<()> {
        Ok(())
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(mut self) -> Result<()> {
        self.keeping.abort();
        self.lease.revoke(self.id).await.map_err(failed)?;
        Ok(())
    }
}

impl FloorLock {
    /// Creates the key. Returns its create revision, and whether it is the first.
    async fn enqueue(&mut self) -> Result<(i64, bool)> {
        let key = self.key.as_bytes();
        let first = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        let put = TxnOp::put(
            key,
            Vec::new(),
            Some(PutOptions::new().with_lease(self.lease)),
        );
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, 0)])
            .and_then([put, TxnOp::get(self.folder.as_bytes(), Some(first.clone()))])
            .or_else([
                TxnOp::get(key, None),
                TxnOp::get(self.folder.as_bytes(), Some(first)),
            ]);
        let answer = self.kv.txn(txn).await.map_err(failed)?;
        match (answer.op_responses().into_iter().nth(1), answer.header()) {
            (Some(TxnOpResponse::Get(first)), Some(header)) if answer.succeeded() => {
                let revision = header.revision();
                Ok((
                    revision,
                    first
                        .kvs()
                        .first()
                        .is_some_and(|kv| kv.create_revision() == revision),
                ))
            }
            _ => Err(HarnessError::new("the floor was already queued")),
        }
    }

    /// Returns the key directly before this one, or `None` if this one holds the lock.
    async fn ahead(&mut self, revision: i64) -> Result<Option<Vec<u8>>> {
        let ahead = GetOptions::new()
            .with_prefix()
            .with_max_create_revision(revision - 1)
            .with_sort(SortTarget::Create, SortOrder::Descend)
            .with_limit(1)
            .with_keys_only();
        let mine = TxnOp::get(
            self.key.as_bytes(),
            Some(GetOptions::new().with_keys_only()),
        );
        let txn = Txn::new().and_then([mine, TxnOp::get(self.folder.as_bytes(), Some(ahead))]);
        let answer = self.kv.txn(txn).await.map_err(failed)?;
        let read = answer.op_responses().into_iter().map(|part| match part {
            TxnOpResponse::Get(read) => Some(read),
            _ => None,
        });
        match &*read
            .collect::<Option<Vec<GetResponse>>>()
            .unwrap_or_default()
        {
            [mine, _] if mine.kvs().is_empty() => {
                Err(HarnessError::new("the floor lost its queue key"))
            }
            [_, ahead] => Ok(ahead.kvs().first().map(|kv| kv.key().to_vec())),
            _ => Err(HarnessError::new("unexpected answer from etcd")),
        }
    }

    async fn events(&mut self) -> Result<&mut WatchStream> {
        if self.events.is_none() {
            let options = WatchOptions::new()
                .with_prefix()
                .with_filters([WatchFilterType::NoPut]);
            let mut events = self
                .watch
                .watch(self.folder.as_bytes(), Some(options))
                .await
                .map_err(failed)?;
            // Confirms that the watch is established.
            events.message().await.map_err(failed)?;
            self.events = Some(events);
        }
        self.events
            .as_mut()
            .ok_or_else(|| HarnessError::new("the watch is missing"))
    }

    async fn wait(&mut self, revision: i64) -> Result<()> {
        self.events().await?;
        while let Some(ahead) = self.ahead(revision).await? {
            let events = self.events().await?;
            let mut gone = false;
            while !gone {
                let message = events.message().await.map_err(failed)?;
                let message = message.ok_or_else(|| HarnessError::new("the watch ended"))?;
                // Deletions seen in an earlier wait do not count.
                gone = message.events().iter().any(|event| {
                    event.event_type() == EventType::Delete
                        && event
                            .kv()
                            .is_some_and(|kv| kv.key() == ahead && kv.mod_revision() > revision)
                });
            }
        }
        Ok(())
    }
}

impl Lock for FloorLock {
    /// The key.
    type Held = Arc<str>;

    async fn acquire(&mut self) -> Result<Arc<str>> {
        let (revision, is_first) = self.enqueue().await?;
        if !is_first {
            self.wait(revision).await?;
        }
        Ok(Arc::clone(&self.key))
    }

    async fn release(&mut self, key: Arc<str>) -> Result<()> {
        match self
            .kv
            .delete(key.as_bytes(), None)
            .await
            .map_err(failed)?
            .deleted()
        {
            1 => Ok(()),
            _ => Err(HarnessError::new(
                "the floor released a lock that it did not hold",
            )),
        }
    }
}
