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
        contract::{Attempt, KeepAlive, Lease, Released},
        request::Request,
    },
    clock::{AtomicDeadline, Deadline},
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    quorum::{
        attempt::Reply,
        backend::QuorumBackend,
        deadline::validity,
        fan_out::FanOut,
        maintenance,
        node::Terms,
        renewal::{Renewed, may_heal, renewal},
        tally::{Standing, Tally, Vote},
    },
};

/// After a grant, the delay before missing nodes are requested again, and the part of the TTL up to
/// which it doubles. After that, renewals request them. A missing node is usually held by an
/// attempt that failed and is being released.
const PAUSES: (Duration, u32) = (Duration::from_millis(2), 8);

pub(super) struct QuorumLease {
    quorum: Arc<QuorumBackend>,
    /// The request as it is sent to the nodes.
    request: Request,
    /// On which it was granted, and nodes are asked again.
    terms: Terms,
    token: Option<FencingToken>,
    deadline: AtomicDeadline,
    seats: Mutex<Seats>,
}

/// The leases of the nodes.
struct Seats {
    nodes: Vec<Seat>,
    /// Set before a release is sent. Leases that arrive later are released.
    releasing: bool,
    /// Whether [`Released::Freed`] has been reported.
    told: bool,
    /// The number of times that nodes were requested again.
    heals: u16,
    /// Whether a task is requesting missing nodes.
    filling: bool,
}

/// Running renewals.
struct Renewals {
    /// The lease that each node was asked to renew.
    leases: Vec<Option<Arc<dyn Lease>>>,
    calls: FanOut<()>,
    votes: Vec<Vote>,
}

enum Seat {
    /// The node holds no lock for this acquisition.
    Empty,
    /// The node was asked, and may grant the lock to this acquisition id.
    Asked(AcquisitionId),
    Held(Arc<dyn Lease>),
    Released(Released),
}

impl QuorumLease {
    pub(super) fn new(
        quorum: &Arc<QuorumBackend>,
        request: Request,
        terms: Terms,
        token: Option<FencingToken>,
        validity: Deadline,
        replies: Vec<Reply>,
    ) -> Arc<Self> {
        let nodes = replies.into_iter().map(|reply| match reply {
            Reply::Granted(lease) => Seat::Held(lease),
            Reply::Pending => Seat::Asked(request.owner()),
            Reply::Refused(_) | Reply::Failed(_) => Seat::Empty,
        });
        Arc::new(Self {
            seats: Mutex::new(Seats {
                nodes: nodes.collect(),
                releasing: false,
                told: false,
                heals: 0,
                filling: false,
            }),
            quorum: Arc::clone(quorum),
            request,
            terms,
            token,
            deadline: AtomicDeadline::new(validity),
        })
    }

    /// Adopts the grants that arrive for `asked` while the lock is held, and releases those that
    /// arrive too late.
    pub(super) fn take_late_grants(
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
                Ok(Attempt::Contended(_)) if asked.is_waiting() => {
                    // The node has registered the waiter, and would keep other waiters waiting for
                    // it.
                    self.quorum.forget_at(&asked, |at| at == node);
                    None
                }
                _ => None,
            };
            if let Some(late) = self.seat(node, granted) {
                self.quorum.give_back(late, &asked);
            }
            // The next renewal requests nodes that are missing after a reacquisition.
            if asked.owner() == self.request.owner() {
                self.fill(timeout);
            }
        });
    }

    /// Stores the answer of a node. Returns a lease that must be released.
    fn seat(&self, node: usize, granted: Option<Arc<dyn Lease>>) -> Option<Arc<dyn Lease>> {
        // Read the clock first: see `AtomicDeadline::get`.
        let now = self.request.now();
        let mut seats = self.seats();
        if seats.releasing || !may_heal(self.deadline.get(), now) {
            return granted;
        }
        seats.nodes[node] = granted.map_or(Seat::Empty, Seat::Held);
        None
    }

    /// Requests missing nodes in the background until all hold the lock or the next renewal is
    /// near. A lock on a bare majority would be lost with any of its nodes.
    pub(super) fn fill(self: &Arc<Self>, timeout: Duration) {
        if !self.is_incomplete() || std::mem::replace(&mut self.seats().filling, true) {
            return;
        }
        let lease = Arc::clone(self);
        // No one waits for the task, not even a close.
        drop(tokio::spawn(async move {
            let (mut pause, last) = (PAUSES.0, lease.request.ttl().as_duration() / PAUSES.1);
            while pause <= last && lease.is_incomplete() {
                tokio::time::sleep(pause).await;
                lease.heal(timeout);
                pause *= 2;
            }
            lease.seats().filling = false;
        }));
    }

    /// Returns whether a node refused or failed, which excludes nodes that have not answered yet.
    pub(super) fn has_empty_seats(&self) -> bool {
        self.seats()
            .nodes
            .iter()
            .any(|seat| matches!(seat, Seat::Empty))
    }

    /// Returns whether a node is missing and may still be requested.
    fn is_incomplete(&self) -> bool {
        let now = self.request.now();
        let seats = self.seats();
        let missing = || {
            seats
                .nodes
                .iter()
                .any(|seat| !matches!(seat, Seat::Held(_)))
        };
        !seats.releasing && missing() && may_heal(self.deadline.get(), now)
    }

    /// Requests the missing nodes again, each time under another acquisition id. A node that did
    /// not answer in time is released until it confirms, which may be long after it was acquired
    /// again.
    fn heal(self: &Arc<Self>, timeout: Duration) {
        let now = self.request.now();
        let mut request = self
            .request
            .clone()
            .with_yield_to_waiters(false)
            .with_order(false)
            .with_waiting(false);
        let mut terms = self.terms;
        if let Some(token) = self.token {
            // The nodes then grant the token of this lease, unless they have seen a larger one.
            terms.token_floor = FencingToken::new(token.get() - 1);
        }
        let mut calls = FanOut::with_capacity(self.quorum.members.len());
        {
            let mut seats = self.seats();
            if seats.releasing
                || !may_heal(self.deadline.get(), now)
                || !seats.nodes.iter().any(|seat| matches!(seat, Seat::Empty))
            {
                return;
            }
            seats.heals = seats.heals.wrapping_add(1);
            request = request.with_owner(self.request.owner().again(seats.heals));
            for ((node, seat), member) in
                seats.nodes.iter_mut().enumerate().zip(&self.quorum.members)
            {
                if matches!(seat, Seat::Empty) && member.may_ask(now) {
                    *seat = Seat::Asked(request.owner());
                    calls.push(node, || member.acquire(request.clone(), terms));
                }
            }
        }
        Arc::clone(self).take_late_grants(request, calls, timeout);
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        // No code panics while the mutex is locked.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the k-th largest of the nodes' current deadlines.
    fn validity(&self) -> Option<Deadline> {
        let seats = self.seats();
        let held = seats.nodes.iter().filter_map(|seat| match seat {
            Seat::Held(lease) => Some(lease.valid_until()),
            _ => None,
        });
        validity(held, self.quorum.majority)
    }

    /// Records that the node lost this lease. A newer lease of the node is left alone.
    fn vacate(&self, node: usize, lost: &Arc<dyn Lease>) {
        let seat = &mut self.seats().nodes[node];
        if matches!(seat, Seat::Held(held) if Arc::ptr_eq(held, lost)) {
            *seat = Seat::Empty;
        }
    }

    /// Starts the renewals, and returns them with each node's vote before it answers.
    fn renewals(&self) -> Result<Renewals> {
        let seats = self.seats();
        if seats.releasing {
            return Err(lost("it was released"));
        }
        let mut calls = FanOut::with_capacity(seats.nodes.len());
        let (mut leases, mut votes) = (
            Vec::with_capacity(seats.nodes.len()),
            Vec::with_capacity(seats.nodes.len()),
        );
        for (node, seat) in seats.nodes.iter().enumerate() {
            votes.push(match seat {
                Seat::Held(lease) => {
                    calls.push(node, || Arc::clone(lease).renew());
                    Vote::Pending
                }
                Seat::Asked(_) => Vote::Failed,
                Seat::Empty | Seat::Released(_) => Vote::Refused,
            });
            leases.push(match seat {
                Seat::Held(lease) => Some(Arc::clone(lease)),
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
        let mut seats = self.seats();
        seats.releasing = true;
        let mut calls = FanOut::with_capacity(seats.nodes.len());
        let votes = seats
            .nodes
            .iter()
            .enumerate()
            .map(|(node, seat)| match seat {
                Seat::Held(lease) => {
                    calls.push(node, || Arc::clone(lease).release());
                    Vote::Pending
                }
                Seat::Asked(owner) => {
                    let request = self.request.clone().with_owner(*owner);
                    if self.quorum.withdraw(node, &request, &mut calls) {
                        Vote::Pending
                    } else {
                        Vote::Failed
                    }
                }
                Seat::Released(Released::Freed) => Vote::Granted,
                Seat::Empty | Seat::Released(_) => Vote::Refused,
            });
        let votes = votes.collect();
        (calls, votes)
    }

    /// Records the answer to a release.
    fn released(self: &Arc<Self>, node: usize, answer: &Result<Released>) -> Vote {
        self.quorum.members[node].learn(answer, self.request.now());
        match answer {
            Ok(released) => {
                self.seats().nodes[node] = Seat::Released(*released);
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
        let seats = self.seats();
        if let Seat::Held(lease) = &seats.nodes[node] {
            self.quorum.give_back(Arc::clone(lease), &self.request);
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
        let mut problem = None;
        let outcome = poll_fn(|cx| {
            calls.poll(cx, |node, answer| {
                votes[node] = self.renewed(node, &leases, &answer);
                problem = answer.err().or(problem.take());
            });
            let outcome = renewal(&Tally::of(majority, votes.iter().copied()));
            if outcome != Renewed::Open {
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
        if self.seats().releasing {
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
                self.heal(timeout);
                Ok(())
            }
            Renewed::Lost => Err(lost(
                "a majority of the nodes no longer lists this client as the holder",
            )),
            Renewed::Open | Renewed::Unchanged => {
                // No other holder can have a majority before the deadline, and the next try may
                // need these nodes.
                self.heal(timeout);
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
            match tally.standing() {
                Standing::Won => return Poll::Ready(Some(Released::Freed)),
                _ if !tally.is_possible() => return Poll::Ready(Some(Released::AlreadyLost)),
                Standing::Open => {}
                Standing::Contended | Standing::OutOfReach => return Poll::Ready(None),
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
                let told = std::mem::replace(&mut self.seats().told, true);
                Ok(if told {
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
                if let Some(lease) = &leases[node] {
                    self.vacate(node, lease);
                    // If only the answer was late, the node holds the lock for another TTL.
                    self.quorum.give_back(Arc::clone(lease), &self.request);
                }
                Vote::Refused
            }
            Err(_) => Vote::Failed,
        }
    }
}

fn lost(message: &'static str) -> Error {
    Error::new(ErrorKind::Lost, message).with_operation("renew")
}

impl fmt::Debug for QuorumLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self
            .seats()
            .nodes
            .iter()
            .filter(|seat| matches!(seat, Seat::Held(_)))
            .count();
        f.debug_struct("QuorumLease")
            .field("request", &self.request)
            .field("token", &self.token)
            .field("deadline", &self.deadline.get())
            .field("nodes", &held)
            .finish_non_exhaustive()
    }
}
