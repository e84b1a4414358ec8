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

/// Between one client and one node.
#[derive(Clone, Debug)]
pub struct Link {
    network: Arc<Network>,
    node: Arc<SimNode>,
    cut: Arc<AtomicBool>,
    proxied: Arc<AtomicBool>,
}

impl Link {
    /// Returns a connection of `network` to `node`.
    pub(super) fn new(network: Arc<Network>, node: Arc<SimNode>) -> Self {
        Self {
            network,
            node,
            cut: Arc::new(AtomicBool::new(false)),
            proxied: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Cuts the link, or mends it: while it is cut, no message arrives in either direction, and
    /// nobody is told.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Release);
    }

    /// Puts a proxy in between, which keeps the client's connection while the node restarts, or
    /// takes it away.
    pub fn set_proxied(&self, proxied: bool) {
        self.proxied.store(proxied, Ordering::Release);
    }

    /// Names the connection: another one after the node has restarted, unless a proxy hides that.
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

    /// The node at its end.
    #[must_use]
    pub fn node(&self) -> &Arc<SimNode> {
        &self.node
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// Sends a message at the first poll and waits for the answer, for as long as `timeout`.
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
        // The second copy's answer goes to nobody.
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
                // A message that is lost breaks no connection: the time-out has to notice.
                Err(Error::new(
                    ErrorKind::Indeterminate,
                    format!("no answer within {timeout:?}"),
                ))
            }
        }
    }

    /// The answer that comes back: `Some(None)` if the connection broke, `None` if nothing comes.
    async fn deliver<T>(
        &self,
        run: u64,
        answer: &(impl Fn(&mut NodeHandler<'_>) -> T + Sync),
    ) -> Option<Option<T>> {
        let (there, back) = (self.network.travel(), self.network.travel());
        // Held open, so that the asker waits for its time-out and is not told of the loss.
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
        // Longer than any time-out.
        tokio::time::sleep(Duration::from_secs(60)).await;
        None
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }
}
