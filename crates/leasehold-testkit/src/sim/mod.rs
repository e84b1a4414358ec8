//! Simulated nodes: backends whose clocks, network and crashes a test controls, in tokio's paused
//! time.
//!
//! | file | concept |
//! |---|---|
//! | `clock` | [`SimClock`]: a machine's clock, which may be wrong, too fast or too slow |
//! | `network` | [`Network`]: delay, loss and duplication of messages, determined by a seed |
//! | `link` | [`Link`]: the connection of one client to one node, which can be cut |
//! | `node` | [`SimNode`]: a server that can crash, lose data and be paused |
//! | `node_bug` | [`NodeBug`]: a mistake of a node or its client |
//! | `memory` | the data of a node: its locks and tokens |
//! | `client` | [`SimBackend`]: the client of a node, a [`LockBackend`](leasehold_core::backend::LockBackend) and a [`QuorumNode`] |
//! | `lease` | the lease of a lock on a node |
//!
//! A simulation runs on one thread: build a current-thread runtime with paused time and derive
//! everything from one seed. The same seed then repeats the same history. Paused time advances when
//! all tasks sleep, so a simulated hour takes only as long as the work that is done in it.
//!
//! [`QuorumNode`]: leasehold_core::quorum::QuorumNode
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use leasehold_core::{LockClient, Ttl};
//! use leasehold_core::quorum::{Provision, QuorumBackend, QuorumConfig, QuorumMember};
//! use leasehold_testkit::sim::{DataLoss, Network, SimClock, SimNode};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> leasehold_core::Result<()> {
//! let network = Network::new(42);
//! let nodes: Vec<_> = (0..3).map(|_| SimNode::new(SimClock::new())).collect();
//! let links = nodes.iter().map(|node| QuorumMember::Voting(network.connect(node)));
//! let quorum = QuorumBackend::open(links, QuorumConfig::new()).await?;
//! // A node that has just started may have lost its data. This declares that it never had any.
//! quorum.provision(&Provision::new(Ttl::DEFAULT).with_never_used(true)).await?;
//! let client = LockClient::new(quorum);
//!
//! nodes[0].crash(DataLoss::Total);
//! let guard = client.mutex("item/42").lock().await?;
//! assert!(!nodes[0].holds() && nodes[1].holds() && nodes[2].holds());
//! # guard.release().await?; Ok(()) }
//! ```

mod client;
mod clock;
mod lease;
mod link;
mod memory;
mod network;
mod node;
mod node_bug;

pub use self::{
    client::SimBackend,
    clock::SimClock,
    link::Link,
    network::{Network, NetworkConditions},
    node::{DataLoss, SimNode},
    node_bug::NodeBug,
};
