//! [`Cluster`]: requests to whichever member answers.
//!
//! The driver balances over all endpoints and gives up with the first that fails. So each member
//! has a client of its own here, and a request that fails at one goes to the next; all requests of
//! this crate may be sent resent.

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
    error::{self, MemberError, SideEffect},
    handshake::Handshake,
    keys::{EtcdKey, KeyLayout},
    member::Member,
};

/// The TTL of those who wait: for how long the key of a waiter outlives it at most. Longer than an
/// election; a waiter that is cut off for longer loses its queue_key, not its lock. Who has a shorter
/// TTL waits with that.
const WAITER_TTL: Duration = Duration::from_secs(5);
/// Before the only member is asked again whose connection broke.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// How many transactions are sent as one at most. The server's default limit is 128 operations: the
/// other half is for the operations within each transaction.
pub(crate) const MAX_BATCH: usize = 64;
/// How often a request asks for another token. One cures it, unless users are changed again
/// meanwhile.
const MAX_AUTHENTICATIONS: usize = 3;

/// The members, and the one that answered last.
pub(crate) struct Cluster {
    members: Vec<Member>,
    /// Missing with the user's own client.
    connector: Option<Connector>,
    authenticator: Authenticator,
    handshake: Handshake,
    current: AtomicUsize,
    pub(crate) config: EtcdConfig,
    pub(crate) layout: KeyLayout,
    /// Told when another member is asked from now on: streams that hang on the old one should move.
    pub(crate) member_changed: Notify,
    /// How many transactions are sent as one. Lowered when a server refuses so many
    /// (`--max-txn-ops`, `--max-request-bytes`).
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

    /// The members that the URL names; or the user's own client, which is taken for one.
    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether it is spoken to through the user's own client.
    pub(crate) fn uses_given_client(&self) -> bool {
        self.connector.is_none()
    }

    /// A member at an address that another one knows; `None` if only the user's own client knows
    /// how to connect.
    pub(crate) fn member_at(&self, url: &str) -> Option<Member> {
        self.connector.as_ref()?.member(url)
    }

    /// Where it lives, without secrets.
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

    /// How long one member may take to answer, so that there is time for another before a lease of
    /// this TTL is over.
    pub(crate) fn request_timeout(&self, ttl: Ttl) -> Duration {
        self.config.timeout.min(ttl.as_duration() / 4)
    }

    /// The TTL with which locks of a longer one are waited for. An answer may take half of it, so
    /// that whoever is slow is waited for no less than without it.
    pub(crate) fn waiter_ttl(&self) -> Ttl {
        Ttl::new(WAITER_TTL.max(self.config.timeout.saturating_mul(2))).unwrap_or(Ttl::MAX)
    }

    /// How long an answer may take in a session of those who wait.
    pub(crate) fn waiter_timeout(&self, ttl: Ttl) -> Duration {
        self.config.timeout.min(ttl.as_duration() / 2)
    }

    /// Returns the member that is asked first. Streams are opened with it.
    pub(crate) fn first_member(&self) -> &Member {
        &self.members[self.current.load(Ordering::Relaxed) % self.members.len()]
    }

    /// Asks members, one after the other, until one answers. `call` may run more than once.
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

    /// As [`call`](Self::call), and whether an earlier sending of it may still arrive.
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
        let mut doubt: Option<Error> = None;
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
                    return Ok((answer, doubt.is_some()));
                }
                Err(failed) => failed,
            };
            if failed.kind() == ErrorKind::Indeterminate {
                doubt = Some(failed.clone());
            }
            failure = Some(failed);
            if !try_next || attempt + 1 == self.members.len() && self.members.len() > 1 {
                break;
            }
        }
        // What one member may have done is not undone by another's refusal.
        Err(doubt
            .or(failure)
            .unwrap_or_else(|| error::protocol(operation)))
    }

    /// The answer of one member. If it refuses the token, it is asked again with another one.
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
        // The only member has had its time.
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
            // Boxed: the driver's futures are of several kilobytes, and would be moved with each
            // that they are put into.
            match tokio::time::timeout(timeout, Box::pin(call(&channel))).await {
                Ok(Ok(answer)) => return Ok(answer),
                // Refused, so nothing has happened: it may be sent again.
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

    /// Whether another token may cure this error.
    pub(crate) fn needs_new_token(&self, error: &Driver) -> bool {
        self.authenticator.has_credentials() && error::is_token_refused(error)
    }

    /// Gets another token for the member that is asked first, because a stream was refused with the
    /// present one.
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

    /// The current member does not answer on a stream: the next is asked first.
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

    /// Sends what `txn` makes, once for each time that it is sent. And whether an earlier sending
    /// of it may still arrive.
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

    /// Returns how many transactions may be sent as one.
    pub(crate) fn max_batch(&self) -> usize {
        self.max_batch.load(Ordering::Relaxed)
    }

    /// Sends transactions as one. Returns `None` if the server refuses so many: then nothing has
    /// happened, and [`together`](Self::together) returns fewer. Also returns whether an earlier
    /// sending may still arrive.
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

    /// Deletes a key: how many there were, and whether an earlier sending of it may still arrive.
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

    /// A linearizable read.
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
