//! [`Network`]: how messages travel.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
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

/// All links of a simulation, and its rng.
#[derive(Debug)]
pub struct Network {
    rng: Mutex<fastrand::Rng>,
    conditions: Mutex<NetworkConditions>,
}

impl Network {
    /// A network in [fair](NetworkConditions::FAIR) conditions whose rng repeat with the seed.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
            conditions: Mutex::new(NetworkConditions::FAIR),
        })
    }

    /// Changes the conditions, for messages that are sent from now on.
    pub fn set_conditions(&self, conditions: NetworkConditions) {
        *self.conditions() = conditions;
    }

    /// When a message arrives; `None`: never.
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
