//! Looking after the nodes: whether they are attested, and whether one that restarted may rejoin.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};

use crate::{
    error::ErrorKind,
    panics::supervised,
    quorum::{
        backend::QuorumBackend,
        discovery::recall_all,
        eligibility::{Rejoin, rejoin},
        node::{Attestation, Recollection},
    },
};

/// How often the nodes are looked after: while all is well, and otherwise.
const PERIODS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));

/// Looks after the nodes for as long as there is a client, also one that only holds a lock or does
/// nothing: nodes that restart one after the other must have rejoined before the next one does. The
/// task keeps neither the client nor the runtime alive.
pub(super) fn attend(quorum: &Arc<QuorumBackend>) -> Option<AbortHandle> {
    if !quorum.has_voters() {
        return None;
    }
    let quorum = Arc::downgrade(quorum);
    let attending = tokio::spawn(supervised(move || {
        look_again_and_again(Weak::clone(&quorum))
    }));
    Some(attending.abort_handle())
}

async fn look_again_and_again(quorum: Weak<QuorumBackend>) {
    loop {
        let Some(due) = quorum.upgrade().map(|quorum| quorum.next_look()) else {
            return;
        };
        tokio::time::sleep_until(due).await;
        let Some(quorum) = quorum.upgrade() else {
            return;
        };
        if quorum.claim_look(|due| Instant::now() >= due) {
            look_after(&quorum).await;
        }
    }
}

/// Looks after the nodes in the background, if it is time to. The task of [`attend`] may be late,
/// or have ended with its runtime.
pub(super) fn now_and_then(quorum: &Arc<QuorumBackend>) {
    if !quorum.has_voters() {
        return;
    }
    let now = Instant::now();
    // Something that began to fail is looked after soon.
    let fails = || {
        quorum
            .members
            .iter()
            .any(|member| member.health.is_suspect())
    };
    if quorum.claim_look(|due| now >= due || due > now + PERIODS.1 && fails()) {
        let this = Arc::clone(quorum);
        quorum.spawn(async move { look_after(&this).await });
    }
}

impl QuorumBackend {
    /// Whether there is a node that is to be watched after a restart.
    fn has_voters(&self) -> bool {
        self.members.iter().any(|member| member.voter.is_some())
    }

    fn next_look(&self) -> Instant {
        self.opened + Duration::from_nanos(self.next_look.load(Ordering::Relaxed))
    }

    /// Plans the next look, whoever takes it.
    pub(super) fn plan_look(&self, well: bool) {
        self.next_look.store(
            self.after(if well { PERIODS.0 } else { PERIODS.1 }),
            Ordering::Relaxed,
        );
    }

    /// Whether the look that is due is the caller's: nobody else takes it for a while.
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

    /// In nanoseconds since it was opened.
    fn after(&self, period: Duration) -> u64 {
        u64::try_from((self.opened.elapsed() + period).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Learns whether the nodes were attested meanwhile, and lets those rejoin that may.
async fn look_after(quorum: &QuorumBackend) {
    let nodes: Vec<_> = recall_all(&quorum.members)
        .await
        .into_iter()
        .map(|node| node.and_then(Result::ok))
        .collect();
    note_doubles(quorum, &nodes);
    if nodes.iter().flatten().any(|node| node.marked.is_some()) {
        quorum.demand_attested(
            nodes
                .iter()
                .flatten()
                .filter_map(|node| node.largest_ttl)
                .max(),
        );
    }
    let attested = quorum.attested.load(Ordering::Acquire);
    let grace = quorum.largest_ttl().as_duration();
    // Without tokens there is nothing to rejoin for, only the grace. A node that is down has no
    // time to lose.
    let may_vote = |node: &Recollection| {
        node.votes() || !quorum.has_tokens && node.membership.ballot(grace).lock
    };
    quorum.plan_look((attested || !quorum.has_tokens) && nodes.iter().flatten().all(may_vote));
    if !attested {
        return;
    }
    for (at, node) in nodes.iter().enumerate() {
        match node {
            Some(node) if node.votes() => quorum.members[at].votes_again(),
            Some(node) if node.membership.may_rejoin(grace) => readmit(quorum, at, node).await,
            _ => {}
        }
    }
}

/// Two names may lead to one server, also only from some time on. It has one vote.
fn note_doubles(quorum: &QuorumBackend, nodes: &[Option<Recollection>]) {
    for (at, node) in nodes.iter().enumerate() {
        let Some(node) = node else { continue };
        let is_same = |other: &Recollection| !node.run.is_empty() && other.run == node.run;
        let first = nodes[..at]
            .iter()
            .position(|other| other.as_ref().is_some_and(is_same));
        quorum.members[at].set_double(first.map(|first| &quorum.members[first]));
    }
}

/// Whether the node remembers every token that it ever granted or accepted. A durable node does
/// after a restart, too, but not if its data, and so its mark, are those of another node.
fn remembers(nodes: &[Option<Recollection>], at: usize) -> bool {
    let Some(node) = &nodes[at] else { return false };
    let is_copy = || {
        let others = nodes
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != at)
            .filter_map(|(_, other)| other.as_ref());
        others.into_iter().any(|other| other.marked == node.marked)
    };
    node.votes() || node.durable && !is_copy()
}

/// Lets a node rejoin that restarted, and whose grace is over.
async fn readmit(quorum: &QuorumBackend, at: usize, node: &Recollection) {
    let member = &quorum.members[at];
    // Anew: what they granted during the grace counts too.
    let nodes: Vec<_> = recall_all(&quorum.members)
        .await
        .into_iter()
        .map(|node| node.and_then(Result::ok))
        .collect();
    let others = (0..nodes.len()).filter(|other| {
        *other != at && remembers(&nodes, *other) && !quorum.members[*other].is_double()
    });
    let highest = others
        .filter_map(|other| nodes[other].as_ref())
        .map(|other| other.highest_token);
    let above = match rejoin(highest, quorum.majority) {
        Rejoin::Copy(token) => token,
        Rejoin::TooFew(missing) => {
            if member.is_to_warn() {
                tracing::warn!(
                    target: "leasehold",
                    node = %member.endpoint,
                    missing,
                    "a node that restarted cannot rejoin: too few others vote; see `leasehold init`"
                );
            }
            return;
        }
    };
    let Some(voter) = &member.voter else { return };
    let (run, version) = (node.run.clone(), node.version.clone());
    // Also one whose mark is gone is what the quorum was provisioned as, if it is.
    let durable = nodes.iter().flatten().any(|node| node.durable);
    let mut attestation = Attestation {
        run,
        version,
        durable,
        largest_ttl: quorum.largest_ttl(),
        above,
    };
    let mut attested = Arc::clone(voter).attest(attestation.clone()).await;
    if durable
        && attested
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Unsupported)
    {
        attestation.durable = false;
        attested = Arc::clone(voter).attest(attestation).await;
    }
    match attested {
        Ok(()) => {
            member.votes_again();
            tracing::info!(target: "leasehold", node = %member.endpoint, "a node that restarted votes again");
        }
        Err(error) if error.is_retryable() => {
            // Mostly another client was first. If not, it is tried again.
            tracing::debug!(target: "leasehold", node = %member.endpoint, %error, "a node that restarted is not attested by us");
        }
        Err(error) => {
            if member.is_to_warn() {
                tracing::warn!(target: "leasehold", node = %member.endpoint, %error, "a node that restarted cannot rejoin");
            }
        }
    }
}
