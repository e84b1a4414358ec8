//! [`Member`]: one node as the quorum sees it.

use std::{fmt, sync::Arc};

use crate::{
    backend::{Attempt, BoxFuture, LockBackend},
    clock::Moment,
    error::{Error, ErrorKind, Result},
    inspection::NodeStatus,
    quorum::{health::Health, node::QuorumNode},
    request::Request,
    telemetry,
};

pub(super) struct Member {
    pub(super) endpoint: Arc<str>,
    pub(super) backend: Arc<dyn LockBackend>,
    /// `None`: it cannot vote on tokens.
    pub(super) voter: Option<Arc<dyn QuorumNode>>,
    pub(super) health: Health,
}

impl Member {
    pub(super) fn new(backend: Arc<dyn LockBackend>) -> Self {
        Self {
            endpoint: backend.to_string().into(),
            voter: Arc::clone(&backend).quorum_node(),
            backend,
            health: Health::default(),
        }
    }

    pub(super) fn acquire(&self, request: Request) -> BoxFuture<'static, Result<Attempt>> {
        Arc::clone(&self.backend).try_acquire(request)
    }

    /// Learns from an answer whether the node is well. A refusal and a typed error are answers too.
    pub(super) fn learn<T>(&self, answer: &Result<T>, now: Moment) {
        match answer {
            Err(error) if is_trouble(error.kind()) => {
                telemetry::node_failed(&self.endpoint, error);
                if self.health.failed(now, error.message().to_owned()) {
                    tracing::warn!(target: "leasehold", node = %self.endpoint, %error, "a node of the quorum fails");
                }
            }
            _ => {
                telemetry::node_answered(&self.endpoint);
                if self.health.answered() {
                    tracing::info!(target: "leasehold", node = %self.endpoint, "a node of the quorum is back");
                }
            }
        }
    }

    /// The node is silent.
    pub(super) fn late(&self, timeout: std::time::Duration) {
        if self.health.late(|| format!("no answer within {timeout:?}")) {
            telemetry::node_fell_silent(&self.endpoint);
            tracing::warn!(target: "leasehold", node = %self.endpoint, ?timeout, "a node of the quorum is silent");
        }
    }

    /// The error of a node that is not asked, because it did not answer others.
    pub(super) fn skipped(&self) -> Error {
        let problem = self.health.problem().unwrap_or_else(|| String::from("it was silent a moment ago"));
        Error::new(ErrorKind::Unavailable, problem)
    }

    pub(super) fn status(&self) -> NodeStatus {
        NodeStatus::new(&*self.endpoint, self.health.problem())
    }
}

/// Whether this failure may soon be over, and is of the node and not of the request.
fn is_trouble(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Indeterminate | ErrorKind::TimedOut | ErrorKind::Denied)
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
