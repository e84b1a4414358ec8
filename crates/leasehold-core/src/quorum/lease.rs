//! [`QuorumLease`]: a lock held on a majority of the nodes.

use std::{
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    backend::{
        acquisition_id::AcquisitionId,
        attempt::Attempt,
        lease::{KeepAlive, Lease, Released},
        request::Request,
    },
    clock::{AtomicDeadline, Deadline},
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    quorum::{
        deadline::validity,
        fan_out::FanOut,
        maintenance,
        node::VoteRequirements,
        renewal::{Renewed, may_reacquire, renewal},
        reply::NodeReply,
        state::QuorumState,
        tally::{AttemptState, Tally, Vote},
    },
};

/// After a grant, the delay before missing nodes are requested again, and the part of the TTL up to
/// which it doubles. After that, renewals request them. A missing node is usually held by an
/// attempt that failed and is being released.
const PAUSES: (Duration, u32) = (Duration::from_millis(2), 8);

pub(super) struct QuorumLease {
    quorum: Arc<QuorumState>,
    /// The request as it is sent to the nodes.
    request: Request,
    /// On which it was granted, and nodes are asked again.
    requirements: VoteRequirements,
    token: Option<FencingToken>,
    deadline: AtomicDeadline,
    node_leases: Mutex<NodeLeases>,
}

/// The leases of the nodes.
struct NodeLeases {
    nodes: Vec<NodeLease>,
    /// Set before a release is sent. Leases that arrive later are released.
    releasing: bool,
    /// Whether [`Released::Freed`] has been reported.
    reported: bool,
    /// The number of times that nodes were requested again.
    reacquisitions: u16,
    /// Whether a task is requesting missing nodes.
    reacquiring: bool,
}

/// Running renewals.
struct Renewals {
    /// The lease that each node was asked to renew.
    leases: Vec<Option<Arc<dyn Lease>>>,
    calls: FanOut<()>,
    votes: Vec<Vote>,
}

enum NodeLease {
    /// The node holds no lock for this acquisition.
    Missing,
    /// The node was asked, and may grant the lock to this acquisition id.
    Pending(AcquisitionId),
    Held(Arc<dyn Lease>),
    Released(Released),
}

impl QuorumLease {
    pub(super) fn new(
        quorum: &Arc<QuorumState>,
        request: Request,
        requirements: VoteRequirements,
        token: Option<FencingToken>,
        validity: Deadline,
        replies: Vec<NodeReply>,
    ) -> Arc<Self> {
        let nodes = replies.into_iter().map(|reply| match reply {
            NodeReply::Granted(lease) => NodeLease::Held(lease),
            NodeReply::Pending => NodeLease::Pending(request.owner()),
            NodeReply::Refused(_) | NodeReply::Failed(_) => NodeLease::Missing,
        });
        Arc::new(Self {
            node_leases: Mutex::new(NodeLeases {
                nodes: nodes.collect(),
                releasing: false,
                reported: false,
                reacquisitions: 0,
                reacquiring: false,
            }),
            quorum: Arc::clone(quorum),
            request,
            requirements,
            token,
            deadline: AtomicDeadline::new(validity),
        })
    }

    /// Adopts the grants that arrive for `asked` while the lock is held, and releases those that
    /// arrive too late.
    pub(super) fn adopt_late_grants(
        self: Arc<Self>,
        asked: Request,
        calls: FanOut<Attempt>,
        timeout: Duration,
    ) {
        let quorum = Arc::clone(&self.quorum);
        quorum.finish_within(calls, timeout, move |(node, answer)| {
            self.quorum.members[node].learn(&answer, asked.now());
            let granted = match answer {
                Ok(Attempt::Granted(lease)) => Some(lease),
                Ok(Attempt::Contended(_)) if asked.waiting().keeps_waiting => {
                    // The node has registered the waiter, and would keep other waiters waiting for
                    // it.
                    self.quorum.stop_waiting_at(&asked, |at| at == node);
                    None
                }
                _ => None,
            };
            if let Some(late) = self.adopt(node, granted) {
                self.quorum.release_detached(late, &asked);
            }
            // The next renewal requests nodes that are missing after a reacquisition.
            if asked.owner() == self.request.owner() {
                self.reacquire_in_background(timeout);
            }
        });
    }

    /// Stores the answer of a node. Returns a lease that must be released.
    fn adopt(&self, node: usize, granted: Option<Arc<dyn Lease>>) -> Option<Arc<dyn Lease>> {
        // Read the clock first: see `AtomicDeadline::get`.
        let now = self.request.now();
        let mut node_leases = self.node_leases();
        if node_leases.releasing || !may_reacquire(self.deadline.get(), now) {
            return granted;
        }
        node_leases.nodes[node] = granted.map_or(NodeLease::Missing, NodeLease::Held);
        None
    }

    /// Requests missing nodes in the background until all hold the lock or the next renewal is
    /// near. A lock on a bare majority would be lost with any of its nodes.
    pub(super) fn reacquire_in_background(self: &Arc<Self>, timeout: Duration) {
        if !self.is_incomplete() || std::mem::replace(&mut self.node_leases().reacquiring, true) {
            return;
        }
        let lease = Arc::clone(self);
        // No one waits for the task, not even a close.
        drop(tokio::spawn(async move {
            let (mut pause, last) = (PAUSES.0, lease.request.ttl().as_duration() / PAUSES.1);
            while pause <= last && lease.is_incomplete() {
                tokio::time::sleep(pause).await;
                lease.reacquire(timeout);
                pause *= 2;
            }
            lease.node_leases().reacquiring = false;
        }));
    }

    /// Returns whether a node refused or failed, which excludes nodes that have not answered yet.
    pub(super) fn has_missing_nodes(&self) -> bool {
        self.node_leases()
            .nodes
            .iter()
            .any(|node_lease| matches!(node_lease, NodeLease::Missing))
    }

    /// Returns whether a node is missing and may still be requested.
    fn is_incomplete(&self) -> bool {
        let now = self.request.now();
        let node_leases = self.node_leases();
        let missing = || {
            node_leases
                .nodes
                .iter()
                .any(|node_lease| !matches!(node_lease, NodeLease::Held(_)))
        };
        !node_leases.releasing && missing() && may_reacquire(self.deadline.get(), now)
    }

    /// Requests the missing nodes again, each time under another acquisition id. A node that did
    /// not answer in time is released until it confirms, which may be long after it was acquired
    /// again.
    fn reacquire(self: &Arc<Self>, timeout: Duration) {
        let now = self.request.now();
        let mut request = self.request.clone().with_waiting(|waiting| {
            (waiting.keeps_waiting, waiting.yields, waiting.in_order) = (false, false, false);
        });
        let mut requirements = self.requirements;
        if let Some(token) = self.token {
            // The nodes then grant the token of this lease, unless they have seen a larger one.
            requirements.token_floor = FencingToken::new(token.get() - 1);
        }
        let mut calls = FanOut::with_capacity(self.quorum.members.len());
        {
            let mut node_leases = self.node_leases();
            if node_leases.releasing
                || !may_reacquire(self.deadline.get(), now)
                || !node_leases
                    .nodes
                    .iter()
                    .any(|node_lease| matches!(node_lease, NodeLease::Missing))
            {
                return;
            }
            node_leases.reacquisitions = node_leases.reacquisitions.wrapping_add(1);
            request = request.with_owner(self.request.owner().again(node_leases.reacquisitions));
            for ((node, node_lease), member) in node_leases
                .nodes
                .iter_mut()
                .enumerate()
                .zip(&self.quorum.members)
            {
                if matches!(node_lease, NodeLease::Missing) && member.may_ask(now) {
                    *node_lease = NodeLease::Pending(request.owner());
                    calls.push(node, || member.acquire(request.clone(), requirements));
                }
            }
        }
        Arc::clone(self).adopt_late_grants(request, calls, timeout);
    }

    fn node_leases(&self) -> MutexGuard<'_, NodeLeases> {
        // No code panics while the mutex is locked.
        self.node_leases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the k-th largest of the nodes' current deadlines.
    fn validity(&self) -> Option<Deadline> {
        let node_leases = self.node_leases();
        let held = node_leases
            .nodes
            .iter()
            .filter_map(|node_lease| match node_lease {
                NodeLease::Held(lease) => Some(lease.valid_until()),
                _ => None,
            });
        validity(held, self.quorum.majority)
    }

    /// Records that the node lost this lease. A newer lease of the node is left alone. Returns
    /// `false` if the lease is being released, because the node has freed it on request.
    fn mark_missing(&self, node: usize, lost: &Arc<dyn Lease>) -> bool {
        let mut node_leases = self.node_leases();
        if node_leases.releasing {
            return false;
        }
        let node_lease = &mut node_leases.nodes[node];
        if matches!(node_lease, NodeLease::Held(held) if Arc::ptr_eq(held, lost)) {
            *node_lease = NodeLease::Missing;
        }
        true
    }

    /// Starts the renewals, and returns them with each node's vote before it answers.
    fn renewals(&self) -> Result<Renewals> {
        let node_leases = self.node_leases();
        if node_leases.releasing {
            return Err(lost("it was released"));
        }
        let mut calls = FanOut::with_capacity(node_leases.nodes.len());
        let (mut leases, mut votes) = (
            Vec::with_capacity(node_leases.nodes.len()),
            Vec::with_capacity(node_leases.nodes.len()),
        );
        for (node, node_lease) in node_leases.nodes.iter().enumerate() {
            votes.push(match node_lease {
                NodeLease::Held(lease) => {
                    calls.push(node, || Arc::clone(lease).renew());
                    Vote::Pending
                }
                NodeLease::Pending(_) => Vote::Failed,
                NodeLease::Missing | NodeLease::Released(_) => Vote::Refused,
            });
            leases.push(match node_lease {
                NodeLease::Held(lease) => Some(Arc::clone(lease)),
                _ => None,
            });
        }
        Ok(Renewals {
            leases,
            calls,
            votes,
        })
    }

    /// Starts the releases, and returns them with each node's vote before it answers.
    fn releases(&self) -> (FanOut<Released>, Vec<Vote>) {
        let mut node_leases = self.node_leases();
        node_leases.releasing = true;
        let mut calls = FanOut::with_capacity(node_leases.nodes.len());
        let votes =
            node_leases
                .nodes
                .iter()
                .enumerate()
                .map(|(node, node_lease)| match node_lease {
                    NodeLease::Held(lease) => {
                        calls.push(node, || Arc::clone(lease).release());
                        Vote::Pending
                    }
                    NodeLease::Pending(owner) => {
                        let request = self.request.clone().with_owner(*owner);
                        if self.quorum.withdraw(node, &request, &mut calls) {
                            Vote::Pending
                        } else {
                            Vote::Failed
                        }
                    }
                    NodeLease::Released(Released::Freed) => Vote::Granted,
                    NodeLease::Missing | NodeLease::Released(_) => Vote::Refused,
                });
        let votes = votes.collect();
        (calls, votes)
    }

    /// Records the answer to a release.
    fn released(self: &Arc<Self>, node: usize, answer: &Result<Released>) -> Vote {
        self.quorum.members[node].learn(answer, self.request.now());
        match answer {
            Ok(released) => {
                self.node_leases().nodes[node] = NodeLease::Released(*released);
                if *released == Released::Freed {
                    Vote::Granted
                } else {
                    Vote::Refused
                }
            }
            Err(_) => Vote::Failed,
        }
    }

    /// Retries a release that failed on a node, until the lease expires.
    fn retry_release(&self, node: usize) {
        let node_leases = self.node_leases();
        if let NodeLease::Held(lease) = &node_leases.nodes[node] {
            self.quorum
                .release_detached(Arc::clone(lease), &self.request);
        }
    }
}

#[async_trait]
impl Lease for QuorumLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        self.token
    }

    fn valid_until(&self) -> Deadline {
        self.deadline.get()
    }

    fn keep_alive(&self) -> KeepAlive {
        KeepAlive::PerLease
    }

    async fn renew(self: Arc<Self>) -> Result<()> {
        maintenance::now_and_then(&self.quorum);
        let Renewals {
            leases,
            mut calls,
            mut votes,
        } = self.renewals()?;
        let (majority, timeout) = (
            self.quorum.majority,
            self.quorum.config.node_timeout(self.request.ttl()),
        );
        let mut timer = pin!(tokio::time::sleep(timeout));
        let (mut problem, mut revoked) = (None, 0);
        let outcome = poll_fn(|cx| {
            calls.poll(cx, |node, answer| {
                votes[node] = self.renewed(node, &leases, &answer);
                revoked += usize::from(is_revoked(&answer));
                problem = answer.err().or(problem.take());
            });
            let outcome = renewal(&Tally::of(majority, votes.iter().copied()));
            // A failed renewal is retried, a revocation is final: wait for the answers that decide.
            let may_be_revoked = (1..=majority.spare()).contains(&revoked)
                && revoked + calls.nodes().count() > majority.spare();
            if outcome != Renewed::Pending && !(outcome == Renewed::Unchanged && may_be_revoked) {
                return Poll::Ready(outcome);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            for node in calls.nodes() {
                self.quorum.members[node].late(timeout);
            }
            Poll::Ready(Renewed::Unchanged)
        })
        .await;
        let this = Arc::clone(&self);
        self.quorum
            .finish_within(calls, timeout, move |(node, answer)| {
                this.renewed(node, &leases, &answer);
            });
        if self.node_leases().releasing {
            return Err(lost("it was released"));
        }
        match outcome {
            Renewed::Extended => {
                // `AtomicDeadline` requires that the clock is read after the answers have arrived.
                let now = self.request.now();
                if !self
                    .validity()
                    .is_some_and(|validity| self.deadline.advance(validity, now))
                {
                    return Err(lost("the renewal was answered after the deadline"));
                }
                self.reacquire(timeout);
                Ok(())
            }
            Renewed::Lost => Err(lost(
                "a majority of the nodes no longer lists this client as the holder",
            )),
            Renewed::Pending | Renewed::Unchanged if revoked > majority.spare() => Err(Error::new(
                ErrorKind::Revoked,
                "the lock was revoked on a majority of the nodes, and ends at its deadline",
            )
            .with_operation("renew")),
            Renewed::Pending | Renewed::Unchanged => {
                // No other holder can have a majority before the deadline, and the next try may
                // need these nodes.
                self.reacquire(timeout);
                let renewed = votes.iter().filter(|vote| **vote == Vote::Granted).count();
                let error = Error::new(
                    ErrorKind::Indeterminate,
                    format!(
                        "{renewed} of {} nodes renewed, {} are needed",
                        votes.len(),
                        majority.needed()
                    ),
                );
                Err(match problem {
                    Some(problem) => error.with_source(problem),
                    None => error,
                }
                .with_operation("renew"))
            }
        }
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        let (mut calls, mut votes) = self.releases();
        let (majority, timeout) = (
            self.quorum.majority,
            self.quorum.config.node_timeout(self.request.ttl()),
        );
        let mut timer = pin!(tokio::time::sleep(timeout));
        let mut failed = Vec::new();
        let outcome = poll_fn(|cx| {
            calls.poll(cx, |node, answer| {
                votes[node] = self.released(node, &answer);
                if let Err(error) = answer {
                    failed.push((node, error));
                }
            });
            let tally = Tally::of(majority, votes.iter().copied());
            match tally.state() {
                AttemptState::Won => return Poll::Ready(Some(Released::Freed)),
                _ if !tally.is_possible() => return Poll::Ready(Some(Released::AlreadyLost)),
                AttemptState::Pending => {}
                AttemptState::Contended | AttemptState::Unreachable => return Poll::Ready(None),
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            for node in calls.nodes() {
                self.quorum.members[node].late(timeout);
            }
            Poll::Ready(None)
        })
        .await;
        let this = Arc::clone(&self);
        self.quorum
            .finish_within(calls, timeout, move |(node, answer)| {
                if this.released(node, &answer) == Vote::Failed {
                    this.retry_release(node);
                }
            });
        match outcome {
            Some(released) => {
                for (node, _) in &failed {
                    self.retry_release(*node);
                }
                let reported = std::mem::replace(&mut self.node_leases().reported, true);
                Ok(if reported {
                    Released::AlreadyLost
                } else {
                    released
                })
            }
            // The caller retries.
            None => {
                let error = Error::new(
                    ErrorKind::Indeterminate,
                    format!(
                        "fewer than {} of {} nodes confirmed the release",
                        majority.needed(),
                        votes.len()
                    ),
                );
                Err(match failed.pop() {
                    Some((_, problem)) => error.with_source(problem),
                    None => error,
                }
                .with_operation("release"))
            }
        }
    }
}

impl QuorumLease {
    /// Records the answer to the renewal of one of `leases`.
    fn renewed(&self, node: usize, leases: &[Option<Arc<dyn Lease>>], answer: &Result<()>) -> Vote {
        self.quorum.members[node].learn(answer, self.request.now());
        match answer {
            Ok(()) => Vote::Granted,
            Err(error) if error.kind() == ErrorKind::Lost => {
                if let Some(lease) = &leases[node]
                    && self.mark_missing(node, lease)
                {
                    // If only the answer was late, the node holds the lock for another TTL.
                    self.quorum
                        .release_detached(Arc::clone(lease), &self.request);
                }
                Vote::Refused
            }
            Err(_) => Vote::Failed,
        }
    }
}

fn is_revoked(answer: &Result<()>) -> bool {
    matches!(answer, Err(error) if error.kind() == ErrorKind::Revoked)
}

fn lost(message: &'static str) -> Error {
    Error::new(ErrorKind::Lost, message).with_operation("renew")
}

impl fmt::Debug for QuorumLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self
            .node_leases()
            .nodes
            .iter()
            .filter(|node_lease| matches!(node_lease, NodeLease::Held(_)))
            .count();
        f.debug_struct("QuorumLease")
            .field("request", &self.request)
            .field("token", &self.token)
            .field("deadline", &self.deadline.get())
            .field("nodes", &held)
            .finish_non_exhaustive()
    }
}
