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
    backend::{Attempt, BoxFuture, LockBackend},
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    inspection::NodeStatus,
    panics::contain,
    quorum::{
        discovery::{PATIENCE, within},
        health::Health,
        node::{QuorumNode, Recollection, Terms, TokenVote},
        watch::Watch,
    },
    request::Request,
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
    /// `None`: it cannot vote on tokens.
    pub(super) voter: Option<Arc<dyn QuorumNode>>,
    pub(super) health: Health,
    watch: Watch,
    /// It is one server with a member before it, so that its votes must not count.
    is_double: AtomicBool,
    /// It has said which server it is, so that it can be told from the other members. Until then it
    /// has no vote.
    is_known: AtomicBool,
    /// It cannot rejoin, and that was said.
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
            is_double: AtomicBool::new(false),
            warned: AtomicBool::new(false),
        }
    }

    /// Asks the node what it remembers, and watches it. `None` for one that does not vote on
    /// tokens.
    pub(super) async fn recall(&self) -> Option<Result<Recollection>> {
        let voter = self.voter.as_ref()?;
        let sent = tokio::time::Instant::now();
        let answer = within(PATIENCE, Arc::clone(voter).recall(self.watch.so_far())).await;
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

    /// Whether it is the same server as a member before it, so that its votes must not count.
    pub(super) fn is_double(&self) -> bool {
        self.is_double.load(Ordering::Acquire)
    }

    /// Whether its votes count: it is known not to be the same server as another member.
    pub(super) fn counts(&self) -> bool {
        self.is_known.load(Ordering::Acquire) && !self.is_double()
    }

    /// Notes that it has said which server it is, and whether that is the same as this other
    /// member.
    pub(super) fn set_double(&self, other: Option<&Self>) {
        if !self.is_double.swap(other.is_some(), Ordering::AcqRel)
            && let Some(other) = other
        {
            tracing::error!(
                target: "leasehold",
                node = %self.endpoint,
                other = %other.endpoint,
                "two nodes of the quorum are one and the same server; the second does not count"
            );
        }
        self.is_known.store(true, Ordering::Release);
    }

    /// Whether it is time to say that the node cannot rejoin: once, until it has.
    pub(super) fn is_to_warn(&self) -> bool {
        !self.warned.swap(true, Ordering::AcqRel)
    }

    /// The node votes.
    pub(super) fn votes_again(&self) {
        self.warned.store(false, Ordering::Release);
    }

    /// Whether to ask it for the lock now; see [`Health::may_ask`].
    pub(super) fn may_ask(&self, now: Timestamp) -> bool {
        self.counts() && self.health.may_ask(now)
    }

    pub(super) fn acquire(
        &self,
        request: Request,
        terms: Terms,
    ) -> BoxFuture<'static, Result<Attempt>> {
        match &self.voter {
            Some(voter) => Arc::clone(voter).request_vote(request, terms),
            None => Arc::clone(&self.backend).try_acquire(request),
        }
    }

    /// Asks a node that granted to raise its token.
    pub(super) fn raise(
        &self,
        request: Request,
        terms: Terms,
        token: FencingToken,
    ) -> BoxFuture<'static, Result<TokenVote>> {
        match &self.voter {
            Some(voter) => Arc::clone(voter).raise_token(request, terms, token),
            // A quorum with such a member has no tokens.
            None => Box::pin(ready(Err(Error::new(
                ErrorKind::Unsupported,
                "it cannot vote on fencing tokens",
            )))),
        }
    }

    /// The node cannot be used when the quorum is opened. It is asked again soon, and may be cured
    /// by then.
    pub(super) fn unusable(&self, error: &Error) {
        telemetry::node_failed(&self.endpoint, error);
        self.health
            .failed(Timestamp::default(), error.message().to_owned());
        contain(|| {
            tracing::error!(
                target: "leasehold",
                node = %self.endpoint,
                %error,
                "a node of the quorum cannot be used, so that fewer others may fail; it takes part as soon as that is cured"
            );
        });
    }

    /// Learns from an answer whether the node is well. A refusal and a typed error are answers too.
    pub(super) fn learn<T>(&self, answer: &Result<T>, now: Timestamp) {
        match answer {
            Err(error) if is_trouble(error.kind()) => {
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
                        || tracing::info!(target: "leasehold", node = %self.endpoint, "a node of the quorum is back"),
                    );
                }
            }
        }
    }

    /// The node is silent.
    pub(super) fn late(&self, timeout: std::time::Duration) {
        if self.health.late(|| format!("no answer within {timeout:?}")) {
            telemetry::node_fell_silent(&self.endpoint);
            let warn = || tracing::warn!(target: "leasehold", node = %self.endpoint, ?timeout, "a node of the quorum is silent");
            contain(warn);
        }
    }

    /// The error of a node that is not asked, because it did not answer others.
    pub(super) fn skipped(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            self.problem()
                .unwrap_or_else(|| String::from("it was silent a moment ago")),
        )
    }

    pub(super) fn status(&self) -> NodeStatus {
        NodeStatus::new(&*self.endpoint, self.problem())
    }

    fn problem(&self) -> Option<String> {
        if self.is_double() {
            return Some(String::from(
                "it is the same server as another node of the quorum",
            ));
        }
        self.health.problem()
    }
}

/// Whether this failure may soon be over, and is of the node and not of the request.
pub(crate) fn is_trouble(kind: ErrorKind) -> bool {
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
