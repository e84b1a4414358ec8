//! The capabilities of a quorum, derived from those of its members.

use std::time::Duration;

use crate::{
    backend::capability::{
        Capabilities, Expiry, Fairness, Fencing, LossDetection, Restart, WaiterNotification,
    },
    clock::ClockDrift,
    quorum::{config::QuorumConfig, discovery::Discovery, member::Member, tally::Majority},
    ttl::Ttl,
};

/// The reason why a quorum has no permits.
const NO_PERMITS: &str = "a majority on each permit cannot bound their number: with two permits of five nodes, one client \
     may hold a permit on nodes 1 to 3, another on 3 to 5, and a third on 1, 4 and 5; use a single backend for semaphores";

/// The reason why a quorum has no records.
const NO_RECORDS: &str = "a node that has lost its data forgets its records, and it forms a majority with a node that missed the \
     last write; use a single backend for records";

pub(super) fn of(members: &[Member], config: &QuorumConfig, found: &Discovery) -> Capabilities {
    let each: Vec<_> = members
        .iter()
        .map(|member| member.backend.capabilities())
        .collect();
    let needed = Majority::of(members.len()).needed();
    let voters = members.iter().all(|member| member.voter.is_some());
    let mut capabilities = Capabilities::new(config.scheme);
    capabilities.endpoint = endpoint(members, config);
    capabilities.exclusive = each.iter().all(|node| node.exclusive);
    capabilities.shared = each.iter().all(|node| node.shared);
    capabilities.permits = false;
    capabilities.why_no_permits = Some(NO_PERMITS);
    capabilities.why_no_records = Some(NO_RECORDS);
    capabilities.min_ttl = each
        .iter()
        .map(|node| node.min_ttl)
        .max()
        .unwrap_or(Ttl::MIN);
    capabilities.max_ttl = each
        .iter()
        .map(|node| node.max_ttl)
        .min()
        .unwrap_or(Ttl::MAX)
        .min(found.largest_ttl);
    capabilities.expiry = each
        .iter()
        .map(|node| node.expiry)
        .max_by_key(|expiry| match expiry {
            Expiry::Server => 0,
            Expiry::Session => 1,
            Expiry::ProcessDeath => 2,
        })
        .unwrap_or(Expiry::Server);
    capabilities.drift = ClockDrift {
        rate_ppm: each
            .iter()
            .map(|node| node.drift.rate_ppm)
            .max()
            .unwrap_or_default(),
        constant: each
            .iter()
            .map(|node| node.drift.constant)
            .max()
            .unwrap_or_default(),
    };
    capabilities.fencing = match (voters, found) {
        (false, _) => Fencing::None,
        (
            true,
            Discovery {
                provisioned: false, ..
            },
        ) => Fencing::BestEffort,
        (true, Discovery { durable: true, .. }) => Fencing::Durable,
        (true, _) => Fencing::Clocked,
    };
    // An attempt leaves the queues of nodes with a queue of their own, and the next one joins them
    // again.
    let in_order = each
        .iter()
        .all(|node| node.fairness == Fairness::BestEffort);
    capabilities.fairness = if in_order {
        Fairness::BestEffort
    } else {
        Fairness::None
    };
    capabilities.waiter_notification = waiter_notification(&each, needed);
    capabilities.loss_detection = if each
        .iter()
        .any(|node| node.loss_detection == LossDetection::Deadline)
    {
        LossDetection::Deadline
    } else {
        LossDetection::Renewal
    };
    // A voter that restarted does not vote while it may have lost a lock.
    capabilities.restart = if voters {
        Restart::Keeps
    } else {
        worst_restart(&each)
    };
    capabilities.pipelined_release = voters && each.iter().all(|node| node.pipelined_release);
    capabilities.inspect = each.iter().all(|node| node.inspect);
    capabilities.revoke = each.iter().all(|node| node.revoke);
    capabilities
}

/// Returns `Pushed` if any majority of the nodes contains enough nodes that notify waiters.
fn waiter_notification(each: &[Capabilities], needed: usize) -> WaiterNotification {
    let pushing = each
        .iter()
        .filter(|node| node.waiter_notification == WaiterNotification::Pushed)
        .count();
    let interval = each
        .iter()
        .filter_map(|node| match node.waiter_notification {
            WaiterNotification::Polled(interval) => Some(interval),
            WaiterNotification::Pushed => None,
        });
    if pushing >= needed {
        WaiterNotification::Pushed
    } else {
        WaiterNotification::Polled(interval.max().unwrap_or(Duration::ZERO))
    }
}

fn worst_restart(each: &[Capabilities]) -> Restart {
    let badness = |restart: &Restart| match restart {
        Restart::Keeps => 0,
        Restart::FailOverMayFree => 1,
        Restart::EndsHolders => 2,
        Restart::AsPersisted => 3,
        Restart::FreesAtOnce => 4,
    };
    each.iter()
        .map(|node| node.restart)
        .max_by_key(badness)
        .unwrap_or(Restart::Keeps)
}

fn endpoint(members: &[Member], config: &QuorumConfig) -> String {
    let nodes: Vec<_> = members.iter().map(|member| &*member.endpoint).collect();
    format!("{}({})", config.scheme, nodes.join(", "))
}
