//! [`All`]: several locks that are acquired together, [`AllGuard`], which holds them, and
//! [`AllInfo`], a view of them.

use std::{fmt, ops::Deref, sync::Arc, time::Duration};

use futures_util::future::{join_all, select_all};

use crate::{
    backend::lease::Released,
    client::{
        acquire_all::{AllSpec, acquire_all, acquire_all_for, try_acquire_all},
        engine::Client,
        handle::LockClient,
    },
    clock::{Deadline, Timestamp},
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    key::LockKey,
    lease::{held_lease::Renewal, release::OwnedLease},
    lock::{
        guard::LeaseInfo,
        options::lock_options,
        run::{guard_run_methods, run_methods},
    },
    mode::Mode,
    signal::LossReason,
};

/// Several locks that are acquired together, all or none, created by
/// [`LockClient::all`](crate::LockClient::all).
///
/// Use it if work needs more than one lock, such as a transfer between two accounts. Tasks that
/// lock one after the other wait for each other forever if their orders differ.
///
/// # Guaranteed
/// - A guard exists only if all locks are held. After a refusal, an error, the time limit or a
///   dropped future, the client releases the locks that it had acquired.
/// - Callers of `all` never wait for each other in a cycle, whatever the order in which they name
///   the keys: the locks are acquired in the order of their bytes. The same holds for tasks that
///   lock one key after the other in this order.
/// - Each key is waited for in its queue, as [`Mutex::lock`](crate::Mutex::lock) does, and at most
///   once. No caller starves if the queues of its keys are fair.
///
/// # Not guaranteed
/// The locks are not acquired at one moment: others may see that one is held and another is not
/// yet. While a caller waits for one key, it keeps the smaller ones. A lock that is already held
/// by the same task makes `all` wait for itself.
///
/// # Cost
/// Free locks take about as long as one: all keys are requested together, in one or two requests.
/// Each key that must be waited for adds its wait.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let transfer = client.all(["account/7", "account/4"]).with_shared(["rates"]);
/// let guard = transfer.lock().await?;
/// for lease in guard.leases() {
///     // Pass each token to the resource that the lock protects.
///     assert!(lease.fencing_token().is_some());
/// }
/// // One of the locks is held, so that none is acquired.
/// assert!(client.all(["account/4", "account/9"]).try_lock().await?.is_none());
/// assert!(client.mutex("account/9").try_lock().await?.is_some());
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct All {
    client: Arc<Client>,
    spec: AllSpec,
}

impl LockClient {
    /// Creates a handle for the mutexes named `keys`, which are acquired together: 1 to 64 of them,
    /// in any order. A key that is named twice is one lock.
    ///
    /// Nothing is sent until they are locked. An invalid key and a wrong number of keys are
    /// reported then.
    pub fn all<K>(&self, keys: impl IntoIterator<Item = K>) -> All
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        let (ttl, context) = self.options();
        let spec = AllSpec {
            keys: keys
                .into_iter()
                .map(|key| Ok((key.try_into()?, Mode::Exclusive)))
                .collect(),
            ttl,
            renewal: Renewal::Automatic,
            context,
        };
        All {
            client: Arc::clone(&self.0),
            spec,
        }
    }
}

impl All {
    /// Adds read locks of these keys, which other readers may hold at the same time. A key that is
    /// also named as a mutex is locked exclusively.
    ///
    /// For read locks alone, begin with an empty list: `client.all::<&str>([])`.
    #[must_use]
    pub fn with_shared<K>(mut self, keys: impl IntoIterator<Item = K>) -> Self
    where
        K: TryInto<LockKey>,
        Error: From<K::Error>,
    {
        let keys: Result<Vec<LockKey>> = keys
            .into_iter()
            .map(|key| key.try_into().map_err(Error::from))
            .collect();
        match (&mut self.spec.keys, keys) {
            (Ok(all), Ok(keys)) => {
                for key in keys {
                    all.entry(key).or_insert(Mode::Shared);
                }
            }
            (Ok(_), Err(error)) => self.spec.keys = Err(error),
            (Err(_), _) => {}
        }
        self
    }

    lock_options!();

    /// Waits until all locks are acquired.
    ///
    /// The client renews the locks that it has acquired while it waits for later ones, also with
    /// [`Renewal::Manual`](crate::Renewal::Manual). If one of them is lost meanwhile, the client
    /// releases all and begins again, up to three times.
    ///
    /// # Errors
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput) for no key, for more than 64, and for an
    ///   invalid key or TTL.
    /// - [`Unsupported`](crate::ErrorKind::Unsupported) if a read lock is requested and the backend
    ///   has no shared mode.
    /// - [`Lost`](crate::ErrorKind::Lost) if locks were lost three times while others were waited
    ///   for.
    /// - Otherwise as [`Mutex::lock`](crate::Mutex::lock).
    ///
    /// # Cancel safety
    /// Safe: if the future is dropped, the task leaves all queues, and the locks that were granted
    /// meanwhile are released in the background.
    pub async fn lock(&self) -> Result<AllGuard> {
        acquire_all(&self.client, &self.spec)
            .await
            .map(AllGuard::new)
    }

    /// Makes one attempt to acquire all locks. Returns `None` if another holder has one of them, or
    /// if an earlier waiter is served first. The client then releases the remaining ones in the
    /// background.
    ///
    /// Two attempts at the same time may each acquire a part and both return `None`.
    ///
    /// # Errors
    /// As [`lock`](Self::lock). A transient error is not retried.
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    pub async fn try_lock(&self) -> Result<Option<AllGuard>> {
        Ok(try_acquire_all(&self.client, &self.spec)
            .await?
            .map(AllGuard::new))
    }

    /// Waits for all locks together for at most `timeout`. Returns `None` if they were not all
    /// acquired until then because of other holders. The client then releases those that it had
    /// acquired, in the background.
    ///
    /// A timeout of zero makes one attempt.
    ///
    /// # Errors
    /// As [`lock`](Self::lock). Also [`Unavailable`](crate::ErrorKind::Unavailable) if the timeout
    /// elapses and the backend has not answered that one of the locks is held.
    ///
    /// # Cancel safety
    /// As [`lock`](Self::lock).
    pub async fn lock_timeout(&self, timeout: Duration) -> Result<Option<AllGuard>> {
        Ok(acquire_all_for(&self.client, &self.spec, timeout)
            .await?
            .map(AllGuard::new))
    }

    run_methods!(lock, run, run_with, try_run; AllGuard, AllInfo, "all([\"sum\", \"carry\"])");
}

/// A guard that holds several locks, each with its own lease, fencing token and deadline. Renewals
/// advance the deadlines.
///
/// The guard dereferences to an [`AllInfo`], which reads the state of the leases. The work of all
/// of them must end when the first is lost.
///
/// Dropping the guard releases all locks in the background, as a dropped
/// [`LockGuard`](crate::LockGuard) does. Its guarantees hold for each lock.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::Released;
///
/// let guard = client.all(["b", "a"]).lock().await?;
/// assert!(guard.is_held());
/// assert_eq!(guard.leases()[0].key().as_str(), Some("a"));
/// let token = guard.fencing_token("b").expect("memory has tokens");
///
/// let released = guard.release().await?;
/// assert!(released.iter().all(|(_, outcome)| *outcome == Released::Freed));
/// # let _ = token;
/// # Ok(()) }
/// ```
#[must_use = "dropping the guard releases the locks; bind it to a name, not `_`"]
pub struct AllGuard {
    leases: Vec<OwnedLease>,
    info: AllInfo,
}

impl AllGuard {
    fn new(leases: Vec<OwnedLease>) -> Self {
        let infos = leases.iter().map(|lease| LeaseInfo::of(lease.held()));
        Self {
            info: AllInfo {
                leases: infos.collect(),
            },
            leases,
        }
    }

    fn into_leases(self) -> Vec<OwnedLease> {
        self.leases
    }

    /// Returns a view of the leases for other tasks.
    #[must_use]
    pub fn info(&self) -> AllInfo {
        self.info.clone()
    }

    /// Renews all leases for another TTL, counted from now. Only needed with
    /// [`Renewal::Manual`](crate::Renewal::Manual).
    ///
    /// # Errors
    /// The first error in the order of the keys, as [`LockGuard::renew`](crate::LockGuard::renew)
    /// returns it. The other leases are renewed nevertheless.
    ///
    /// # Cancel safety
    /// Each renewal may or may not have happened; the leases stay valid either way.
    pub async fn renew(&self) -> Result<()> {
        let renewals = self.leases.iter().map(|lease| lease.held().renew());
        join_all(renewals).await.into_iter().collect()
    }

    guard_run_methods!(AllInfo);

    /// Releases all locks together. Returns for each key, in their order, whether its lock was
    /// still held. [`Released::AlreadyLost`] means that another holder may have acquired it before
    /// the work was done.
    ///
    /// # Errors
    /// The first error in the order of the keys, after all releases were answered. A failed release
    /// is then retried in the background until the lease expires. If another lock was already lost,
    /// the error is [`Lost`](crate::ErrorKind::Lost) and names its key.
    ///
    /// # Cancel safety
    /// Safe: if the future is dropped, the releases continue in the background.
    pub async fn release(self) -> Result<Vec<(LockKey, Released)>> {
        let releases = self.leases.into_iter().map(async |lease| {
            let key = lease.held().request.key().clone();
            (key, lease.release().await)
        });
        let outcomes = join_all(releases).await;
        let lost = outcomes
            .iter()
            .find(|(_, outcome)| matches!(outcome, Ok(Released::AlreadyLost)))
            .map(|(key, _)| key.clone());
        let released = outcomes
            .into_iter()
            .map(|(key, outcome)| Ok((key, outcome?)))
            .collect();
        match (released, lost) {
            // The error of another release must not hide the loss.
            (Err(error), Some(key)) => Err(Error::new(
                ErrorKind::Lost,
                format!(
                    "the lock `{key}` was lost before it was released, and another was not \
                     released: {error}"
                ),
            )),
            (released, _) => released,
        }
    }
}

impl Deref for AllGuard {
    type Target = AllInfo;

    fn deref(&self) -> &AllInfo {
        &self.info
    }
}

impl fmt::Debug for AllGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllGuard")
            .field("leases", &self.info.leases)
            .finish_non_exhaustive()
    }
}

/// A view of the leases of an [`AllGuard`], for tasks that do not own them.
///
/// It is cheap to clone, and keeps neither the locks nor the connection alive.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let tokens = client
///     .all(["a", "b"])
///     .run(async |info| info.fencing_token("a").zip(info.fencing_token("b")))
///     .await?;
/// assert!(tokens.is_some());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct AllInfo {
    /// In the order of the keys. Never empty.
    leases: Arc<[LeaseInfo]>,
}

/// A view of one lease, for code that monitors any number of them.
impl From<LeaseInfo> for AllInfo {
    fn from(lease: LeaseInfo) -> Self {
        Self {
            leases: Arc::new([lease]),
        }
    }
}

impl AllInfo {
    /// Returns the leases in the order of their keys.
    #[must_use]
    pub fn leases(&self) -> &[LeaseInfo] {
        &self.leases
    }

    /// Returns the lease of this key, or `None` if it is not one of them.
    #[must_use]
    pub fn lease(&self, key: impl AsRef<[u8]>) -> Option<&LeaseInfo> {
        let key = key.as_ref();
        let at = self
            .leases
            .binary_search_by(|lease| lease.key().as_bytes().cmp(key));
        at.ok().and_then(|at| self.leases.get(at))
    }

    /// Returns the fencing token of this key, to pass to the resource. `None` if the key is not one
    /// of them, or if the backend has no tokens.
    #[must_use]
    pub fn fencing_token(&self, key: impl AsRef<[u8]>) -> Option<FencingToken> {
        self.lease(key)?.fencing_token()
    }

    /// Returns the earliest deadline on the client's clock. After it one of the leases must be
    /// treated as lost.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        let deadlines = self.leases.iter().map(LeaseInfo::deadline);
        deadlines
            .min()
            .unwrap_or(Deadline::at(Timestamp::from_nanos(0)))
    }

    /// Returns the time until the earliest deadline; zero if one of the leases is no longer held.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        let remaining = self.leases.iter().map(LeaseInfo::remaining);
        remaining.min().unwrap_or_default()
    }

    /// Returns whether all leases are held. Reads the clock, as [`LeaseInfo::is_held`] does.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.leases.iter().all(LeaseInfo::is_held)
    }

    /// Returns the key of a lost lease and why it was lost, if one was; the first in the order of
    /// the keys.
    #[must_use]
    pub fn loss(&self) -> Option<(LockKey, LossReason)> {
        let mut losses = self
            .leases
            .iter()
            .filter_map(|lease| Some((lease.key().clone(), lease.loss()?)));
        losses.next()
    }

    /// Completes with the first loss: when a lease is lost, at its deadline at the latest. Never
    /// completes while all leases are held, nor after they were released.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) -> (LockKey, LossReason) {
        let losses = self
            .leases
            .iter()
            .map(|lease| Box::pin(async { (lease.key().clone(), lease.lost().await) }));
        select_all(losses).await.0
    }
}
