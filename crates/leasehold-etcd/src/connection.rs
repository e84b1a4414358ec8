//! [`Cluster`]: requests to the members of a cluster.
//!
//! The driver balances over all endpoints and fails a request at the first member that fails. Here,
//! each member has a client of its own, and a request that fails at one member is sent to the next.
//! Every request of this crate may therefore be sent twice.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Client, Error as Driver, GetOptions, GetResponse, Txn, TxnOp, TxnResponse};
use leasehold_core::{Error, ErrorKind, Result, Ttl};
use tokio::sync::Notify;

use crate::{
    authenticator::Authenticator,
    channel::Channel,
    config::{EtcdConfig, ParsedUrl},
    connector::Connector,
    error::{self, ERRORS, MemberError, SideEffect},
    handshake::Handshake,
    keys::{EtcdKey, KeyLayout},
    member::Member,
};

/// The TTL of waiters: the longest time that the key of a waiter outlives it. It is longer than an
/// election. A waiter that is cut off for longer loses its position in the queue. A request with a
/// shorter TTL waits with its own TTL.
const WAITER_TTL: Duration = Duration::from_secs(5);
/// The delay before the only member is asked again after its connection broke.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// The largest number of transactions in one request. The server's default limit is 128 operations;
/// the other half is for the operations in each transaction.
pub(crate) const MAX_BATCH: usize = 64;
/// The number of times that a request obtains another token. One is enough unless users are changed
/// again in the meantime.
const MAX_AUTHENTICATIONS: usize = 3;

/// The members of a cluster. Requests go to the member that answered last.
pub(crate) struct Cluster {
    members: Vec<Member>,
    /// `None` with the user's own client.
    connector: Option<Connector>,
    authenticator: Authenticator,
    handshake: Handshake,
    current: AtomicUsize,
    pub(crate) config: EtcdConfig,
    pub(crate) layout: KeyLayout,
    /// Notified when requests go to another member from now on. Streams to the old member should
    /// move.
    pub(crate) member_changed: Notify,
    /// The largest number of transactions in one request. It is lowered when a server refuses that
    /// many (`--max-txn-ops`, `--max-request-bytes`).
    max_batch: AtomicUsize,
}

impl Cluster {
    pub(crate) fn at(url: ParsedUrl) -> Arc<Self> {
        let ParsedUrl {
            endpoints,
            connector,
            config,
            credentials,
        } = url;
        let members = endpoints.into_iter().map(Connector::connecting);
        let authenticator = Authenticator::new(config.credentials.clone(), credentials);
        Self::new(members.collect(), Some(connector), config, authenticator)
    }

    pub(crate) fn of_client(client: Client, config: EtcdConfig) -> Arc<Self> {
        let authenticator = Authenticator::of_client(config.credentials.clone());
        Self::new(vec![Member::of(client)], None, config, authenticator)
    }

    fn new(
        members: Vec<Member>,
        connector: Option<Connector>,
        config: EtcdConfig,
        authenticator: Authenticator,
    ) -> Arc<Self> {
        let layout = KeyLayout {
            prefix: Arc::clone(&config.prefix),
            exact: config.exact_names,
        };
        let (current, member_changed) = (AtomicUsize::new(0), Notify::new());
        let (max_batch, handshake) = (AtomicUsize::new(MAX_BATCH), Handshake::new(layout.probe()));
        Arc::new(Self {
            members,
            connector,
            authenticator,
            handshake,
            current,
            config,
            layout,
            member_changed,
            max_batch,
        })
    }

    /// Returns the members of the URL. The user's own client counts as one member.
    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns whether requests go through the user's own client.
    pub(crate) fn uses_given_client(&self) -> bool {
        self.connector.is_none()
    }

    /// Creates a member at an address that another member advertises. Returns `None` with the
    /// user's own client, because only that client has the settings of a connection.
    pub(crate) fn member_at(&self, url: &str) -> Option<Member> {
        self.connector.as_ref()?.member(url)
    }

    /// Returns the URL of the cluster, without secrets.
    pub(crate) fn endpoint(&self) -> String {
        let addresses: Vec<_> = self
            .members
            .iter()
            .map(|member| member.address.as_str())
            .collect();
        match addresses.as_slice() {
            [first, ..] if first.starts_with("etcds://") => {
                format!("etcds://{}", addresses.join(",").replace("etcds://", ""))
            }
            _ => format!("etcd://{}", addresses.join(",").replace("etcd://", "")),
        }
    }

    /// Returns how long one member may take to answer, so that there is time for another member
    /// before a lease of this TTL expires.
    pub(crate) fn request_timeout(&self, ttl: Ttl) -> Duration {
        self.config.timeout.min(ttl.as_duration() / 4)
    }

    /// Returns the TTL of waiters whose request has a longer one. A reply may take half of it, so
    /// that a slow member has as much time as without it.
    pub(crate) fn waiter_ttl(&self) -> Ttl {
        Ttl::new(WAITER_TTL.max(self.config.timeout.saturating_mul(2))).unwrap_or(Ttl::MAX)
    }

    /// Returns how long a reply may take in a session of waiters.
    pub(crate) fn waiter_timeout(&self, ttl: Ttl) -> Duration {
        self.config.timeout.min(ttl.as_duration() / 2)
    }

    /// Returns the member that gets the next request. Streams are opened with it.
    pub(crate) fn first_member(&self) -> &Member {
        &self.members[self.current.load(Ordering::Relaxed) % self.members.len()]
    }

    /// Sends a request to one member after the other until one answers. `call` may run more than
    /// once.
    pub(crate) async fn call<T, F>(
        &self,
        operation: &'static str,
        effect: SideEffect,
        timeout: Duration,
        call: impl Fn(&Channel) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, Driver>>,
    {
        self.call_tracking_resends(operation, effect, timeout, call)
            .await
            .map(|(answer, _)| answer)
    }

    /// Calls like [`call`](Self::call). Also returns whether an earlier copy of the request may
    /// still arrive.
    async fn call_tracking_resends<T, F>(
        &self,
        operation: &'static str,
        effect: SideEffect,
        timeout: Duration,
        call: impl Fn(&Channel) -> F,
    ) -> Result<(T, bool)>
    where
        F: Future<Output = Result<T, Driver>>,
    {
        let first = self.current.load(Ordering::Relaxed);
        let mut uncertain: Option<Error> = None;
        let mut failure: Option<Error> = None;
        for attempt in 0..self.members.len().max(2) {
            let index = (first + attempt) % self.members.len();
            let member = &self.members[index];
            if attempt > 0 && self.members.len() == 1 {
                tokio::time::sleep(RETRY_DELAY).await;
            }
            let MemberError {
                error: failed,
                try_next,
            } = match self
                .call_member(member, operation, effect, timeout, &call)
                .await
            {
                Ok(answer) => {
                    if index != first {
                        self.move_from(first, index);
                    }
                    return Ok((answer, uncertain.is_some()));
                }
                Err(failed) => failed,
            };
            if failed.kind() == ErrorKind::Indeterminate {
                uncertain = Some(failed.clone());
            }
            failure = Some(failed);
            if !try_next || attempt + 1 == self.members.len() && self.members.len() > 1 {
                break;
            }
        }
        // The refusal of one member does not undo what another may have done.
        Err(uncertain
            .or(failure)
            .unwrap_or_else(|| ERRORS.unexpected(operation)))
    }

    /// Sends a request to one member. If the member refuses the token, the request is sent again
    /// with another token.
    pub(crate) async fn call_member<T, F>(
        &self,
        member: &Member,
        operation: &'static str,
        effect: SideEffect,
        timeout: Duration,
        call: impl Fn(&Channel) -> F,
    ) -> Result<T, MemberError>
    where
        F: Future<Output = Result<T, Driver>>,
    {
        // With one member, a time-out is final.
        let try_next = self.members.len() > 1;
        let timed_out = || {
            let error = error::timed_out(operation, SideEffect::None, &member.address, timeout);
            MemberError { error, try_next }
        };
        let channel = match member.channel() {
            Some(channel) => channel,
            None => tokio::time::timeout(
                timeout,
                member.connect(&self.authenticator, operation, &self.handshake),
            )
            .await
            .unwrap_or_else(|_elapsed| Err(timed_out()))?,
        };
        for authentications in 0.. {
            let token = channel.token();
            // The driver's futures have several kilobytes. Without the box they would be moved into
            // each enclosing future.
            match tokio::time::timeout(timeout, Box::pin(call(&channel))).await {
                Ok(Ok(answer)) => return Ok(answer),
                // The request was refused, so it had no effect and may be sent again.
                Ok(Err(error))
                    if self.needs_new_token(&error) && authentications < MAX_AUTHENTICATIONS =>
                {
                    tokio::time::timeout(
                        timeout,
                        member.authenticate(&channel, token, &self.authenticator, operation),
                    )
                    .await
                    .unwrap_or_else(|_elapsed| Err(timed_out()))?;
                }
                Ok(Err(error)) => {
                    let try_next = error::may_succeed_elsewhere(&error);
                    let error = error::from_driver(error, operation, effect, &member.address);
                    return Err(MemberError { error, try_next });
                }
                Err(_elapsed) => break,
            }
        }
        member.discard(&channel);
        Err(MemberError {
            error: error::timed_out(operation, effect, &member.address, timeout),
            try_next,
        })
    }

    /// Returns whether another token may remedy this error.
    pub(crate) fn needs_new_token(&self, error: &Driver) -> bool {
        self.authenticator.has_credentials() && error::is_token_refused(error)
    }

    /// Obtains another token for the member that gets the next request, because a stream was
    /// refused with the present token.
    pub(crate) async fn authenticate(&self, operation: &'static str) -> Result<()> {
        let member = self.first_member();
        let Some(channel) = member.channel() else {
            return Ok(());
        };
        let authenticated =
            member.authenticate(&channel, channel.token(), &self.authenticator, operation);
        match tokio::time::timeout(self.config.timeout, authenticated).await {
            Ok(authenticated) => authenticated.map_err(|failed| failed.error),
            Err(_elapsed) => Err(error::timed_out(
                operation,
                SideEffect::None,
                &member.address,
                self.config.timeout,
            )),
        }
    }

    /// Sends the next requests to another member, because the current one does not answer on a
    /// stream.
    pub(crate) fn skip_current_member(&self) {
        let current = self.current.load(Ordering::Relaxed);
        let member = &self.members[current % self.members.len()];
        if let Some(channel) = member.channel() {
            member.discard(&channel);
        }
        self.move_from(current, (current + 1) % self.members.len());
    }

    fn move_from(&self, from: usize, to: usize) {
        if self
            .current
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            self.member_changed.notify_waiters();
        }
    }

    pub(crate) async fn txn(
        &self,
        operation: &'static str,
        effect: SideEffect,
        timeout: Duration,
        txn: &Txn,
    ) -> Result<TxnResponse> {
        self.txn_tracking_resends(operation, effect, timeout, || txn.clone())
            .await
            .map(|(answer, _)| answer)
    }

    /// Sends the transaction that `txn` returns, which is called for each copy. Also returns
    /// whether an earlier copy may still arrive.
    pub(crate) async fn txn_tracking_resends(
        &self,
        operation: &'static str,
        effect: SideEffect,
        timeout: Duration,
        txn: impl Fn() -> Txn,
    ) -> Result<(TxnResponse, bool)> {
        self.call_tracking_resends(operation, effect, timeout, |channel| {
            let (mut kv, txn) = (channel.kv.clone(), txn());
            async move { kv.txn(txn).await }
        })
        .await
    }

    /// Returns how many transactions may be sent in one request.
    pub(crate) fn max_batch(&self) -> usize {
        self.max_batch.load(Ordering::Relaxed)
    }

    /// Sends transactions in one request. Returns `None` if the server refuses that many: then the
    /// request had no effect, and [`max_batch`](Self::max_batch) returns fewer. Also returns
    /// whether an earlier copy may still arrive.
    pub(crate) async fn txns_tracking_resends(
        &self,
        operation: &'static str,
        timeout: Duration,
        txns: impl Fn() -> Vec<TxnOp>,
    ) -> Result<(Option<TxnResponse>, bool)> {
        self.call_tracking_resends(operation, SideEffect::Writes, timeout, |channel| {
            let (mut kv, txns) = (channel.kv.clone(), txns());
            async move {
                let many = txns.len();
                match kv.txn(Txn::new().and_then(txns)).await {
                    Err(error) if many > 1 && error::is_too_large(&error) => {
                        self.max_batch.fetch_min(many / 2, Ordering::Relaxed);
                        Ok(None)
                    }
                    answer => answer.map(Some),
                }
            }
        })
        .await
    }

    /// Deletes a key. Returns the number of deleted keys, and whether an earlier copy of the
    /// request may still arrive.
    pub(crate) async fn delete_tracking_resends(
        &self,
        operation: &'static str,
        timeout: Duration,
        key: &EtcdKey,
    ) -> Result<(i64, bool)> {
        self.call_tracking_resends(operation, SideEffect::Writes, timeout, |channel| {
            let (mut kv, key) = (channel.kv.clone(), key.to_vec());
            async move { kv.delete(key, None).await.map(|answer| answer.deleted()) }
        })
        .await
    }

    /// Reads keys. The read is linearizable.
    pub(crate) async fn get(
        &self,
        operation: &'static str,
        timeout: Duration,
        key: &EtcdKey,
        options: Option<GetOptions>,
    ) -> Result<GetResponse> {
        self.call(operation, SideEffect::None, timeout, |channel| {
            let (mut kv, key, options) = (channel.kv.clone(), key.to_vec(), options.clone());
            async move { kv.get(key, options).await }
        })
        .await
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("endpoint", &self.endpoint())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
