//! Sessions: each session is one etcd lease.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{
    Compare, CompareOp, Error as Driver, KeyValue, LeaseClient, LeaseGrantOptions,
    LeaseGrantResponse, LeaseKeepAliveStream, LeaseKeeper, LeaseTimeToLiveOptions, PutOptions, Txn,
    TxnOp,
};
use leasehold_core::{
    AcquisitionId, Deadline, ErrorKind, LossReason, Result, Ttl,
    backend::{
        async_trait,
        support::{BatchLimits, Batcher},
    },
    session::{Claim, Opened, Owned, SessionClock, SessionDriver},
};

use crate::{
    batch::{BatchExecutor, Job},
    connection::{Cluster, MAX_BATCH},
    error::{self, ERRORS, SideEffect},
    keys::EtcdKey,
    queue::{QueueKey, TxnKind, TxnResult},
};

/// The number of attempts of a renewal, if the leader changes or a member does not answer. Also the
/// number of lease ids that are drawn if they exist already.
const MAX_ATTEMPTS: usize = 3;
/// Measured on two cores with 1 to 256 tasks: larger values of `alone` or `calls` are slower, by
/// half at 16 tasks.
const LIMITS: BatchLimits = BatchLimits {
    alone: 1,
    calls: 1,
    undivided: 1,
    batch: MAX_BATCH,
};

/// The largest total size of the keys of one lease. The server lists them in one message, of which
/// the driver reads 4 MiB. The other half is for the keys of lost replies, and for revocation
/// marks.
const KEY_BYTES: usize = 2 << 20;

/// Opens, renews and closes leases.
#[derive(Debug)]
pub(crate) struct EtcdSessions {
    pub(crate) cluster: Arc<Cluster>,
    /// Whether the sessions are for waiters. Their TTL is no choice of the user, so a longer
    /// minimum of the server is accepted.
    pub(crate) for_waiters: bool,
}

/// The handle of one session.
pub(crate) struct Handle {
    pub(crate) lease: i64,
    /// The key that a renewal reads. It exists as long as the lease.
    key: EtcdKey,
    pub(crate) executor: Arc<BatchExecutor>,
    batcher: Arc<Batcher<BatchExecutor>>,
    stream: tokio::sync::Mutex<Option<(LeaseKeeper, LeaseKeepAliveStream)>>,
    /// The create revisions of the locks that are held, to match revocation marks.
    held: Mutex<HashMap<EtcdKey, i64>>,
}

impl Handle {
    /// Records that the lock of `key` is held, from this create revision on.
    pub(crate) fn add_held(&self, key: &EtcdKey, revision: i64) {
        self.held().insert(key.clone(), revision);
    }

    /// Records that the lock of `key` is no longer held.
    pub(crate) fn remove_held(&self, key: &EtcdKey) {
        self.held().remove(key);
    }

    fn held(&self) -> MutexGuard<'_, HashMap<EtcdKey, i64>> {
        // No code panics while it holds this lock.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a transaction of one key, alone or in a batch with others of the session of the first
/// claim.
///
/// The transaction may be sent twice. If it was, or if its reply is missing, a copy may still
/// arrive: then the key is not used again in the session of any of the claims. Also returns whether
/// the transaction was sent twice.
pub(crate) async fn run(
    claims: &[&Claim<EtcdSessions>],
    operation: &'static str,
    queue_key: &Arc<QueueKey>,
    kind: TxnKind,
) -> Result<(TxnResult, bool)> {
    let Some(first) = claims.first() else {
        return Err(ERRORS.unexpected(operation));
    };
    let handle = first.session().handle();
    let ran = handle
        .batcher
        .run(
            &handle.executor,
            Job {
                operation,
                queue_key: Arc::clone(queue_key),
                kind,
            },
        )
        .await;
    match ran
        .map_err(|error| ERRORS.named(error, operation))
        .flatten()
    {
        Ok((answer, resent)) => {
            if resent {
                claims.iter().for_each(|claim| claim.tombstone());
            }
            Ok((answer, resent))
        }
        Err(error) => {
            match error.kind() {
                ErrorKind::Lost => first.session().end(LossReason::SessionEnded),
                ErrorKind::Indeterminate | ErrorKind::UnexpectedResponse => {
                    for claim in claims {
                        claim.tombstone();
                    }
                }
                _ => {}
            }
            Err(error)
        }
    }
}

/// The reply to a keep-alive.
enum KeepAliveReply {
    /// A member renewed the lease in this raft term.
    Renewed(u64),
    Expired,
}

impl EtcdSessions {
    fn request_timeout(&self, ttl: Ttl) -> Duration {
        if self.for_waiters {
            self.cluster.waiter_timeout(ttl)
        } else {
            self.cluster.request_timeout(ttl)
        }
    }

    /// Sends one keep-alive and waits for its reply.
    async fn keep_alive(&self, handle: &Handle, timeout: Duration) -> Result<KeepAliveReply> {
        let mut stream = handle.stream.lock().await;
        if stream.is_none() {
            let opened = self
                .cluster
                .call("renew", SideEffect::None, timeout, |channel| {
                    let mut lease = channel.lease.clone();
                    let id = handle.lease;
                    async move { lease.keep_alive(id).await }
                });
            match opened.await {
                Ok(opened) => *stream = Some(opened),
                Err(error) if error.kind() == ErrorKind::Lost => {
                    return Ok(KeepAliveReply::Expired);
                }
                Err(error) => return Err(error),
            }
        }
        let Some((keeper, answers)) = stream.as_mut() else {
            return Err(ERRORS.unexpected("renew"));
        };
        let replied = tokio::time::timeout(timeout, async {
            keeper.keep_alive().await?;
            answers.message().await
        });
        let answer = match replied.await {
            Ok(Ok(Some(answer))) => answer,
            // A late reply must not be matched with a later request, so the stream is not used
            // again.
            Ok(Ok(None)) => {
                *stream = None;
                return Err(ERRORS.error(
                    ErrorKind::Unavailable,
                    "renew",
                    "the server ended the keep-alive stream",
                ));
            }
            Ok(Err(error)) => {
                *stream = None;
                if self.cluster.needs_new_token(&error) {
                    self.cluster.authenticate("renew").await?;
                    return Err(ERRORS.error(
                        ErrorKind::Unavailable,
                        "renew",
                        "the server refused the token",
                    ));
                }
                return Err(error::from_driver(
                    error,
                    "renew",
                    SideEffect::None,
                    &self.cluster.first_member().address,
                ));
            }
            Err(_elapsed) => {
                *stream = None;
                let error = error::timed_out(
                    "renew",
                    SideEffect::None,
                    &self.cluster.first_member().address,
                    timeout,
                );
                self.cluster.skip_current_member();
                return Err(error);
            }
        };
        if answer.ttl() <= 0 {
            return Ok(KeepAliveReply::Expired);
        }
        let term = answer
            .header()
            .map(etcd_client::ResponseHeader::raft_term)
            .ok_or_else(|| ERRORS.unexpected("renew"))?;
        Ok(KeepAliveReply::Renewed(term))
    }

    /// Reads the key of the session. Returns the raft term if the key exists and belongs to the
    /// lease. The read is linearizable.
    async fn read_session_key(&self, handle: &Handle, timeout: Duration) -> Result<Option<u64>> {
        let read = self
            .cluster
            .get("renew", timeout, &handle.key, None)
            .await?;
        let term = read
            .header()
            .map(etcd_client::ResponseHeader::raft_term)
            .ok_or_else(|| ERRORS.unexpected("renew"))?;
        // If another program has written the key since, the key may outlive the lease.
        let exists = read.kvs().first().map(KeyValue::lease) == Some(handle.lease);
        Ok(exists.then_some(term))
    }

    async fn try_renew(&self, handle: &Handle, time: &SessionClock) -> Result<Option<Deadline>> {
        let timeout = self.request_timeout(time.ttl());
        let sent = time.now();
        let alive = self.keep_alive(handle, timeout).await?;
        // A leader that was paused and deposed acknowledges keep-alives that have no effect. It was
        // the leader only if a linearizable read *after* the reply shows the same term. A leader
        // that has just been elected may not know the lease yet, so the key decides.
        match (alive, self.read_session_key(handle, timeout).await?) {
            (_, None) => Err(ERRORS.error(
                ErrorKind::Lost,
                "renew",
                "the lease has expired or was revoked",
            )),
            (KeepAliveReply::Renewed(renewed), Some(now)) if renewed == now => {
                Ok(Some(time.deadline_from(sent)))
            }
            (_, Some(_)) => {
                // The stream may be connected to the deposed member.
                *handle.stream.lock().await = None;
                Ok(None)
            }
        }
    }
}

#[async_trait]
impl SessionDriver for EtcdSessions {
    type Handle = Handle;
    type Claim = EtcdKey;

    fn capacity(&self) -> usize {
        KEY_BYTES
    }

    fn weight(&self, key: &EtcdKey) -> usize {
        // The key and its overhead in the message.
        key.as_bytes().len() + 8
    }

    async fn open(&self, time: &SessionClock) -> Result<Opened<Handle>> {
        let (cluster, timeout) = (&self.cluster, self.request_timeout(time.ttl()));
        // Leases have whole seconds. Rounding up is safe: the server may keep the lease longer than
        // the client assumes.
        let seconds = i64::try_from(time.ttl().as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let sent = time.now();
        let granted = cluster.call("acquire", SideEffect::Writes, timeout, |channel| {
            let mut lease = channel.lease.clone();
            async move { grant(&mut lease, seconds).await }
        });
        let granted = granted.await?;
        let (id, granted) = (granted.id(), granted.ttl());
        let executor = Arc::new(BatchExecutor {
            cluster: Arc::clone(cluster),
            timeout,
        });
        let key = cluster.layout.session(id);
        let handle = Handle {
            lease: id,
            key: key.clone(),
            executor,
            batcher: Arc::new(Batcher::new(LIMITS)),
            stream: tokio::sync::Mutex::default(),
            held: Mutex::default(),
        };
        if granted != seconds && !self.for_waiters {
            drop(self.close(&handle).await);
            return Err(ERRORS.error(
                ErrorKind::InvalidInput,
                "acquire",
                format!(
                    "the TTL is {}, but the shortest lease of the server is {granted} s; use a longer TTL, or lower the server's \
                     --election-timeout",
                    time.ttl()
                ),
            ));
        }
        let put = TxnOp::put(
            key.to_vec(),
            time.label(),
            Some(PutOptions::new().with_lease(id)),
        );
        if let Err(error) = cluster
            .txn(
                "acquire",
                SideEffect::Writes,
                timeout,
                &Txn::new().and_then([put]),
            )
            .await
        {
            drop(self.close(&handle).await);
            return Err(error);
        }
        Ok(Opened {
            handle,
            deadline: time.deadline_from(sent),
        })
    }

    async fn renew(&self, handle: &Handle, time: &SessionClock) -> Result<Deadline> {
        let mut last = None;
        for _ in 0..MAX_ATTEMPTS {
            match self.try_renew(handle, time).await {
                Ok(Some(deadline)) => return Ok(deadline),
                Ok(None) => {}
                Err(error) if error.is_retryable() => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            ERRORS.error(
                ErrorKind::Unavailable,
                "renew",
                "the leader of the cluster changed during each attempt of the renewal",
            )
        }))
    }

    async fn list_owned(&self, handle: &Handle) -> Result<Owned<EtcdKey>> {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        let answer = self.cluster.call(
            "reconcile",
            SideEffect::None,
            self.cluster.config.timeout,
            |channel| {
                let (mut lease, id, options) =
                    (channel.lease.clone(), handle.lease, options.clone());
                async move { lease.time_to_live(id, Some(options)).await }
            },
        );
        let answer = answer.await?;
        if answer.ttl() <= 0 {
            return Err(ERRORS.error(
                ErrorKind::Unavailable,
                "reconcile",
                "this member does not know the lease",
            ));
        }
        let mut owned = Owned::default();
        for key in answer.keys() {
            if let Some((key, revision)) = self.cluster.layout.marked(key)
                && handle.held().get(&key) == Some(&revision)
            {
                owned.revoked.push(key);
            }
            if key.as_slice() != handle.key.as_bytes() {
                // A mark belongs to no claim. It is removed after it was read.
                owned.claims.push(EtcdKey::from(key.as_slice()));
            }
        }
        Ok(owned)
    }

    async fn delete_orphans(&self, handle: &Handle, orphans: Vec<EtcdKey>) -> Result<()> {
        // If the waiter was granted the lock in the meantime, its key belongs to another lease.
        let delete = |key: &EtcdKey| {
            let belongs = Compare::lease(key.to_vec(), CompareOp::Equal, handle.lease);
            TxnOp::txn(
                Txn::new()
                    .when([belongs])
                    .and_then([TxnOp::delete(key.to_vec(), None)]),
            )
        };
        let (cluster, timeout) = (&self.cluster, handle.executor.timeout);
        let mut rest = orphans.as_slice();
        while !rest.is_empty() {
            let (some, others) = rest.split_at(cluster.max_batch().min(rest.len()));
            let (done, _) = cluster
                .txns_tracking_resends("reconcile", timeout, || some.iter().map(delete).collect())
                .await?;
            if done.is_some() {
                rest = others;
            }
        }
        Ok(())
    }

    async fn close(&self, handle: &Handle) -> Result<()> {
        *handle.stream.lock().await = None;
        let revoked = self.cluster.call(
            "close",
            SideEffect::Writes,
            handle.executor.timeout,
            |channel| {
                let (mut lease, id) = (channel.lease.clone(), handle.lease);
                async move { lease.revoke(id).await }
            },
        );
        match revoked.await {
            Err(error) if error.kind() != ErrorKind::Lost => Err(error),
            _ => Ok(()),
        }
    }
}

/// Grants a lease with a new random id.
///
/// A lease that exists already is never used, because every user may grant leases with a short TTL
/// and revoke them. Such a lease may also be one of this client, whose reply was lost: it has no
/// keys, and expires.
async fn grant(leases: &mut LeaseClient, seconds: i64) -> Result<LeaseGrantResponse, Driver> {
    let mut attempts = 0;
    loop {
        let id = (AcquisitionId::random().as_u128() as i64 & i64::MAX).max(1);
        match leases
            .grant(seconds, Some(LeaseGrantOptions::new().with_id(id)))
            .await
        {
            Err(error) if error::is_lease_taken(&error) && attempts < MAX_ATTEMPTS => attempts += 1,
            granted => return granted,
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:x})", self.lease)
    }
}
