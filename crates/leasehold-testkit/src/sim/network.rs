//! [`Network`]: the delay and loss of messages.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The delays and losses of messages in a [`Network`].
///
/// ```
/// use leasehold_testkit::sim::{Network, NetworkConditions};
///
/// let network = Network::new(42);
/// network.set_conditions(NetworkConditions {
///     lost_permille: 30,
///     ..NetworkConditions::FAIR
/// });
/// ```
#[derive(Clone, Debug)]
pub struct NetworkConditions {
    /// The delay of a message.
    pub delay: Range<Duration>,
    /// The share of messages that have a delay of up to [`late`](Self::late), per 1000.
    pub late_permille: u32,
    /// The longest delay of a late message.
    pub late: Duration,
    /// The share of messages that are lost in each direction, per 1000.
    pub lost_permille: u32,
    /// The share of requests that arrive a second time, per 1000.
    pub twice_permille: u32,
}

impl NetworkConditions {
    /// Delays of 0.5 ms to 2 ms and no losses.
    pub const FAIR: Self = Self {
        delay: Duration::from_micros(500)..Duration::from_millis(2),
        late_permille: 0,
        late: Duration::ZERO,
        lost_permille: 0,
        twice_permille: 0,
    };
}

/// The network of a simulation, with the random numbers of its seed.
///
/// ```
/// use leasehold_core::LockClient;
/// use leasehold_testkit::sim::{Network, NetworkConditions, SimClock, SimNode};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let network = Network::new(42);
/// let client = LockClient::new(network.connect(&SimNode::new(SimClock::new())));
/// network.set_conditions(NetworkConditions { lost_permille: 1000, ..NetworkConditions::FAIR });
/// assert!(client.inspect("item/42").await.is_err());
/// # }
/// ```
#[derive(Debug)]
pub struct Network {
    rng: Mutex<fastrand::Rng>,
    conditions: Mutex<NetworkConditions>,
}

impl Network {
    /// Creates a network in [fair](NetworkConditions::FAIR) conditions. The same seed gives the
    /// same delays and losses.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
            conditions: Mutex::new(NetworkConditions::FAIR),
        })
    }

    /// Sets the conditions for messages that are sent from now on.
    pub fn set_conditions(&self, conditions: NetworkConditions) {
        *self.conditions() = conditions;
    }

    /// Returns the delay of one message, or `None` if it is lost.
    pub(super) fn travel(&self) -> Option<Duration> {
        let NetworkConditions {
            delay,
            late_permille,
            late,
            lost_permille,
            ..
        } = self.conditions().clone();
        let mut rng = self.rng();
        if rng.u32(..1000) < lost_permille {
            return None;
        }
        let range = if rng.u32(..1000) < late_permille {
            delay.start..late.max(delay.end)
        } else {
            delay
        };
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Some(Duration::from_micros(rng.u64(
            micros(range.start)..micros(range.end).max(micros(range.start) + 1),
        )))
    }

    pub(super) fn arrives_twice(&self) -> bool {
        let permille = self.conditions().twice_permille;
        permille > 0 && self.rng().u32(..1000) < permille
    }

    pub(super) fn draw(&self) -> u64 {
        self.rng().u64(..)
    }

    fn rng(&self) -> MutexGuard<'_, fastrand::Rng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn conditions(&self) -> MutexGuard<'_, NetworkConditions> {
        self.conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
