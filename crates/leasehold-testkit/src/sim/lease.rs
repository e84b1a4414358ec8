//! The lease of a lock on a simulated node.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use leasehold_core::{
    Deadline, Error, ErrorKind, FencingToken, Released, Result, Timestamp,
    backend::{AtomicDeadline, KeepAlive, Lease, Request},
};

use super::{link::Link, node_bug::NodeBug};

/// The time-out of a client for the reply of a node.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_millis(200);

pub(super) struct SimLease {
    link: Link,
    request: Request,
    token: FencingToken,
    deadline: AtomicDeadline,
}

impl SimLease {
    pub(super) fn new(
        link: Link,
        request: Request,
        token: FencingToken,
        sent: Timestamp,
    ) -> Arc<Self> {
        Arc::new(Self {
            deadline: AtomicDeadline::new(request.deadline_from(sent)),
            link,
            request,
            token,
        })
    }
}

#[async_trait]
impl Lease for SimLease {
    fn fencing_token(&self) -> Option<FencingToken> {
        Some(self.token)
    }

    fn valid_until(&self) -> Deadline {
        self.deadline.get()
    }

    fn keep_alive(&self) -> KeepAlive {
        KeepAlive::PerLease
    }

    async fn renew(self: Arc<Self>) -> Result<()> {
        let mut sent = self.request.now();
        let asked = self.request.clone();
        let renewed = self
            .link
            .call(REPLY_TIMEOUT, move |handler| {
                handler.memory.renew(&asked, handler.now)
            })
            .await?;
        let now = self.request.now();
        if self.link.node().bug() == Some(NodeBug::DeadlineFromAnswer) {
            sent = now;
        }
        if renewed && self.deadline.advance(self.request.deadline_from(sent), now) {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Lost,
                "the node holds the lock for this client no longer",
            ))
        }
    }

    async fn release(self: Arc<Self>) -> Result<Released> {
        release(&self.link, self.request.clone()).await
    }
}

/// Releases the lock of `request` on the node of `link`.
pub(super) async fn release(link: &Link, request: Request) -> Result<Released> {
    let node = Arc::clone(link.node());
    let freed = link
        .call(REPLY_TIMEOUT, move |handler| {
            let freed = handler.memory.release(&request, handler.now, handler.bug);
            if freed {
                node.freed();
            }
            freed
        })
        .await?;
    Ok(if freed {
        Released::Freed
    } else {
        Released::AlreadyLost
    })
}

impl fmt::Debug for SimLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimLease")
            .field("request", &self.request)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}
