//! Simulated nodes: backends whose clocks, network and crashes a test decides, under tokio's paused
//! time.
//!
//! | file | concept |
//! |---|---|
//! | `clock` | [`SimClock`]: set wrongly, and too fast or too slow |
//! | `network` | [`Network`]: delay, loss and duplication of messages, drawn from a seed; [`Link`]s that can be cut |
//! | `node` | [`SimNode`]: a server with a clock, a memory and a run; it crashes, forgets, pauses |
//! | `memory` | what a node remembers, and what it answers |
//! | `client` | [`SimBackend`]: one client's connection to a node, a [`LockBackend`](leasehold_core::LockBackend) and a [`QuorumNode`] |
//! | `lease` | what it grants |
//!
//! A simulation is one thread: build a current-thread runtime with paused time, draw everything
//! from one seed, and the same seed repeats the same history. Time passes when nothing else can
//! happen, so an hour takes as long as what happens in it.
//!
//! [`QuorumNode`]: leasehold_core::quorum::QuorumNode
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use leasehold_core::{LockClient, Ttl, quorum::{Provision, QuorumBackend, QuorumConfig, QuorumMember}};
//! use leasehold_testkit::sim::{DataLoss, Network, SimClock, SimNode};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> leasehold_core::Result<()> {
//! let network = Network::new(42);
//! let nodes: Vec<_> = (0..3).map(|_| SimNode::new(SimClock::new())).collect();
//! let links = nodes.iter().map(|node| QuorumMember::Voting(network.connect(node)));
//! let quorum = QuorumBackend::open(links, QuorumConfig::new()).await?;
//! // Nodes that have just started may have forgotten what they granted, unless we say that they never granted anything.
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
