//! Sessions: one etcd lease each.

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
    backend::async_trait,
    session::{BatchLimits, Batcher, Claim, Opened, Owned, SessionDriver, SessionTime},
};
use tokio::time::timeout;

use crate::{
    batch::{BatchExecutor, Job},
    connection::{Cluster, TOGETHER},
    error::{self, Effect},
    keys::EtcdKey,
    queue::{Answer, Place, Step},
};

/// How often a renewal is tried at once because the leader changed meanwhile or a member did not
/// answer. Also how many more lease ids are drawn when one exists already.
const TRIES: usize = 3;
/// Measured on two cores with 1 to 256 tasks: anything more alone or at a time is slower, at 16
/// tasks by half.
const LIMITS: BatchLimits = BatchLimits {
    alone: 1,
    calls: 1,
    batch: TOGETHER,
};

/// How many bytes of keys one lease has at most. The server lists them in one message, of which the
/// driver reads 4 MiB: the other half is for keys that lost answers left behind, and for marks.
const KEY_BYTES: usize = 2 << 20;

/// Opens, renews and closes leases.
#[derive(Debug)]
pub(crate) struct EtcdSessions {
    pub(crate) cluster: Arc<Cluster>,
    /// For waiters, whose TTL nobody asked for: the server's minimum may be longer.
    pub(crate) for_waiters: bool,
}

/// One lease.
pub(crate) struct Handle {
    pub(crate) lease: i64,
    /// A key that lives as long as the lease: what a renewal reads.
    key: EtcdKey,
    carrier: Arc<BatchExecutor>,
    gather: Arc<Batcher<BatchExecutor>>,
    stream: tokio::sync::Mutex<Option<(LeaseKeeper, LeaseKeepAliveStream)>>,
    /// The create revisions of what is held, to tell whose mark a mark is.
    held: Mutex<HashMap<EtcdKey, i64>>,
}

impl Handle {
    /// Notes that this is held, from this create revision on.
    pub(crate) fn hold(&self, key: &EtcdKey, revision: i64) {
        self.held().insert(key.clone(), revision);
    }

    /// Notes that it is held no longer.
    pub(crate) fn forget(&self, key: &EtcdKey) {
        self.held().remove(key);
    }

    fn held(&self) -> MutexGuard<'_, HashMap<EtcdKey, i64>> {
        // Nothing panics while it is held.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a transaction of one key that may be sent twice, alone or with others of the session of its
/// first claim. If it was, or if its answer is missing, something may still arrive: then the key is
/// not used again in the session of any of its claims. Also returns whether it was sent twice.
pub(crate) async fn run(
    claims: &[&Claim<EtcdSessions>],
    operation: &'static str,
    place: &Arc<Place>,
    step: Step,
) -> Result<(Answer, bool)> {
    let Some(first) = claims.first() else {
        return Err(error::protocol(operation));
    };
    let handle = first.session().handle();
    let ran = handle
        .gather
        .run(
            &handle.carrier,
            Job {
                operation,
                place: Arc::clone(place),
                step,
            },
        )
        .await;
    match ran
        .map_err(|error| error::named(error, operation))
        .flatten()
    {
        Ok((answer, twice)) => {
            if twice {
                claims.iter().for_each(|claim| claim.retire());
            }
            Ok((answer, twice))
        }
        Err(error) => {
            match error.kind() {
                ErrorKind::Lost => first.session().end(LossReason::SessionEnded),
                ErrorKind::Indeterminate | ErrorKind::UnexpectedResponse => {
                    for claim in claims {
                        claim.retire();
                        claim.doubt();
                    }
                }
                _ => {}
            }
            Err(error)
        }
    }
}

/// What a keep-alive says.
enum Alive {
    /// It was renewed by a member in this term.
    InTerm(u64),
    Gone,
}

impl EtcdSessions {
    fn patience(&self, ttl: Ttl) -> Duration {
        if self.for_waiters {
            self.cluster.patience_to_wait(ttl)
        } else {
            self.cluster.patience(ttl)
        }
    }

    /// Sends one keep-alive and takes its answer.
    async fn keep_alive(&self, handle: &Handle, patience: Duration) -> Result<Alive> {
        let mut stream = handle.stream.lock().await;
        if stream.is_none() {
            let opened = self.cluster.call("renew", Effect::None, patience, |live| {
                let mut lease = live.lease.clone();
                let id = handle.lease;
                async move { lease.keep_alive(id).await }
            });
            match opened.await {
                Ok(opened) => *stream = Some(opened),
                Err(error) if error.kind() == ErrorKind::Lost => return Ok(Alive::Gone),
                Err(error) => return Err(error),
            }
        }
        let Some((keeper, answers)) = stream.as_mut() else {
            return Err(error::protocol("renew"));
        };
        let asked = timeout(patience, async {
            keeper.keep_alive().await?;
            answers.message().await
        });
        let answer = match asked.await {
            Ok(Ok(Some(answer))) => answer,
            // A late answer must not be taken for a later question's: the stream is not used again.
            Ok(Ok(None)) => {
                *stream = None;
                return Err(error::plain(
                    ErrorKind::Unavailable,
                    "renew",
                    "the server ended the keep-alive stream",
                ));
            }
            Ok(Err(error)) => {
                *stream = None;
                if self.cluster.may_authenticate(&error) {
                    self.cluster.authenticate("renew").await?;
                    return Err(error::plain(
                        ErrorKind::Unavailable,
                        "renew",
                        "the server refused the token",
                    ));
                }
                return Err(error::of_driver(
                    error,
                    "renew",
                    Effect::None,
                    &self.cluster.asked_first().address,
                ));
            }
            Err(_elapsed) => {
                *stream = None;
                let error = error::timed_out(
                    "renew",
                    Effect::None,
                    &self.cluster.asked_first().address,
                    patience,
                );
                self.cluster.distrust();
                return Err(error);
            }
        };
        if answer.ttl() <= 0 {
            return Ok(Alive::Gone);
        }
        let term = answer
            .header()
            .map(etcd_client::ResponseHeader::raft_term)
            .ok_or_else(|| error::protocol("renew"))?;
        Ok(Alive::InTerm(term))
    }

    /// Reads whether the session's key is there and belongs to the lease, and in which term. The
    /// read is linearizable.
    async fn proof(&self, handle: &Handle, patience: Duration) -> Result<Option<u64>> {
        let read = self
            .cluster
            .get("renew", patience, &handle.key, None)
            .await?;
        let term = read
            .header()
            .map(etcd_client::ResponseHeader::raft_term)
            .ok_or_else(|| error::protocol("renew"))?;
        // If another program has written the key since, the key may outlive the lease.
        let stands = read.kvs().first().map(KeyValue::lease) == Some(handle.lease);
        Ok(stands.then_some(term))
    }

    async fn try_renew(&self, handle: &Handle, time: &SessionTime) -> Result<Option<Deadline>> {
        let patience = self.patience(time.ttl());
        let sent = time.now();
        let alive = self.keep_alive(handle, patience).await?;
        // A leader that was deposed while it was paused acknowledges keep-alives that mean nothing:
        // only if a linearizable read *after* the answer shows the same term was it the leader. And
        // one that has just been elected may not have heard of the lease yet: the key decides.
        match (alive, self.proof(handle, patience).await?) {
            (_, None) => Err(error::plain(
                ErrorKind::Lost,
                "renew",
                "the lease has expired or was revoked",
            )),
            (Alive::InTerm(renewed), Some(now)) if renewed == now => {
                Ok(Some(time.deadline_from(sent)))
            }
            (_, Some(_)) => {
                // Its stream may hang on the member that was deposed.
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
        // With what the message has around it.
        key.as_bytes().len() + 8
    }

    async fn open(&self, time: &SessionTime) -> Result<Opened<Handle>> {
        let (cluster, patience) = (&self.cluster, self.patience(time.ttl()));
        // Whole seconds. Up, never down: the server may keep it longer than we believe, not
        // shorter.
        let seconds = i64::try_from(time.ttl().as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let sent = time.now();
        let granted = cluster.call("acquire", Effect::Writes, patience, |live| {
            let mut lease = live.lease.clone();
            async move { grant(&mut lease, seconds).await }
        });
        let granted = granted.await?;
        let (id, granted) = (granted.id(), granted.ttl());
        let carrier = Arc::new(BatchExecutor {
            cluster: Arc::clone(cluster),
            patience,
        });
        let key = cluster.names.session(id);
        let handle = Handle {
            lease: id,
            key: key.clone(),
            carrier,
            gather: Arc::new(Batcher::new(LIMITS)),
            stream: tokio::sync::Mutex::default(),
            held: Mutex::default(),
        };
        if granted != seconds && !self.for_waiters {
            drop(self.close(&handle).await);
            return Err(error::plain(
                ErrorKind::InvalidInput,
                "acquire",
                format!(
                    "the server's shortest lease is {granted} s and the TTL is {}; use a longer one, or lower the server's \
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
                Effect::Writes,
                patience,
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

    async fn renew(&self, handle: &Handle, time: &SessionTime) -> Result<Deadline> {
        let mut last = None;
        for _ in 0..TRIES {
            match self.try_renew(handle, time).await {
                Ok(Some(deadline)) => return Ok(deadline),
                Ok(None) => {}
                Err(error) if error.is_retryable() => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            error::plain(
                ErrorKind::Unavailable,
                "renew",
                "the cluster's leader changed during the renewal, again and again",
            )
        }))
    }

    async fn owned(&self, handle: &Handle) -> Result<Owned<EtcdKey>> {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        let answer = self.cluster.call(
            "reconcile",
            Effect::None,
            self.cluster.config.timeout,
            |live| {
                let (mut lease, id, options) = (live.lease.clone(), handle.lease, options.clone());
                async move { lease.time_to_live(id, Some(options)).await }
            },
        );
        let answer = answer.await?;
        if answer.ttl() <= 0 {
            return Err(error::plain(
                ErrorKind::Unavailable,
                "reconcile",
                "the lease is not known to that member",
            ));
        }
        let mut owned = Owned::default();
        for key in answer.keys() {
            if let Some((key, revision)) = self.cluster.names.marked(key)
                && handle.held().get(&key) == Some(&revision)
            {
                owned.broken.push(key);
            }
            if key.as_slice() != handle.key.as_bytes() {
                // A mark is nobody's claim: it is removed once it was read.
                owned.claims.push(EtcdKey::from(key.as_slice()));
            }
        }
        Ok(owned)
    }

    async fn disown(&self, handle: &Handle, orphans: Vec<EtcdKey>) -> Result<()> {
        // A waiter's key that was granted meanwhile belongs to another lease.
        let delete = |key: &EtcdKey| {
            let ours = Compare::lease(key.to_vec(), CompareOp::Equal, handle.lease);
            TxnOp::txn(
                Txn::new()
                    .when([ours])
                    .and_then([TxnOp::delete(key.to_vec(), None)]),
            )
        };
        let (cluster, patience) = (&self.cluster, handle.carrier.patience);
        let mut rest = orphans.as_slice();
        while !rest.is_empty() {
            let (some, others) = rest.split_at(cluster.together().min(rest.len()));
            let (done, _) = cluster
                .txns_told("reconcile", patience, || some.iter().map(delete).collect())
                .await?;
            if done.is_some() {
                rest = others;
            }
        }
        Ok(())
    }

    async fn close(&self, handle: &Handle) -> Result<()> {
        *handle.stream.lock().await = None;
        let revoked = self
            .cluster
            .call("close", Effect::Writes, handle.carrier.patience, |live| {
                let (mut lease, id) = (live.lease.clone(), handle.lease);
                async move { lease.revoke(id).await }
            });
        match revoked.await {
            Err(error) if error.kind() != ErrorKind::Lost => Err(error),
            _ => Ok(()),
        }
    }
}

/// Grants a lease with a new random id.
///
/// A lease that exists already is never used. Every user may grant leases, with a short TTL, and
/// revoke them. The lease may also be this client's own, of a grant whose answer was lost: it has
/// no keys, and expires.
async fn grant(leases: &mut LeaseClient, seconds: i64) -> Result<LeaseGrantResponse, Driver> {
    let mut tries = 0;
    loop {
        let id = (AcquisitionId::random().as_u128() as i64 & i64::MAX).max(1);
        match leases
            .grant(seconds, Some(LeaseGrantOptions::new().with_id(id)))
            .await
        {
            Err(error) if error::is_lease_taken(&error) && tries < TRIES => tries += 1,
            granted => return granted,
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:x})", self.lease)
    }
}
