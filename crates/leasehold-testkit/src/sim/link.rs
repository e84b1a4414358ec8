//! [`Link`]: the connection between one client and one node.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use leasehold_core::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::{
    network::Network,
    node::{NodeHandler, SimNode},
};

/// The connection between one client and one node.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use leasehold_core::{ErrorKind, LockClient};
/// use leasehold_testkit::sim::{Network, SimClock, SimNode};
///
/// let backend = Network::new(42).connect(&SimNode::new(SimClock::new()));
/// backend.link().cut(true);
/// let error = LockClient::new(backend).inspect("item/42").await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Indeterminate);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Link {
    network: Arc<Network>,
    node: Arc<SimNode>,
    cut: Arc<AtomicBool>,
    proxied: Arc<AtomicBool>,
}

impl Link {
    /// Creates a connection of `network` to `node`.
    pub(super) fn new(network: Arc<Network>, node: Arc<SimNode>) -> Self {
        Self {
            network,
            node,
            cut: Arc::new(AtomicBool::new(false)),
            proxied: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Cuts or restores the link. While it is cut, messages in both directions are lost, and
    /// neither side is notified.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Release);
    }

    /// Adds or removes a proxy between client and node. A proxy keeps the client's connection open
    /// while the node restarts.
    pub fn set_proxied(&self, proxied: bool) {
        self.proxied.store(proxied, Ordering::Release);
    }

    /// Returns an id of the connection, or `None` while the node is down. The id changes when the
    /// node restarts, unless a proxy hides the restart.
    pub(super) fn connection(&self) -> Option<u64> {
        if self.is_proxied() {
            Some(0)
        } else {
            self.node.run()
        }
    }

    fn is_proxied(&self) -> bool {
        self.proxied.load(Ordering::Acquire)
    }

    /// Returns the node that the link leads to.
    #[must_use]
    pub fn node(&self) -> &Arc<SimNode> {
        &self.node
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// Sends a request at the first poll and waits for the reply until `timeout` has passed.
    /// `answer` computes the reply on the node.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        timeout: Duration,
        answer: impl Fn(&mut NodeHandler<'_>) -> T + Send + Sync + 'static,
    ) -> Result<T> {
        let Some(run) = self.node.run() else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Err(Error::new(ErrorKind::Unavailable, "connection refused"));
        };
        let (reply, answered) = oneshot::channel();
        let (mut reply, answer) = (Some(reply), Arc::new(answer));
        // The reply to a duplicate is discarded.
        for _ in 0..=usize::from(self.network.arrives_twice()) {
            let (link, answer, reply) = (self.clone(), Arc::clone(&answer), reply.take());
            drop(tokio::spawn(async move {
                let answer = link.deliver(run, &*answer).await;
                if let (Some(answer), Some(reply)) = (answer, reply) {
                    drop(reply.send(answer));
                }
            }));
        }
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(Error::new(ErrorKind::Indeterminate, "connection reset")),
            Ok(Err(_)) | Err(_) => {
                // The loss of a message does not break the connection, so the client runs into its
                // time-out.
                Err(Error::new(
                    ErrorKind::Indeterminate,
                    format!("no answer within {timeout:?}"),
                ))
            }
        }
    }

    /// Delivers a request and returns its reply: `Some(None)` if the connection broke, `None` if no
    /// reply arrives.
    async fn deliver<T>(
        &self,
        run: u64,
        answer: &(impl Fn(&mut NodeHandler<'_>) -> T + Sync),
    ) -> Option<Option<T>> {
        let (there, back) = (self.network.travel(), self.network.travel());
        // The channel of the reply stays open, so that the client waits for its time-out.
        let (Some(there), false) = (there, self.is_cut()) else {
            return self.silence().await;
        };
        tokio::time::sleep(there).await;
        self.node.awake().await;
        let run = if self.is_proxied() {
            self.node.run()
        } else {
            Some(run)
        };
        let answered = run.and_then(|run| self.node.answer(run, answer));
        let (Some(back), false) = (back, self.is_cut()) else {
            return self.silence().await;
        };
        tokio::time::sleep(back).await;
        if self.is_cut() {
            return self.silence().await;
        }
        Some(answered)
    }

    async fn silence<T>(&self) -> Option<T> {
        // This is longer than any time-out.
        tokio::time::sleep(Duration::from_secs(60)).await;
        None
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }
}
