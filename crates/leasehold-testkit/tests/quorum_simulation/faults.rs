//! The injection of random faults.

use std::{rc::Rc, sync::Arc, time::Duration};

use leasehold_testkit::sim::{DataLoss, Network, NetworkConditions, SimNode};

use crate::{client::Client, world::Shared};

/// Conditions in which many messages are late, lost or duplicated.
const POOR: NetworkConditions = NetworkConditions {
    delay: Duration::from_millis(1)..Duration::from_millis(20),
    late_permille: 60,
    late: Duration::from_millis(900),
    lost_permille: 30,
    twice_permille: 30,
};

/// Conditions in which a third of all messages is overtaken by later ones.
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
    /// The conditions of the network while they are not poor.
    pub(crate) usual_conditions: NetworkConditions,
}

impl Faults {
    /// Injects faults until the simulation ends them, and repairs each after a while.
    pub(crate) async fn inject(&self) {
        self.network.set_conditions(self.usual_conditions.clone());
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
                        client.links.iter().for_each(|link| link.link().cut(false));
                    });
                }
                _ => {
                    self.network.set_conditions(POOR);
                    self.shared
                        .log(|| String::from("the network conditions are poor"));
                    let (network, usual_conditions) =
                        (Arc::clone(&self.network), self.usual_conditions.clone());
                    self.later(1..1500, move || network.set_conditions(usual_conditions));
                }
            }
        }
    }

    /// Crashes the node, unless a majority of the nodes would then have lost data. In that case the
    /// quorum grants no tokens, by design, until it is provisioned again.
    async fn crash(&self, node: &Arc<SimNode>) {
        let others = self.nodes.iter().filter(|other| !Arc::ptr_eq(other, node));
        let voting = others.filter(|other| other.votes()).count();
        if !node.is_up() || !self.durable && voting < self.nodes.len() / 2 + 1 {
            return;
        }
        let loss = match self.shared.below(3) {
            // A backup is restored, unless another node has not yet been readmitted.
            0 if self.durable && voting == self.nodes.len() - 1 => DataLoss::SinceSave,
            _ if self.durable => DataLoss::None,
            0 => DataLoss::SinceSave,
            1 => DataLoss::Total,
            _ => DataLoss::None,
        };
        if self.shared.one_in(2) {
            // A later crash may restore this snapshot.
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
                    // A node that votes would free its locks too early.
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

    /// Repairs all faults. Waits first, so that no scheduled repair is left.
    pub(crate) async fn repair_everything(&self) {
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
