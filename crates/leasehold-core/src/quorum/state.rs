//! [`QuorumState`]: the nodes of a quorum, and what its attempts, its leases and its maintenance
//! share.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};
use tokio_util::task::TaskTracker;

use crate::{
    backend::{
        attempt::Attempt,
        lease::{Lease, Released},
        request::Request,
    },
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    quorum::{
        config::QuorumConfig, discovery, fan_out::FanOut, member::Member, min_token::Floor,
        node::VoteRequirements, release::release_until_over, reply::Reply, tally::Majority,
    },
    ttl::Ttl,
};

/// Nodes that failed, with their errors.
pub(super) type Problems = Vec<(usize, Error)>;

/// Returns the error of a node that has not answered for this time.
pub(super) fn no_answer(silent_for: Duration) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("no answer within {silent_for:?}"),
    )
}

/// The state of a quorum. It lives as long as the backend or a lease.
pub(super) struct QuorumState {
    pub(super) members: Vec<Member>,
    pub(super) majority: Majority,
    pub(super) config: QuorumConfig,
    pub(super) floor: Floor,
    /// Whether every member can vote on tokens.
    pub(super) has_tokens: bool,
    /// Whether only nodes with a current epoch record may grant. Once set, it stays set.
    pub(super) attested: AtomicBool,
    pub(super) largest_ttl: AtomicU64,
    pub(super) opened: Instant,
    /// The time of the next maintenance, in nanoseconds since the backend was opened.
    pub(super) next_look: AtomicU64,
    /// The task that maintains the nodes.
    pub(super) maintenance_task: OnceLock<AbortHandle>,
    pub(super) background: TaskTracker,
}

impl QuorumState {
    /// Returns the requirements on which nodes are asked now.
    pub(super) fn requirements(&self) -> VoteRequirements {
        VoteRequirements {
            epoch_required: self.epoch_required.load(Ordering::Acquire),
            largest_ttl: self.largest_ttl().as_duration(),
            token_floor: if self.has_tokens {
                self.floor.next()
            } else {
                FencingToken::new(0)
            },
        }
    }

    pub(super) fn largest_ttl(&self) -> Ttl {
        Ttl::from_millis(self.largest_ttl.load(Ordering::Acquire))
            .unwrap_or(self.config.largest_ttl)
    }

    /// Requires current epoch records from now on, because some nodes have one.
    pub(super) fn require_epoch(&self, largest_ttl: Option<Ttl>) {
        if let Some(ttl) = largest_ttl {
            self.largest_ttl.store(ttl.as_millis(), Ordering::Release);
        }
        self.epoch_required
            .store(self.has_tokens, Ordering::Release);
    }

    /// Rejects a TTL above the grace period: a node that lost such a lock could grant it again.
    pub(super) fn check_ttl(&self, ttl: Ttl) -> Result<()> {
        let largest = self.largest_ttl();
        if ttl <= largest {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "a TTL of {ttl} is longer than the limit of {largest} for which the nodes were provisioned; use a shorter one, \
                 or provision the nodes for it"
            ),
        )
        .with_backend(self.config.scheme))
    }

    /// Turns a node's answer into a reply.
    pub(super) fn reply(
        self: &Arc<Self>,
        node: usize,
        answer: Result<Attempt>,
        request: &Request,
    ) -> Reply {
        self.members[node].learn(&answer, request.now());
        match answer {
            Ok(Attempt::Granted(lease)) if self.has_tokens && lease.fencing_token().is_none() => {
                self.give_back(lease, request);
                Reply::Failed(Error::new(
                    ErrorKind::UnexpectedResponse,
                    "the node granted the lock without a token",
                ))
            }
            Ok(Attempt::Granted(lease)) => Reply::Granted(lease),
            Ok(Attempt::Contended(contention)) => Reply::Refused(contention),
            Err(error) => Reply::Failed(error),
        }
    }

    /// Adds the withdrawal of a request that was not answered. Returns `false` if the node cannot
    /// withdraw.
    pub(super) fn withdraw(
        &self,
        node: usize,
        request: &Request,
        calls: &mut FanOut<Released>,
    ) -> bool {
        let Some(voter) = &self.members[node].voter else {
            return false;
        };
        calls.push(node, || Arc::clone(voter).withdraw(request.clone()));
        true
    }

    /// Returns the nodes that failed, and those that have not answered for `silent_for`.
    pub(super) fn problems(&self, replies: &[Reply], silent_for: Option<Duration>) -> Problems {
        let problem = |(node, reply): (usize, &Reply)| match reply {
            Reply::Failed(error) => Some((node, error.clone())),
            Reply::Pending => silent_for.map(|silent| (node, no_answer(silent))),
            _ => None,
        };
        replies.iter().enumerate().filter_map(problem).collect()
    }

    /// Returns an error such as `3 of 5 unavailable: …`.
    pub(super) fn unavailable(&self, problems: &Problems) -> Error {
        discovery::unavailable(&self.members, problems, self.config.scheme)
    }

    /// Drives calls to completion in the background.
    pub(super) fn finish<T: Send + 'static>(
        &self,
        mut calls: FanOut<T>,
        mut ended: impl FnMut((usize, Result<T>)) + Send + 'static,
    ) {
        if !calls.is_empty() {
            self.spawn(async move {
                std::future::poll_fn(|cx| {
                    calls.poll(cx, |node, outcome| ended((node, outcome)));
                    if calls.is_empty() {
                        std::task::Poll::Ready(())
                    } else {
                        std::task::Poll::Pending
                    }
                })
                .await;
            });
        }
    }

    /// Drives calls to completion in the background, as [`finish`](Self::finish) does, and records
    /// nodes that are late. `ended` must record every answer.
    pub(super) fn finish_within<T: Send + 'static>(
        self: &Arc<Self>,
        mut calls: FanOut<T>,
        timeout: Duration,
        mut ended: impl FnMut((usize, Result<T>)) + Send + 'static,
    ) {
        if calls.is_empty() {
            return;
        }
        let this = Arc::clone(self);
        self.spawn(async move {
            let mut timer = std::pin::pin!(tokio::time::sleep(timeout));
            let mut over = false;
            std::future::poll_fn(|cx| {
                calls.poll(cx, |node, outcome| ended((node, outcome)));
                if calls.is_empty() {
                    return std::task::Poll::Ready(());
                }
                if !over && timer.as_mut().poll(cx).is_ready() {
                    over = true;
                    for node in calls.nodes() {
                        this.members[node].late(timeout);
                    }
                }
                std::task::Poll::Pending
            })
            .await;
        });
    }

    /// Releases a lease in the background until that succeeds or the lease expires.
    pub(super) fn give_back(&self, lease: Arc<dyn Lease>, request: &Request) {
        self.spawn(release_until_over(lease, request.clone()));
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.background.spawn(work));
    }
    /// Removes the registration of a waiter on these nodes.
    pub(super) fn forget_at(&self, request: &Request, at: impl Fn(usize) -> bool) {
        let mut withdrawals = FanOut::with_capacity(self.members.len());
        for (node, member) in self.members.iter().enumerate() {
            if let Some(voter) = member.voter.as_ref().filter(|_| at(node)) {
                withdrawals.push(node, || Arc::clone(voter).stop_waiting(request.clone()));
            }
        }
        withdrawals.send(|_, _| ());
        self.finish(withdrawals, |_| ());
    }

    pub(super) fn stop_maintenance(&self) {
        if let Some(maintenance_task) = self.maintenance_task.get() {
            maintenance_task.abort();
        }
    }
}

impl Drop for QuorumState {
    fn drop(&mut self) {
        self.stop_maintenance();
    }
}
