//! [`QuorumMember`]: what a quorum is made of; and one node as the quorum sees it.

use std::{
    fmt,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    backend::{
        attempt::Attempt, contract::LockBackend, inspection::NodeStatus, lease::BoxFuture,
        request::Request,
    },
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    panics::contain,
    quorum::{
        health::Health,
        node::{NodeState, QuorumNode, TokenVote, VoteRequirements},
        timeout::{STATE_TIMEOUT, within},
        watch::Watch,
    },
    telemetry,
};

/// One of the backends that a quorum is made of.
///
/// ```
/// use std::sync::Arc;
/// use leasehold_core::quorum::QuorumMember;
/// use leasehold_local::{FileBackend, MemoryBackend};
///
/// # fn main() -> leasehold_core::Result<()> {
/// let voting = QuorumMember::Voting(Arc::new(MemoryBackend::new()));
/// # let folder = std::env::temp_dir().join("leasehold-member");
/// let plain = QuorumMember::Plain(Arc::new(FileBackend::open(folder)?));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub enum QuorumMember {
    /// A node that votes on fencing tokens.
    Voting(Arc<dyn QuorumNode>),
    /// A backend whose locks count. A quorum with such a member has no fencing tokens.
    Plain(Arc<dyn LockBackend>),
}

pub(super) struct Member {
    pub(super) endpoint: Arc<str>,
    pub(super) backend: Arc<dyn LockBackend>,
    /// `None` if the node cannot vote on tokens.
    pub(super) voter: Option<Arc<dyn QuorumNode>>,
    pub(super) health: Health,
    watch: Watch,
    /// Whether the node is the same server as an earlier member, so that its votes must not count.
    is_duplicate: AtomicBool,
    /// Whether the node has reported which server it is, so that duplicates can be detected. Until
    /// then its votes do not count.
    is_known: AtomicBool,
    /// Whether a warning was logged that the node cannot be readmitted.
    warned: AtomicBool,
}

impl Member {
    pub(super) fn new(member: QuorumMember) -> Self {
        let (backend, voter) = match member {
            QuorumMember::Voting(node) => (Arc::clone(&node) as Arc<dyn LockBackend>, Some(node)),
            QuorumMember::Plain(backend) => (backend, None),
        };
        Self {
            endpoint: backend.to_string().into(),
            is_known: AtomicBool::new(voter.is_none()),
            voter,
            backend,
            health: Health::default(),
            watch: Watch::default(),
            is_duplicate: AtomicBool::new(false),
            warned: AtomicBool::new(false),
        }
    }

    /// Reads the state of the node, and adds to the time of watching. Returns `None` for a node
    /// that cannot vote on tokens.
    pub(super) async fn read_state(&self) -> Option<Result<NodeState>> {
        let voter = self.voter.as_ref()?;
        let sent = tokio::time::Instant::now();
        let answer = within(
            STATE_TIMEOUT,
            Arc::clone(voter).read_state(self.watch.so_far()),
        )
        .await;
        if let Ok(node) = &answer
            && let Some(ahead) = self.watch.seen(node, sent)
        {
            tracing::warn!(
                target: "leasehold",
                node = %self.endpoint,
                ?ahead,
                "the wall clock of a node was set ahead, which ends locks at that node early"
            );
        }
        Some(answer)
    }

    /// Returns whether the node is the same server as an earlier member.
    pub(super) fn is_duplicate(&self) -> bool {
        self.is_duplicate.load(Ordering::Acquire)
    }

    /// Returns whether the node's votes count: it is known not to be the same server as another
    /// member.
    pub(super) fn counts(&self) -> bool {
        self.is_known.load(Ordering::Acquire) && !self.is_duplicate()
    }

    /// Records that the node has reported which server it is, and whether another member is the
    /// same server.
    pub(super) fn set_duplicate(&self, other: Option<&Self>) {
        if !self.is_duplicate.swap(other.is_some(), Ordering::AcqRel)
            && let Some(other) = other
        {
            tracing::error!(
                target: "leasehold",
                node = %self.endpoint,
                other = %other.endpoint,
                "two nodes of the quorum are the same server; the votes of the second do not count"
            );
        }
        self.is_known.store(true, Ordering::Release);
    }

    /// Returns whether to warn that the node cannot be readmitted. This is `true` once until it
    /// votes.
    pub(super) fn should_warn(&self) -> bool {
        !self.warned.swap(true, Ordering::AcqRel)
    }

    /// Records that the node votes.
    pub(super) fn votes_again(&self) {
        self.warned.store(false, Ordering::Release);
    }

    /// Returns whether to request the lock from the node now; see [`Health::may_ask`].
    pub(super) fn may_ask(&self, now: Timestamp) -> bool {
        self.counts() && self.health.may_ask(now)
    }

    pub(super) fn acquire(
        &self,
        request: Request,
        requirements: VoteRequirements,
    ) -> BoxFuture<'static, Result<Attempt>> {
        match &self.voter {
            Some(voter) => Arc::clone(voter).request_vote(request, requirements),
            None => Arc::clone(&self.backend).try_acquire(request),
        }
    }

    /// Asks a node that granted to raise its token.
    pub(super) fn raise(
        &self,
        request: Request,
        requirements: VoteRequirements,
        token: FencingToken,
    ) -> BoxFuture<'static, Result<TokenVote>> {
        match &self.voter {
            Some(voter) => Arc::clone(voter).raise_token(request, requirements, token),
            // A quorum with such a member has no tokens.
            None => Box::pin(ready(Err(Error::new(
                ErrorKind::Unsupported,
                "the node cannot vote on fencing tokens",
            )))),
        }
    }

    /// Records that the node cannot be used when the quorum is opened. It is tried again soon, and
    /// may have recovered by then.
    pub(super) fn unusable(&self, error: &Error) {
        telemetry::node_failed(&self.endpoint, error);
        self.health
            .failed(Timestamp::default(), error.message().to_owned());
        contain(|| {
            tracing::error!(
                target: "leasehold",
                node = %self.endpoint,
                %error,
                "a node of the quorum cannot be used, so that fewer other nodes may fail; it is used as soon as it recovers"
            );
        });
    }

    /// Updates the node's health by an answer. A refusal and most errors are answers of a healthy
    /// node.
    pub(super) fn learn<T>(&self, answer: &Result<T>, now: Timestamp) {
        match answer {
            Err(error) if is_node_failure(error.kind()) => {
                telemetry::node_failed(&self.endpoint, error);
                if self.health.failed(now, error.message().to_owned()) {
                    let warn = || tracing::warn!(target: "leasehold", node = %self.endpoint, %error, "a node of the quorum fails");
                    contain(warn);
                }
            }
            _ => {
                telemetry::node_answered(&self.endpoint);
                if self.health.answered() {
                    contain(
                        || tracing::info!(target: "leasehold", node = %self.endpoint, "a node of the quorum answers again"),
                    );
                }
            }
        }
    }

    /// Records that the node is late.
    pub(super) fn late(&self, timeout: std::time::Duration) {
        if self.health.late(|| format!("no answer within {timeout:?}")) {
            telemetry::node_timed_out(&self.endpoint);
            let warn = || tracing::warn!(target: "leasehold", node = %self.endpoint, ?timeout, "a node of the quorum does not answer");
            contain(warn);
        }
    }

    /// Returns the error of a node that is skipped because it did not answer other requests.
    pub(super) fn skipped(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            self.problem()
                .unwrap_or_else(|| String::from("the node did not answer an earlier request")),
        )
    }

    pub(super) fn status(&self) -> NodeStatus {
        NodeStatus::new(&*self.endpoint, self.problem())
    }

    fn problem(&self) -> Option<String> {
        if self.is_duplicate() {
            return Some(String::from(
                "it is the same server as another node of the quorum",
            ));
        }
        self.health.problem()
    }
}

/// Returns whether an error of this kind is a failure of the node and not of the request.
pub(crate) fn is_node_failure(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Unavailable | ErrorKind::Indeterminate | ErrorKind::Denied
    )
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("endpoint", &self.endpoint)
            .field("voter", &self.voter.is_some())
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}
