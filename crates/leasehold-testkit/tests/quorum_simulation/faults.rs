//! What goes wrong, and when.

use std::{rc::Rc, sync::Arc, time::Duration};

use leasehold_testkit::sim::{DataLoss, Network, NetworkConditions, SimNode};

use crate::{client::Client, world::Shared};

/// Hardly a message arrives in time.
const FOUL: NetworkConditions = NetworkConditions {
    delay: Duration::from_millis(1)..Duration::from_millis(20),
    late_permille: 60,
    late: Duration::from_millis(900),
    lost_permille: 30,
    twice_permille: 30,
};

/// A third of all messages is overtaken by others.
pub(crate) const LATE: NetworkConditions = NetworkConditions {
    delay: Duration::from_micros(500)..Duration::from_millis(2),
    late_permille: 300,
    late: Duration::from_millis(300),
    lost_permille: 5,
    twice_permille: 30,
};

pub(crate) struct Faults {
    pub(crate) network: Arc<Network>,
    pub(crate) nodes: Vec<Arc<SimNode>>,
    pub(crate) clients: Vec<Rc<Client>>,
    pub(crate) shared: Rc<Shared>,
    pub(crate) durable: bool,
    /// The conditions between foul ones.
    pub(crate) climate: NetworkConditions,
}

impl Faults {
    /// Breaks something every now and then, and repairs it.
    pub(crate) async fn strike(&self) {
        self.network.set_conditions(self.climate.clone());
        while !self.shared.is_over() {
            tokio::time::sleep(self.shared.between(20..500)).await;
            let node = self.shared.pick(&self.nodes);
            match self.shared.below(6) {
                0 | 1 => self.crash(&node).await,
                2 => {
                    node.pause(true);
                    self.shared
                        .log(|| format!("node {} is paused", self.name(&node)));
                    self.later(1..1500, move || node.pause(false));
                }
                3 => {
                    let link = self.shared.pick(&self.shared.pick(&self.clients).links);
                    link.link().cut(true);
                    self.later(1..1500, move || link.link().cut(false));
                }
                4 => {
                    let client = self.shared.pick(&self.clients);
                    self.shared.log(|| format!("{} is cut off", client.name));
                    client.links.iter().for_each(|link| link.link().cut(true));
                    self.later(1..1500, move || {
                        client.links.iter().for_each(|link| link.link().cut(false))
                    });
                }
                _ => {
                    self.network.set_conditions(FOUL);
                    self.shared.log(|| String::from("the conditions is foul"));
                    let (network, climate) = (Arc::clone(&self.network), self.climate.clone());
                    self.later(1..1500, move || network.set_conditions(climate));
                }
            }
        }
    }

    /// Not so that a majority has lost its memory: then tokens end, by design, until someone
    /// provisions the nodes.
    async fn crash(&self, node: &Arc<SimNode>) {
        let others = self.nodes.iter().filter(|other| !Arc::ptr_eq(other, node));
        let voting = others.filter(|other| other.votes()).count();
        if !node.is_up() || !self.durable && voting < self.nodes.len() / 2 + 1 {
            return;
        }
        let loss = match self.shared.below(3) {
            // A backup was restored: no second one while one has not rejoined.
            0 if self.durable && voting == self.nodes.len() - 1 => DataLoss::SinceSave,
            _ if self.durable => DataLoss::None,
            0 => DataLoss::SinceSave,
            1 => DataLoss::Total,
            _ => DataLoss::None,
        };
        if self.shared.one_in(2) {
            // A crash soon after, or much later, goes back to this.
            node.save();
            return;
        }
        self.shared
            .log(|| format!("node {} crashes: {loss:?}", self.name(node)));
        node.crash(loss);
        let node = Arc::clone(node);
        let shared = Rc::clone(&self.shared);
        let name = self.name(&node);
        // NTP sets the clock while a machine starts, and an operator soon after.
        let ahead = if self.shared.one_in(3) {
            self.shared.between(1..3_600_000)
        } else {
            Duration::ZERO
        };
        let set_early = self.shared.one_in(2);
        let step = self.shared.between(0..300);
        self.later(1..1000, move || {
            shared.log(|| format!("node {name} starts"));
            if set_early {
                node.clock().suspend(ahead);
            }
            node.start();
            if !set_early {
                drop(tokio::task::spawn_local(async move {
                    tokio::time::sleep(step).await;
                    // One that votes would free what it holds.
                    if !node.votes() {
                        shared
                            .log(|| format!("the clock of node {name} is set ahead by {ahead:?}"));
                        node.clock().suspend(ahead);
                    }
                }));
            }
        });
    }

    fn name(&self, node: &Arc<SimNode>) -> usize {
        self.nodes
            .iter()
            .position(|other| Arc::ptr_eq(other, node))
            .unwrap_or_default()
    }

    fn later(&self, millis: std::ops::Range<u64>, repair: impl FnOnce() + 'static) {
        let after = self.shared.between(millis);
        drop(tokio::task::spawn_local(async move {
            tokio::time::sleep(after).await;
            repair();
        }));
    }

    /// The repairs that are still to come have nothing left to do.
    pub(crate) async fn mend_everything(&self) {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        self.network.set_conditions(NetworkConditions::FAIR);
        for node in &self.nodes {
            node.start();
            node.pause(false);
        }
        self.clients
            .iter()
            .flat_map(|client| &client.links)
            .for_each(|link| link.link().cut(false));
    }
}
