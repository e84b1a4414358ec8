//! Maintenance of the nodes: reads their state, and readmits nodes that restarted.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};

use crate::{
    error::ErrorKind,
    panics::supervised,
    quorum::{
        discovery::read_states,
        eligibility::{Readmission, readmission},
        node::{EpochRecord, NodeState},
        state::QuorumState,
    },
};

/// The interval of maintenance: while all nodes are healthy, and otherwise.
const PERIODS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));

/// Starts the task that maintains the nodes. Returns `None` if no node can vote on tokens.
///
/// The task runs as long as the backend exists, even if the client only holds a lock or is idle.
/// Nodes that restart one after the other must be readmitted before the next one restarts. The task
/// keeps neither the backend nor the runtime alive.
pub(super) fn start(quorum: &Arc<QuorumState>) -> Option<AbortHandle> {
    if !quorum.has_voters() {
        return None;
    }
    let quorum = Arc::downgrade(quorum);
    let task = tokio::spawn(supervised(move || run(Weak::clone(&quorum))));
    Some(task.abort_handle())
}

async fn run(quorum: Weak<QuorumState>) {
    loop {
        let Some(due) = quorum.upgrade().map(|quorum| quorum.next_look()) else {
            return;
        };
        tokio::time::sleep_until(due).await;
        let Some(quorum) = quorum.upgrade() else {
            return;
        };
        if quorum.claim_look(|due| Instant::now() >= due) {
            maintain(&quorum).await;
        }
    }
}

/// Maintains the nodes in the background if that is due. The task of [`start`] may be late, or may
/// have ended with its runtime.
pub(super) fn now_and_then(quorum: &Arc<QuorumState>) {
    if !quorum.has_voters() {
        return;
    }
    let now = Instant::now();
    // A node that began to fail is checked soon.
    let fails = || {
        quorum
            .members
            .iter()
            .any(|member| member.health.is_suspect())
    };
    if quorum.claim_look(|due| now >= due || due > now + PERIODS.1 && fails()) {
        let this = Arc::clone(quorum);
        quorum.spawn(async move { maintain(&this).await });
    }
}

impl QuorumState {
    /// Returns whether a node has to be watched after a restart.
    fn has_voters(&self) -> bool {
        self.members.iter().any(|member| member.voter.is_some())
    }

    fn next_look(&self) -> Instant {
        self.opened + Duration::from_nanos(self.next_look.load(Ordering::Relaxed))
    }

    /// Schedules the next round of maintenance.
    pub(super) fn plan_look(&self, well: bool) {
        self.next_look.store(
            self.after(if well { PERIODS.0 } else { PERIODS.1 }),
            Ordering::Relaxed,
        );
    }

    /// Claims the round that is due. Returns `false` if it is not due, or if another task has
    /// claimed it.
    fn claim_look(&self, is_due: impl Fn(Instant) -> bool) -> bool {
        let due = self.next_look.load(Ordering::Relaxed);
        let claim = || {
            self.next_look.compare_exchange(
                due,
                self.after(PERIODS.1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            )
        };
        is_due(self.opened + Duration::from_nanos(due)) && claim().is_ok()
    }

    /// Returns the time after `period` in nanoseconds since the backend was opened.
    fn after(&self, period: Duration) -> u64 {
        u64::try_from((self.opened.elapsed() + period).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Reads the state of the nodes, and readmits those that may be.
async fn maintain(quorum: &QuorumState) {
    let nodes: Vec<_> = read_states(&quorum.members)
        .await
        .into_iter()
        .map(|node| node.and_then(Result::ok))
        .collect();
    detect_duplicates(quorum, &nodes);
    if nodes.iter().flatten().any(|node| node.recorded.is_some()) {
        quorum.require_epoch(
            nodes
                .iter()
                .flatten()
                .filter_map(|node| node.largest_ttl)
                .max(),
        );
    }
    let epoch_required = quorum.epoch_required.load(Ordering::Acquire);
    let grace = quorum.largest_ttl().as_duration();
    // Without tokens, only the grace period matters. A node that is down needs no frequent checks.
    let may_vote = |node: &NodeState| {
        node.votes() || !quorum.has_tokens && node.eligibility.vote_rights(grace).lock
    };
    quorum
        .plan_look((epoch_required || !quorum.has_tokens) && nodes.iter().flatten().all(may_vote));
    if !epoch_required {
        return;
    }
    for (at, node) in nodes.iter().enumerate() {
        match node {
            Some(node) if node.votes() => quorum.members[at].votes_again(),
            Some(node) if node.eligibility.may_be_readmitted(grace) => {
                readmit(quorum, at, node).await;
            }
            _ => {}
        }
    }
}

/// Detects addresses that lead to the same server, possibly only now. Such a server has one vote.
fn detect_duplicates(quorum: &QuorumState, nodes: &[Option<NodeState>]) {
    for (at, node) in nodes.iter().enumerate() {
        let Some(node) = node else { continue };
        let is_same = |other: &NodeState| {
            !node.incarnation.is_empty() && other.incarnation == node.incarnation
        };
        let first = nodes[..at]
            .iter()
            .position(|other| other.as_ref().is_some_and(is_same));
        quorum.members[at].set_duplicate(first.map(|first| &quorum.members[first]));
    }
}

/// Returns whether the node has every token that it ever granted or accepted. A durable node does
/// so even after a restart, unless its data, and so its epoch record, come from another node.
fn remembers(nodes: &[Option<NodeState>], at: usize) -> bool {
    let Some(node) = &nodes[at] else { return false };
    let is_copy = || {
        let others = nodes
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != at)
            .filter_map(|(_, other)| other.as_ref());
        others
            .into_iter()
            .any(|other| other.recorded == node.recorded)
    };
    node.votes() || node.durable && !is_copy()
}

/// Readmits a node that restarted and whose grace period has passed.
async fn readmit(quorum: &QuorumState, at: usize, node: &NodeState) {
    let member = &quorum.members[at];
    // Read the states again, because tokens granted during the grace period count too.
    let nodes: Vec<_> = read_states(&quorum.members)
        .await
        .into_iter()
        .map(|node| node.and_then(Result::ok))
        .collect();
    let others = (0..nodes.len()).filter(|other| {
        *other != at && remembers(&nodes, *other) && !quorum.members[*other].is_duplicate()
    });
    let highest = others
        .filter_map(|other| nodes[other].as_ref())
        .map(|other| other.highest_token);
    let above = match readmission(highest, quorum.majority) {
        Readmission::Copy(token) => token,
        Readmission::TooFew(missing) => {
            if member.should_warn() {
                tracing::warn!(
                    target: "leasehold",
                    node = %member.endpoint,
                    missing,
                    "a node that restarted cannot be readmitted: too few other nodes vote; see `leasehold init`"
                );
            }
            return;
        }
    };
    let Some(voter) = &member.voter else { return };
    let (incarnation, version) = (node.incarnation.clone(), node.version.clone());
    // A node without an epoch record is durable if the quorum was provisioned as durable.
    let durable = nodes.iter().flatten().any(|node| node.durable);
    let mut record = EpochRecord {
        incarnation,
        version,
        durable,
        largest_ttl: quorum.largest_ttl(),
        above,
    };
    let mut stored = Arc::clone(voter).record_epoch(record.clone()).await;
    if durable
        && stored
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Unsupported)
    {
        record.durable = false;
        stored = Arc::clone(voter).record_epoch(record).await;
    }
    match stored {
        Ok(()) => {
            member.votes_again();
            tracing::info!(target: "leasehold", node = %member.endpoint, "a node that restarted votes again");
        }
        Err(error) if error.is_retryable() => {
            // Usually another client was faster. Otherwise it is retried.
            tracing::debug!(target: "leasehold", node = %member.endpoint, %error, "another client may have readmitted the node; retried");
        }
        Err(error) => {
            if member.should_warn() {
                tracing::warn!(target: "leasehold", node = %member.endpoint, %error, "a node that restarted cannot be readmitted");
            }
        }
    }
}
