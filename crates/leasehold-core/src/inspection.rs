//! [`Inspection`]: who holds a key and who waits for it.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use crate::{acquisition_id::AcquisitionId, fencing::FencingToken, key::LockKey, mode::Mode};

/// Who held a key, and who waited for it, when the backend was asked.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Inspection {
    /// The holders: none, one, or several in shared and permit mode.
    pub holders: Vec<HolderRef>,
    /// The waiters that the backend knows, first come first. Of the many waiters of one process it
    /// knows one.
    pub waiters: Vec<WaiterRef>,
    /// Of a quorum: its nodes. Empty elsewhere.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    pub nodes: Vec<NodeStatus>,
}

impl Inspection {
    /// An inspection with these holders and waiters.
    #[must_use]
    pub fn new(holders: Vec<HolderRef>, waiters: Vec<WaiterRef>) -> Self {
        Self {
            holders,
            waiters,
            nodes: Vec::new(),
        }
    }
}

/// One holder, exactly this grant: a later grant of the same key is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct HolderRef {
    /// The key.
    pub key: LockKey,
    /// How it is held. `None` for a holder of another program whose mode cannot be told.
    pub mode: Option<Mode>,
    /// What identifies the grant to the backend. Opaque.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub id: Vec<u8>,
    /// The acquisition that it was granted to, where the backend writes that down.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub owner: Option<AcquisitionId>,
    /// Who it is, for people; empty for holders of other programs.
    pub label: String,
    /// Its fencing token, where the backend can tell.
    pub token: Option<FencingToken>,
    /// When it expires unless it is renewed, where the backend can tell.
    #[cfg_attr(feature = "serde", serde(rename = "expires_in_ms"))]
    #[cfg_attr(
        feature = "serde",
        serde(serialize_with = "crate::serde_impls::optional_millis")
    )]
    pub expires_in: Option<Duration>,
    /// What it holds by, where the server tells of it.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub connection: Option<HolderConnection>,
}

impl HolderRef {
    /// A holder of `key` that the backend calls `id`.
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

/// The connection that a holder holds by, in its server's words.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct HolderConnection {
    /// What the server calls it: of PostgreSQL the process that serves it.
    pub id: String,
    /// The name that it gave itself: of PostgreSQL the application's.
    pub name: String,
    /// Where it comes from. `None` over a socket of the host, and for those who may not see it.
    pub address: Option<IpAddr>,
    /// Since when it is connected, which may be long before the grant. `None` for those who may not
    /// see it.
    #[cfg_attr(
        feature = "serde",
        serde(serialize_with = "crate::serde_impls::rfc3339")
    )]
    pub since: Option<SystemTime>,
}

impl HolderConnection {
    /// A connection of which only this is known.
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

/// One waiter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct WaiterRef {
    /// What it waits for.
    pub mode: Option<Mode>,
    /// Who it is, for people.
    pub label: String,
}

impl WaiterRef {
    /// A waiter with this label.
    #[must_use]
    pub fn new(mode: Option<Mode>, label: impl Into<String>) -> Self {
        Self {
            mode,
            label: label.into(),
        }
    }
}

/// One node of a quorum.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct NodeStatus {
    /// Where it lives, without secrets.
    pub endpoint: String,
    /// What is wrong with it; `None` for a node that votes.
    pub problem: Option<String>,
}

impl NodeStatus {
    /// The node at this endpoint.
    #[must_use]
    pub fn new(endpoint: impl Into<String>, problem: Option<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            problem,
        }
    }
}

/// The answer to a [ping](crate::LockClient::ping).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Pong {
    /// Of a quorum: its nodes. A node with a problem did not answer. Empty elsewhere.
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

/// How [`LockClient::revoke`](crate::LockClient::revoke) takes a lock from its holder.
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
    /// The holder's renewals stop. The lock is free once its deadline has passed.
    Graceful,
    /// The lock is free at once. This is only safe if the resource checks fencing tokens.
    Immediate,
}

/// What a revocation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RevokeOutcome {
    /// It is free.
    Freed,
    /// It can no longer be renewed, and is free after this time at the latest. `None` if the
    /// backend cannot tell.
    FreeWithin(Option<Duration>),
    /// That holder no longer held it. Nothing was done.
    AlreadyGone,
}
