//! [`Network`]: how messages travel.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use leasehold_core::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::{
    client::SimBackend,
    node::{NodeHandler, SimNode},
};

/// What becomes of messages.
#[derive(Clone, Debug)]
pub struct NetworkConditions {
    /// How long a message takes.
    pub delay: Range<Duration>,
    /// How many of 1000 take up to this long instead.
    pub late_permille: u32,
    /// See there.
    pub late: Duration,
    /// How many of 1000 are lost, each way.
    pub lost_permille: u32,
    /// How many of 1000 requests arrive a second time, later.
    pub twice_permille: u32,
}

impl NetworkConditions {
    /// Half a millisecond to two, and nothing is lost.
    pub const FAIR: Self = Self {
        delay: Duration::from_micros(500)..Duration::from_millis(2),
        late_permille: 0,
        late: Duration::ZERO,
        lost_permille: 0,
        twice_permille: 0,
    };
}

/// All links of a simulation, and its dice.
#[derive(Debug)]
pub struct Network {
    dice: Mutex<fastrand::Rng>,
    conditions: Mutex<NetworkConditions>,
}

impl Network {
    /// A network in [fair](NetworkConditions::FAIR) conditions whose dice repeat with the seed.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            dice: Mutex::new(fastrand::Rng::with_seed(seed)),
            conditions: Mutex::new(NetworkConditions::FAIR),
        })
    }

    /// Changes the conditions, for messages that are sent from now on.
    pub fn set_weather(&self, conditions: NetworkConditions) {
        *self.conditions() = conditions;
    }

    /// A client's connection to a node.
    #[must_use]
    pub fn connect(self: &Arc<Self>, node: &Arc<SimNode>) -> Arc<SimBackend> {
        SimBackend::new(Link {
            network: Arc::clone(self),
            node: Arc::clone(node),
            cut: Arc::new(AtomicBool::new(false)),
            kept: Arc::new(AtomicBool::new(false)),
        })
    }

    /// When a message arrives; `None`: never.
    fn travel(&self) -> Option<Duration> {
        let NetworkConditions {
            delay,
            late_permille,
            late,
            lost_permille,
            ..
        } = self.conditions().clone();
        let mut dice = self.dice();
        if dice.u32(..1000) < lost_permille {
            return None;
        }
        let range = if dice.u32(..1000) < late_permille {
            delay.start..late.max(delay.end)
        } else {
            delay
        };
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Some(Duration::from_micros(dice.u64(
            micros(range.start)..micros(range.end).max(micros(range.start) + 1),
        )))
    }

    fn arrives_twice(&self) -> bool {
        let permille = self.conditions().twice_permille;
        permille > 0 && self.dice().u32(..1000) < permille
    }

    pub(super) fn draw(&self) -> u64 {
        self.dice().u64(..)
    }

    pub(super) fn delay(&self) -> Option<Duration> {
        self.travel()
    }

    fn dice(&self) -> MutexGuard<'_, fastrand::Rng> {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn conditions(&self) -> MutexGuard<'_, NetworkConditions> {
        self.conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between one client and one node.
#[derive(Clone, Debug)]
pub struct Link {
    network: Arc<Network>,
    node: Arc<SimNode>,
    cut: Arc<AtomicBool>,
    kept: Arc<AtomicBool>,
}

impl Link {
    /// Cuts the link, or mends it: while it is cut, no message arrives in either direction, and
    /// nobody is told.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Release);
    }

    /// Puts a proxy in between, which keeps the client's connection while the node restarts, or
    /// takes it away.
    pub fn set_kept(&self, kept: bool) {
        self.kept.store(kept, Ordering::Release);
    }

    /// Names the connection: another one after the node has restarted, unless a proxy hides that.
    pub(super) fn connection(&self) -> Option<u64> {
        if self.is_kept() {
            Some(0)
        } else {
            self.node.run()
        }
    }

    fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Acquire)
    }

    /// The node at its end.
    #[must_use]
    pub fn node(&self) -> &Arc<SimNode> {
        &self.node
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// Sends a message at the first poll and waits for the answer, for as long as `patience`.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        patience: Duration,
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
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(Error::new(ErrorKind::Indeterminate, "connection reset")),
            Ok(Err(_)) | Err(_) => {
                // A message that is lost breaks no connection: the time-out has to notice.
                Err(Error::new(
                    ErrorKind::Indeterminate,
                    format!("no answer within {patience:?}"),
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
        let run = if self.is_kept() {
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
