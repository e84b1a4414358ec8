//! [`Inspection`]: the holders of and waiters for a key.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use crate::{
    backend::acquisition_id::AcquisitionId, fencing::FencingToken, key::LockKey, mode::Mode,
};

/// The holders of and waiters for a key at the time of the inspection.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let guard = client.mutex("item/42").with_label("till 3").lock().await?;
/// let inspection = client.inspect("item/42").await?;
/// assert_eq!(inspection.holders[0].label, "till 3");
/// assert!(inspection.waiters.is_empty());
/// # drop(guard);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Inspection {
    /// The holders: none or one, or several in shared and permit mode.
    pub holders: Vec<HolderRef>,
    /// The waiters that the backend knows of, in order of arrival. A process with many waiters
    /// appears once.
    pub waiters: Vec<WaiterRef>,
    /// The nodes of a quorum. Empty for other backends.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    pub nodes: Vec<NodeStatus>,
}

impl Inspection {
    /// Creates an inspection with these holders and waiters.
    #[must_use]
    pub fn new(holders: Vec<HolderRef>, waiters: Vec<WaiterRef>) -> Self {
        Self {
            holders,
            waiters,
            nodes: Vec::new(),
        }
    }
}

/// One holder of a key. It identifies one grant: a later grant of the same key is another holder.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// let guard = client.mutex("item/42").lock().await?;
/// for holder in client.inspect("item/42").await?.holders {
///     println!("{} holds {} under token {:?}", holder.label, holder.key, holder.token);
/// }
/// # drop(guard);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct HolderRef {
    /// The key.
    pub key: LockKey,
    /// The mode in which the key is held. `None` for a holder of another program whose mode is
    /// unknown.
    pub mode: Option<Mode>,
    /// The backend's identifier of the grant. Opaque.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub id: Vec<u8>,
    /// The acquisition that was granted, if the backend stores it.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub owner: Option<AcquisitionId>,
    /// The holder's label. Empty for holders of other programs.
    pub label: String,
    /// The fencing token, if the backend knows it.
    pub token: Option<FencingToken>,
    /// The time until the grant expires unless it is renewed, if the backend knows it.
    #[cfg_attr(feature = "serde", serde(rename = "expires_in_ms"))]
    #[cfg_attr(
        feature = "serde",
        serde(serialize_with = "crate::serde_impls::optional_millis")
    )]
    pub expires_in: Option<Duration>,
    /// The connection that holds the lock, if the server reports it.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub connection: Option<HolderConnection>,
}

impl HolderRef {
    /// Creates a holder of `key` with the backend's identifier `id`.
    #[must_use]
    pub fn new(key: LockKey, id: impl Into<Vec<u8>>) -> Self {
        let (label, id) = (String::new(), id.into());
        Self {
            key,
            mode: None,
            id,
            owner: None,
            label,
            token: None,
            expires_in: None,
            connection: None,
        }
    }
}

/// The connection of a holder, as its server reports it.
///
/// ```
/// use leasehold_core::{HolderConnection, HolderRef, LockKey};
///
/// let mut connection = HolderConnection::new("4711", "shop");
/// connection.address = Some([10, 0, 0, 7].into());
/// let mut holder = HolderRef::new(LockKey::new("item/42")?, "4711");
/// holder.connection = Some(connection);
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct HolderConnection {
    /// The server's identifier of the connection. For PostgreSQL, it is the process id of its
    /// backend.
    pub id: String,
    /// The name that the client gave the connection. For PostgreSQL, it is the application name.
    pub name: String,
    /// The address of the client. `None` for a local socket, or if the caller may not see it.
    pub address: Option<IpAddr>,
    /// The time at which the connection was opened, which may be long before the grant. `None` if
    /// the caller may not see it.
    #[cfg_attr(
        feature = "serde",
        serde(serialize_with = "crate::serde_impls::rfc3339")
    )]
    pub since: Option<SystemTime>,
}

impl HolderConnection {
    /// Creates a connection with only an identifier and a name.
    #[must_use]
    pub fn new(id: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            name: name.into(),
            address: None,
            since: None,
        }
    }
}

/// One waiter for a key.
///
/// ```
/// use leasehold_core::{Inspection, Mode, WaiterRef};
///
/// let waiter = WaiterRef::new(Some(Mode::Exclusive), "till 3");
/// let inspection = Inspection::new(Vec::new(), vec![waiter]);
/// assert_eq!(inspection.waiters[0].label, "till 3");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct WaiterRef {
    /// The mode that it waits for, if known.
    pub mode: Option<Mode>,
    /// The waiter's label.
    pub label: String,
}

impl WaiterRef {
    /// Creates a waiter with this mode and label.
    #[must_use]
    pub fn new(mode: Option<Mode>, label: impl Into<String>) -> Self {
        Self {
            mode,
            label: label.into(),
        }
    }
}

/// The state of one node of a quorum.
///
/// ```
/// use leasehold_core::NodeStatus;
///
/// let nodes = [
///     NodeStatus::new("redis://10.0.0.7:6379", None),
///     NodeStatus::new("redis://10.0.0.8:6379", Some(String::from("the node restarted"))),
/// ];
/// assert_eq!(nodes.iter().filter(|node| node.problem.is_none()).count(), 1);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct NodeStatus {
    /// The address of the node, without secrets.
    pub endpoint: String,
    /// The problem of the node, or `None` if it can vote.
    pub problem: Option<String>,
}

impl NodeStatus {
    /// Creates the status of the node at this endpoint.
    #[must_use]
    pub fn new(endpoint: impl Into<String>, problem: Option<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            problem,
        }
    }
}

/// The answer to a [ping](crate::LockClient::ping).
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # let client = leasehold_core::LockClient::new(MemoryBackend::new());
/// for node in client.ping().await?.nodes {
///     println!("{}: {}", node.endpoint, node.problem.as_deref().unwrap_or("no problem"));
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Pong {
    /// The nodes of a quorum. A node with a problem did not answer. Empty for other backends.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    pub nodes: Vec<NodeStatus>,
}

impl Pong {
    /// Returns the answer of a backend without nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the nodes of a quorum.
    #[must_use]
    pub fn with_nodes(mut self, nodes: Vec<NodeStatus>) -> Self {
        self.nodes = nodes;
        self
    }
}

/// The way in which [`LockClient::revoke`](crate::LockClient::revoke) ends a holder's lock.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::{Revocation, RevokeOutcome};
///
/// let guard = client.mutex("item/42").lock().await?;
/// let holders = client.inspect("item/42").await?.holders;
/// let outcome = client.revoke(&holders[0], Revocation::Immediate).await?;
/// assert_eq!(outcome, RevokeOutcome::Freed);
/// assert!(!guard.is_held());
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Revocation {
    /// The holder keeps the lock until its deadline, and its renewals fail with
    /// [`ErrorKind::Revoked`](crate::ErrorKind::Revoked). The lock is free once the deadline has
    /// passed, or earlier if the holder releases it.
    Graceful,
    /// The lock is free at once. This is only safe if the resource checks fencing tokens.
    Immediate,
}

/// The outcome of a revocation.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # let client = leasehold_core::LockClient::new(MemoryBackend::new());
/// # let _guard = client.mutex("item/42").lock().await?;
/// use leasehold_core::{Revocation, RevokeOutcome};
///
/// for holder in client.inspect("item/42").await?.holders {
///     match client.revoke(&holder, Revocation::Graceful).await? {
///         RevokeOutcome::FreeWithin(Some(time)) => println!("free within {time:?}"),
///         outcome => println!("{outcome:?}"),
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RevokeOutcome {
    /// The lock is free.
    Freed,
    /// The lock can no longer be renewed, and is free after this time at the latest. `None` if the
    /// backend does not know the time.
    FreeWithin(Option<Duration>),
    /// The holder no longer had the lock. Nothing was changed.
    AlreadyGone,
}
