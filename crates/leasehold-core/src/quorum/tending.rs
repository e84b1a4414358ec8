//! Looking after the nodes: whether they are attested, and whether one that restarted may rejoin.

use std::sync::{Arc, atomic::Ordering};
use std::time::Duration;

use crate::{
    quorum::{
        backend::QuorumBackend,
        membership::{Rejoin, rejoin},
        node::{Attestation, Recollection},
        opening::recall_all,
    },
    request::Request,
};

/// How often the nodes are looked after by a client that uses them: while all is well, and otherwise.
const PERIODS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));

/// Looks after the nodes in the background, if it is time to.
pub(super) fn now_and_then(quorum: &Arc<QuorumBackend>, request: &Request) {
    if !quorum.has_tokens {
        return;
    }
    let now = request.now();
    let due = quorum.next_look.load(Ordering::Relaxed);
    let well = || quorum.members.iter().all(|member| !member.health.is_suspect());
    // Something that began to fail is looked after soon.
    let early = due > (now + PERIODS.1).as_nanos() && !well();
    if now.as_nanos() < due && !early {
        return;
    }
    let period = if well() && quorum.attested.load(Ordering::Relaxed) { PERIODS.0 } else { PERIODS.1 };
    let next = (now + period).as_nanos();
    // The first call after the opening, which has just looked.
    if due == 0 {
        quorum.next_look.store(next, Ordering::Relaxed);
        return;
    }
    if quorum.next_look.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        let quorum_ = Arc::clone(quorum);
        quorum.spawn(async move { look_after(&quorum_).await });
    }
}

/// Learns whether the nodes were attested meanwhile, and lets those rejoin that may.
pub(super) async fn look_after(quorum: &QuorumBackend) {
    let nodes: Vec<_> = recall_all(&quorum.members).await.into_iter().map(|node| node.and_then(Result::ok)).collect();
    if nodes.iter().flatten().any(|node| node.marked) {
        quorum.demand_attested(nodes.iter().flatten().filter_map(|node| node.largest_ttl).max());
    }
    if !quorum.attested.load(Ordering::Acquire) {
        return;
    }
    let grace = quorum.largest_ttl().as_duration();
    for (at, node) in nodes.iter().enumerate() {
        if let Some(node) = node
            && node.membership.may_rejoin(grace)
        {
            readmit(quorum, at, node).await;
        }
    }
}

/// Lets a node rejoin that restarted, and whose grace is over.
async fn readmit(quorum: &QuorumBackend, at: usize, node: &Recollection) {
    let member = &quorum.members[at];
    // Anew: what they granted during the grace counts too.
    let others = recall_all(&quorum.members).await.into_iter().enumerate().filter(|(other, _)| *other != at);
    let highest =
        others.filter_map(|(_, other)| other?.ok().filter(Recollection::votes)).map(|other| other.highest_token);
    let above = match rejoin(highest, quorum.majority) {
        Rejoin::Copy(token) => token,
        Rejoin::TooFew(missing) => {
            tracing::warn!(
                target: "leasehold",
                node = %member.endpoint,
                missing,
                "a node that restarted cannot rejoin: too few others vote; see `leasehold provision`"
            );
            return;
        }
    };
    let Some(voter) = &member.voter else { return };
    let (run, version) = (node.run.clone(), node.version.clone());
    let attestation = Attestation { run, version, durable: false, largest_ttl: quorum.largest_ttl(), above };
    match Arc::clone(voter).attest(attestation).await {
        Ok(()) => tracing::info!(target: "leasehold", node = %member.endpoint, "a node that restarted votes again"),
        Err(error) if error.is_retryable() => {
            // Mostly another client was first. If not, it is tried again.
            tracing::debug!(target: "leasehold", node = %member.endpoint, %error, "a node that restarted is not attested by us");
        }
        Err(error) => {
            tracing::warn!(target: "leasehold", node = %member.endpoint, %error, "a node that restarted cannot rejoin");
        }
    }
}
