//! The subjects of the benchmark.
//!
//! Each one implements [`Source`]. [`Subject`] erases the types once per measurement and not per
//! call, so that no subject pays for the benchmark's own indirection.

mod erased;
mod leasehold;

use std::{future::Future, time::Duration};

use leasehold_integration::Result;

pub(super) use self::{erased::Subject, leasehold::Leasehold};

/// The name of Leasehold with its defaults.
pub(super) const LEASEHOLD: &str = "leasehold";
/// The name of the bare driver that does the same round trips.
pub(super) const FLOOR: &str = "floor";

/// A way to lock.
pub(super) trait Source: Send + Sync + 'static {
    type Locks: Locks;

    fn name(&self) -> &'static str;

    /// Returns the maximum sleep of a waiter between two attempts, or zero if it is notified. A
    /// fair hand-off may start at any time of that period.
    fn period(&self) -> Duration {
        Duration::ZERO
    }

    /// Returns whether the subject takes part in a scenario.
    fn takes_part(&self, scenario: super::scenario::Scenario) -> bool;

    /// Returns the reason why it does not take part, where one might expect it to.
    fn excuse(&self, _scenario: super::scenario::Scenario) -> Option<&'static str> {
        None
    }

    /// Returns the subject whose every lock is this many keys under one guard, if it has that.
    fn together(&self, _keys: usize) -> Option<Box<dyn Subject>> {
        None
    }

    /// Opens a new instance on the runtime of the measurement.
    fn open(&self) -> impl Future<Output = Result<Self::Locks>> + Send;
}

/// A factory of locks by name, over one connection.
pub(super) trait Locks: Send + Sync + 'static {
    type Lock: Lock;

    fn lock(&self, name: &str) -> Self::Lock;

    /// Renews a held lock, if the subject has no automatic renewal.
    fn renew(&self, held: &Held<Self>) -> impl Future<Output = Result<()>> + Send;

    /// Whether the benchmark has to renew held locks.
    const RENEWED_BY_HAND: bool;

    fn close(self) -> impl Future<Output = Result<()>> + Send;
}

/// One lock, for one task.
pub(super) trait Lock: Send + 'static {
    type Held: Send + Sync + 'static;

    fn acquire(&mut self) -> impl Future<Output = Result<Self::Held>> + Send;

    fn release(&mut self, held: Self::Held) -> impl Future<Output = Result<()>> + Send;
}

/// The guard of a held lock.
pub(super) type Held<L> = <<L as Locks>::Lock as Lock>::Held;
