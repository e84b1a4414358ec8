//! The model: the smallest store that keeps the whole contract. Each bug changes one detail of it.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use leasehold_core::{
    AcquisitionId, Capabilities, Clock, ClockDrift, Deadline, Error, ErrorKind, Fairness, Fencing,
    FencingToken, HolderRef, Inspection, LockKey, LossDetection, LossReason, Mode, Records,
    Released, Result, Revocation, RevokeOutcome, Timestamp, WaiterNotification, WaiterRef,
    backend::{
        AtomicDeadline, Attempt, Contention, KeepAlive, Lease, LockBackend, LossNotifier,
        RecordRead, RecordReading, RecordWrite, Request, acquire_with_retry,
    },
};
use tokio::sync::watch;

use super::{
    bug::Bug,
    model_proposals::ModelProposals,
    model_records::{ModelRecords, check_mode, not_held},
};

/// The delay of a reply. A request takes effect at the first poll of its future, as if it had been
/// sent then.
const REPLY_DELAY: Duration = Duration::from_millis(1);
/// The delay of a notification. It is longer than [`REPLY_DELAY`], so a client that releases a lock
/// and requests it again at once always precedes the waiters.
const NOTIFICATION_DELAY: Duration = Duration::from_millis(3);
/// When to retry a lock that is free but reserved for an earlier waiter.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// The TTL of a lock that has none yet, of [`Bug::SetnxThenExpire`].
const NEVER: Duration = Duration::from_secs(366 * 24 * 3600);

/// The store that all handles share, which stands for a server.
#[derive(Debug)]
pub(crate) struct Store {
    clock: Arc<dyn Clock>,
    bug: Option<Bug>,
    /// Whether calls complete in their first poll, as those of an in-memory backend do.
    instant: bool,
    /// Whether the proposals of candidates are stored with their acquisitions.
    proposals: bool,
    next_handle: AtomicU64,
    keys: Mutex<HashMap<(Vec<u8>, bool), Key>>,
    /// Locked while `keys` is locked, so that both change in one step.
    records: Mutex<ModelRecords>,
}

#[derive(Debug)]
struct Key {
    holders: Vec<Holder>,
    waiters: Vec<Waiter>,
    last_token: u64,
    last_shared: u64,
    /// The last token of each handle, for a bug.
    of_handles: HashMap<u64, u64>,
    proposals: ModelProposals,
    changed: watch::Sender<()>,
}

#[derive(Clone, Debug)]
struct Holder {
    handle: u64,
    owner: AcquisitionId,
    /// The acquisition, also if a bug gives it another owner.
    acquisition: AcquisitionId,
    mode: Mode,
    is_candidate: bool,
    until: Timestamp,
    /// Cleared by a graceful revocation.
    renewable: bool,
    token: Option<FencingToken>,
    label: String,
    losses: LossNotifier,
}

#[derive(Debug)]
struct Waiter {
    handle: u64,
    owner: AcquisitionId,
    mode: Mode,
    label: String,
    until: Timestamp,
}

impl Store {
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        bug: Option<Bug>,
        instant: bool,
        proposals: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            bug,
            instant,
            proposals,
            next_handle: AtomicU64::new(0),
            keys: Mutex::default(),
            records: Mutex::default(),
        })
    }

    pub(crate) fn open(self: &Arc<Self>) -> Arc<Model> {
        let id = self.next_handle.fetch_add(1, Ordering::Relaxed);
        Arc::new(Model {
            store: Arc::clone(self),
            id,
            owner: AcquisitionId::random(),
            last_grant: Mutex::default(),
        })
    }

    async fn delay_reply(&self) {
        if !self.instant {
            tokio::time::sleep(REPLY_DELAY).await;
        }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Returns whether a request is that of a candidate whose proposal is stored with it.
    fn is_candidate(&self, request: &Request) -> bool {
        self.proposals && request.proposal().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Vec<u8>, bool), Key>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn records(&self) -> MutexGuard<'_, ModelRecords> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the holders and waiters that have expired by `now`, and then applies `change`.
    fn change<T>(
        &self,
        key: &LockKey,
        permit: bool,
        now: Timestamp,
        change: impl FnOnce(&mut Key) -> T,
    ) -> T {
        let lock = key;
        let mut name = key.as_bytes().to_vec();
        if self.has(Bug::NamesCollide) {
            name.iter_mut()
                .filter(|byte| !byte.is_ascii_alphanumeric())
                .for_each(|byte| *byte = b'_');
        }
        let mut keys = self.lock();
        let key = keys.entry((name, permit)).or_insert_with(Key::new);
        let held = key.holders.len();
        key.holders.retain(|holder| holder.until > now);
        if key.holders.len() < held && self.has(Bug::TokenResets) {
            key.last_token = 0;
        }
        if key.holders.len() < held && self.has(Bug::RecordExpires) {
            self.records().forget(lock, self.bug);
        }
        key.waiters.retain(|waiter| waiter.until > now);
        let changed = change(key);
        if key.holders.len() < held {
            self.records().hold_ended(lock, self.bug);
        }
        changed
    }
}

impl Key {
    fn new() -> Self {
        Self {
            holders: Vec::new(),
            waiters: Vec::new(),
            last_token: 0,
            last_shared: 0,
            of_handles: HashMap::new(),
            proposals: ModelProposals::default(),
            changed: watch::Sender::new(()),
        }
    }

    fn freed(&self) {
        self.changed.send_replace(());
    }

    fn remove(&mut self, owner: AcquisitionId) -> bool {
        let held = self.holders.len();
        self.holders.retain(|holder| holder.owner != owner);
        let removed = self.holders.len() < held;
        if removed {
            self.freed();
        }
        removed
    }
}

/// A handle on the store, which stands for the connection of one process.
#[derive(Debug)]
pub(crate) struct Model {
    store: Arc<Store>,
    id: u64,
    /// The owner of all locks of this handle, for a bug.
    owner: AcquisitionId,
    /// The key of the last grant and its time, for a bug.
    last_grant: Mutex<Option<(LockKey, Timestamp)>>,
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("model:")
    }
}

enum AcquireReply {
    Granted(Option<FencingToken>),
    Refused(Contention),
}

impl Model {
    fn owner_of(&self, request: &Request) -> AcquisitionId {
        if self.store.has(Bug::OwnerPerObject) {
            self.owner
        } else {
            request.owner()
        }
    }

    /// Returns whether another key was granted in the same request.
    fn was_granted_another(&self, key: &LockKey, now: Timestamp) -> bool {
        let last = self
            .last_grant
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last.as_ref()
            .is_some_and(|(granted, at)| granted != key && *at == now)
    }

    fn attempt(&self, request: &Request, ttl: Duration) -> Result<AcquireReply> {
        let store = &self.store;
        let clock = if store.has(Bug::ClientTimestamp) {
            request.clock()
        } else {
            &store.clock
        };
        let now = clock.now();
        let (mode, owner) = (request.mode(), self.owner_of(request));
        let is_candidate = store.is_candidate(request);
        store.change(request.key(), mode.is_permit(), now, |key| {
            if let (Mode::Permit { of }, Some(Mode::Permit { of: others })) =
                (mode, key.holders.first().map(|holder| holder.mode))
                && of != others
                && !store.has(Bug::PermitCountsMayDiffer)
            {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("permits of {others} are held, so a permit of {of} does not match"),
                ));
            }
            let free = match mode {
                Mode::Shared => key.holders.iter().all(|holder| holder.mode == Mode::Shared),
                Mode::Permit { of } => {
                    let of = of.get() as usize + usize::from(store.has(Bug::OnePermitTooMany));
                    key.holders.len() < of
                }
                _ => {
                    let frees = store.has(Bug::GracefulRevocationFreesAtOnce);
                    let apart = store.has(Bug::ElectionApart);
                    key.holders.iter().all(|holder| {
                        frees && !holder.renewable || apart && holder.is_candidate != is_candidate
                    })
                }
            };
            let again = store.has(Bug::ReentrantByAccident)
                && mode == Mode::Exclusive
                && key.holders.iter().any(|holder| holder.handle == self.id);
            let behind_writer = mode == Mode::Shared
                && !store.has(Bug::ReaderOvertakesWriter)
                && key
                    .waiters
                    .iter()
                    .any(|waiter| waiter.mode == Mode::Exclusive && waiter.owner != owner);
            let yielding = request.waiting().yields && !store.has(Bug::LocalQueueNeverYields);
            let must_yield = yielding && key.waiters.iter().any(|waiter| waiter.handle != self.id);
            let with_another = store.has(Bug::BatchSharesOneAnswer)
                && self.was_granted_another(request.key(), now);
            if (free || again || with_another) && !behind_writer && !must_yield {
                *self
                    .last_grant
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some((request.key().clone(), now));
                key.waiters.retain(|waiter| waiter.owner != owner);
                let token = key.next_token(mode, store, self.id);
                key.holders.push(Holder {
                    handle: self.id,
                    owner,
                    acquisition: request.owner(),
                    mode,
                    is_candidate,
                    until: now + ttl,
                    renewable: true,
                    token,
                    label: request.label().to_owned(),
                    losses: request.loss_notifier(),
                });
                if is_candidate {
                    key.proposals.granted(request, token, store.bug);
                    store.records().leader_changed(request.key(), store.bug);
                }
                return Ok(AcquireReply::Granted(token));
            }
            if is_candidate && request.waiting().keeps_waiting {
                key.proposals.waits(request, store.bug);
            }
            let left = key
                .holders
                .iter()
                .map(|holder| holder.until.since(now))
                .min();
            if request.waiting().keeps_waiting
                && !key.waiters.iter().any(|waiter| waiter.owner == owner)
            {
                key.waiters.push(Waiter {
                    handle: self.id,
                    owner,
                    mode,
                    label: request.label().to_owned(),
                    until: now,
                });
            }
            for waiter in key
                .waiters
                .iter_mut()
                .filter(|waiter| waiter.owner == owner)
            {
                // A waiter of a crashed process expires.
                waiter.until = now + left.unwrap_or_default() + request.ttl().as_duration();
            }
            let mut changed = key.changed.subscribe();
            let (notified, instant) = (!store.has(Bug::NoNotification), store.instant);
            Ok(AcquireReply::Refused(Contention {
                // Soon, if the lock is free: the waiter that it is reserved for may have crashed.
                retry_after: Some(left.unwrap_or(RETRY_DELAY)),
                last_token: (key.last_token > 0).then(|| FencingToken::new(key.last_token)),
                wake: notified.then(|| {
                    Box::pin(async move {
                        drop(changed.changed().await);
                        if !instant {
                            tokio::time::sleep(NOTIFICATION_DELAY).await;
                        }
                    }) as _
                }),
            }))
        })
    }

    fn leave(&self, request: &Request) {
        let owner = self.owner_of(request);
        self.store.change(
            request.key(),
            request.mode().is_permit(),
            self.store.clock.now(),
            |key| {
                key.waiters.retain(|waiter| waiter.owner != owner);
                // A reader may be waiting behind this writer.
                key.freed();
            },
        );
    }
}

impl Key {
    fn next_token(&mut self, mode: Mode, store: &Store, handle: u64) -> Option<FencingToken> {
        match mode {
            Mode::Permit { .. } if store.has(Bug::PermitsCarryTokens) => {}
            Mode::Permit { .. } => return None,
            Mode::Shared if store.has(Bug::SharedTokensApart) => {
                self.last_shared += 1;
                return Some(FencingToken::new(self.last_shared));
            }
            _ => {}
        }
        if store.has(Bug::TokenPerClient) {
            let earlier = match mode {
                Mode::Exclusive => self.of_handles.get(&handle),
                _ => self.of_handles.values().max(),
            };
            let token = self.last_shared.max(earlier.copied().unwrap_or_default()) + 1;
            if mode == Mode::Exclusive {
                self.of_handles.insert(handle, token);
            } else {
                self.last_shared = token;
            }
            return Some(FencingToken::new(token));
        }
        self.last_token += 1;
        Some(FencingToken::new(self.last_token))
    }
}

#[async_trait]
impl LockBackend for Model {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new("model");
        capabilities.shared = true;
        capabilities.permits = true;
        capabilities.min_ttl = leasehold_core::Ttl::from_millis(10).unwrap_or_default();
        capabilities.max_ttl = leasehold_core::Ttl::from_secs(24 * 3600).unwrap_or_default();
        capabilities.drift = ClockDrift {
            rate_ppm: 1_000,
            constant: Duration::ZERO,
        };
        capabilities.fencing = Fencing::UntilDataLoss;
        capabilities.fairness = Fairness::None;
        capabilities.waiter_notification = WaiterNotification::Pushed;
        capabilities.loss_detection = LossDetection::Pushed;
        capabilities.pipelined_release = true;
        capabilities.inspect = true;
        capabilities.revoke = true;
        capabilities.records = Records::UntilDataLoss;
        capabilities.proposals = self.store.proposals;
        capabilities
    }

    async fn try_acquire(self: Arc<Self>, request: Request) -> Result<Attempt> {
        let mut sent = request.now();
        let two_steps = self.store.has(Bug::SetnxThenExpire);
        let ttl = if two_steps {
            NEVER
        } else {
            request.ttl().as_duration()
        };
        let reply = self.attempt(&request, ttl)?;
        self.store.delay_reply().await;
        let token = match reply {
            AcquireReply::Granted(token) => token,
            AcquireReply::Refused(contention) => return Ok(Attempt::Contended(contention)),
        };
        if self.store.has(Bug::TracesBeforeOwnership) {
            tracing::debug!(key = %request.key(), "granted");
        }
        if self.store.has(Bug::DeadlineFromReply) {
            sent = request.now();
        }
        let lease = Arc::new(ModelLease {
            owner: self.owner_of(&request),
            until: AtomicDeadline::new(request.deadline_from(sent)),
            token,
            released: AtomicBool::new(false),
            renewed_for_ever: AtomicBool::new(false),
            store: Arc::clone(&self.store),
            request,
        });
        if two_steps {
            lease.extend(self.store.clock.now());
            self.store.delay_reply().await;
        }
        Ok(Attempt::Granted(lease))
    }

    async fn acquire(self: Arc<Self>, request: Request) -> Result<Arc<dyn Lease>> {
        let acquired = acquire_with_retry(request.clone(), |request| {
            Arc::clone(&self).try_acquire(request)
        })
        .await;
        if acquired.is_err() && !self.store.has(Bug::CancelledWaiterStays) {
            self.leave(&request);
        }
        acquired
    }

    async fn inspect(&self, key: &LockKey) -> Result<Inspection> {
        let now = self.store.clock.now();
        let (mut holders, mut waiters) = (Vec::new(), Vec::new());
        for permit in [false, true] {
            self.store.change(key, permit, now, |state| {
                for holder in &state.holders {
                    let mut listed = HolderRef::new(key.clone(), holder.owner.to_hex());
                    listed.mode = Some(holder.mode);
                    listed.owner = Some(holder.owner);
                    listed.label.clone_from(&holder.label);
                    listed.token = holder.token;
                    listed.expires_in = Some(holder.until.since(now));
                    holders.push(listed);
                }
                waiters.extend(
                    state
                        .waiters
                        .iter()
                        .map(|waiter| WaiterRef::new(Some(waiter.mode), &waiter.label)),
                );
            });
        }
        self.store.delay_reply().await;
        Ok(Inspection::new(holders, waiters))
    }

    async fn revoke(&self, holder: &HolderRef, revocation: Revocation) -> Result<RevokeOutcome> {
        let permit = holder.mode.is_some_and(Mode::is_permit);
        let any = self.store.has(Bug::RevocationHitsNewerHolder);
        let broken = self
            .store
            .change(&holder.key, permit, self.store.clock.now(), |key| {
                let found = key
                    .holders
                    .iter()
                    .find(|held| any || held.owner.to_hex()[..] == holder.id)
                    .cloned();
                let Some(found) = found else {
                    return RevokeOutcome::AlreadyGone;
                };
                if revocation == Revocation::Graceful {
                    if self.store.has(Bug::GracefulRevocationFreesAtOnce) {
                        key.freed();
                    }
                    let ours = key
                        .holders
                        .iter_mut()
                        .find(|held| held.owner == found.owner);
                    ours.into_iter().for_each(|held| held.renewable = false);
                    return RevokeOutcome::FreeWithin(holder.expires_in);
                }
                key.remove(found.owner);
                if !self.store.has(Bug::LossUnreported) {
                    found.losses.lost(LossReason::Replaced);
                }
                RevokeOutcome::Freed
            });
        self.store.delay_reply().await;
        Ok(broken)
    }

    async fn read_record(self: Arc<Self>, read: RecordRead) -> Result<RecordReading> {
        let store = &self.store;
        let mut reading = store.change(&read.key, false, store.clock.now(), |key| {
            let holds = |owner| key.holders.iter().any(|held| held.acquisition == owner);
            let mut reading = store.records().read(self.id, &read, holds, store.bug);
            if read.while_held
                && let Some(leader) = key.proposals.leader(holds, store.bug)
            {
                reading.record = Some(leader);
            }
            reading
        });
        store.delay_reply().await;
        if read.watch && store.has(Bug::RecordWatchArmedLate) {
            reading.changed = Some(store.records().watch(&read.key, store.bug));
        }
        Ok(reading)
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct ModelLease {
    store: Arc<Store>,
    request: Request,
    owner: AcquisitionId,
    token: Option<FencingToken>,
    until: AtomicDeadline,
    /// Whether the lease has been released, for a bug.
    released: AtomicBool,
    /// Whether a task renews the lease for ever, for a bug.
    renewed_for_ever: AtomicBool,
}

impl ModelLease {
    fn change<T>(&self, now: Timestamp, change: impl FnOnce(&mut Key) -> T) -> T {
        self.store.change(
            self.request.key(),
            self.request.mode().is_permit(),
            now,
            change,
        )
    }

    /// Extends the lock if this lease still holds it. Returns whether it does.
    fn extend(&self, now: Timestamp) -> bool {
        let until = now + self.request.ttl().as_duration();
        self.change(now, |key| {
            let ours = key
                .holders
                .iter_mut()
                .find(|holder| holder.owner == self.owner && holder.renewable);
            ours.map(|holder| holder.until = until).is_some()
        })
    }

    /// Returns whether this lease still holds the lock and was gracefully revoked.
    fn is_revoked(&self) -> bool {
        self.change(self.store.clock.now(), |key| {
            let mut holders = key.holders.iter();
            holders.any(|holder| holder.owner == self.owner && !holder.renewable)
        })
    }

    /// Extends the lock, or takes it again if it is free, for bugs.
    fn set_again(&self, now: Timestamp) -> bool {
        self.extend(now)
            || self.change(now, |key| {
                let free = key.holders.is_empty();
                if free {
                    key.holders.push(Holder {
                        handle: u64::MAX,
                        owner: self.owner,
                        acquisition: self.request.owner(),
                        mode: self.request.mode(),
                        is_candidate: self.store.is_candidate(&self.request),
                        until: now + self.request.ttl().as_duration(),
                        renewable: true,
                        token: self.token,
                        label: String::new(),
                        losses: self.request.loss_notifier(),
                    });
                }
                free
            })
    }

    /// Returns whether this lease may write the record. A gracefully revoked lease holds the lock.
    fn may_write(&self, key: &Key) -> bool {
        let holder = key.holders.iter().find(|held| held.owner == self.owner);
        match self.store.bug {
            Some(Bug::RecordUnchecked) => holder.is_some() || key.holders.is_empty(),
            Some(Bug::RecordRefusedAfterRevocation) => holder.is_some_and(|held| held.renewable),
            _ => holder.is_some(),
        }
    }

    /// Replaces the value of this candidate. Returns the version, or nothing if it does not lead.
    fn proclaim(&self, write: &RecordWrite) -> Option<u64> {
        let store = &self.store;
        let unchecked = store.has(Bug::ProclaimUnchecked);
        self.change(store.clock.now(), |key| {
            if !unchecked && !self.may_write(key) {
                return None;
            }
            let owner = self.request.owner();
            let version = key.proposals.proclaimed(owner, write, store.bug);
            if !store.has(Bug::ProclaimUnreported) {
                store
                    .records()
                    .leader_changed(self.request.key(), store.bug);
            }
            Some(version)
        })
    }

    fn renewed(&self, now: Timestamp) -> bool {
        if self.store.has(Bug::LateRenewalRevives) && !self.released.load(Ordering::Acquire) {
            return self.set_again(now);
        }
        self.extend(now)
    }
}

#[async_trait]
impl Lease for ModelLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        self.token
    }

    fn valid_until(&self) -> Deadline {
        self.until.get()
    }

    fn keep_alive(&self) -> KeepAlive {
        KeepAlive::PerLease
    }

    async fn renew(self: Arc<Self>) -> Result<()> {
        let clock = if self.store.has(Bug::ClientTimestamp) {
            self.request.clock()
        } else {
            &self.store.clock
        };
        let mut sent = self.request.now();
        let renewed = self.renewed(clock.now());
        if self.store.has(Bug::RenewalOutlivesGuard)
            && renewed
            && !self.renewed_for_ever.swap(true, Ordering::AcqRel)
        {
            let lease = Arc::clone(&self);
            drop(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(lease.request.ttl().as_duration() / 3).await;
                    lease.set_again(lease.store.clock.now());
                }
            }));
        }
        self.store.delay_reply().await;
        if self.store.has(Bug::RenewalUndoesRelease) && renewed {
            self.set_again(clock.now());
        }
        if self.store.has(Bug::DeadlineFromReply) {
            sent = self.request.now();
        }
        if renewed
            && (self
                .until
                .advance(self.request.deadline_from(sent), self.request.now())
                || self.store.has(Bug::LateRenewalRevives))
        {
            Ok(())
        } else if self.is_revoked() && !self.store.has(Bug::GracefulRevocationEndsTheHold) {
            Err(Error::new(
                ErrorKind::Revoked,
                "the lock was revoked and ends at its deadline",
            ))
        } else {
            Err(Error::new(
                ErrorKind::Lost,
                "the lock has expired, and another client may hold it",
            ))
        }
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        let store = &self.store;
        self.released.store(true, Ordering::Release);
        let freed = self.change(store.clock.now(), |key| {
            let freed = key.remove(self.owner);
            if freed && store.has(Bug::RecordDiesWithLock) {
                store.records().forget(self.request.key(), store.bug);
            }
            if !freed && store.has(Bug::NoOwnerValue) && self.request.mode() == Mode::Exclusive {
                key.holders.clear();
                key.freed();
            }
            freed
        });
        // With this bug, the release has no delay in which another client could take the lock.
        if !store.has(Bug::LocalQueueNeverYields) {
            self.store.delay_reply().await;
        }
        Ok(if freed || store.has(Bug::ReleaseAlwaysReportsFreed) {
            Released::Freed
        } else {
            Released::AlreadyLost
        })
    }

    async fn write_record(self: Arc<Self>, write: RecordWrite) -> Result<u64> {
        let store = &self.store;
        check_mode(&self.request, store.bug)?;
        if store.is_candidate(&self.request) {
            let version = self.proclaim(&write);
            store.delay_reply().await;
            return version.ok_or_else(not_held);
        }
        let written = |key: &mut Key| {
            let written = || {
                store
                    .records()
                    .write(&self.request, self.token, &write, store.bug)
            };
            self.may_write(key).then(written)
        };
        let version = if store.has(Bug::RecordCheckThenWrite) {
            let is_held = self.change(store.clock.now(), |key| self.may_write(key));
            store.delay_reply().await;
            let write = || {
                store
                    .records()
                    .write(&self.request, self.token, &write, store.bug)
            };
            is_held.then(write)
        } else {
            self.change(store.clock.now(), written)
        };
        store.delay_reply().await;
        version.ok_or_else(not_held)
    }
}
