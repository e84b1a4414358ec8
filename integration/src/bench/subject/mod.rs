//! What is measured: ways to lock.
//!
//! A [`Source`] is implemented by each; [`Subject`] is the same with the types erased, per
//! measurement and not per call, so that no subject pays for the benchmark's own indirection.

mod erased;
mod leasehold;

use std::{future::Future, time::Duration};

pub(super) use self::{erased::Subject, leasehold::Leasehold};
use crate::Result;

/// The name of Leasehold itself, as its users have it.
pub(super) const LEASEHOLD: &str = "leasehold";
/// The name of the bare driver that does the same round trips.
pub(super) const FLOOR: &str = "floor";

/// A way to lock.
pub(super) trait Source: Send + Sync + 'static {
    type Locks: Locks;

    fn name(&self) -> &'static str;

    /// How long a waiter sleeps at most between two looks; zero if it is woken. A fair hand-off to
    /// it happens at any time of that period.
    fn period(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether it is measured here: not every subject can do everything.
    fn takes_part(&self, scenario: super::scenario::Scenario) -> bool;

    /// Why it takes no part, where one might expect it to.
    fn excuse(&self, _scenario: super::scenario::Scenario) -> Option<&'static str> {
        None
    }

    /// Opens it anew, on the runtime that it is measured on.
    fn open(&self) -> impl Future<Output = Result<Self::Locks>> + Send;
}

/// Locks by name, over one connection.
pub(super) trait Locks: Send + Sync + 'static {
    type Lock: Lock;

    fn lock(&self, name: &str) -> Self::Lock;

    /// Renews what is held, if nobody does it by itself.
    fn renew(&self, held: &Held<Self>) -> impl Future<Output = Result<()>> + Send;

    /// Whether that renewal is the benchmark's job.
    const RENEWED_BY_HAND: bool;

    fn close(self) -> impl Future<Output = Result<()>> + Send;
}

/// One lock, for one task.
pub(super) trait Lock: Send + 'static {
    type Held: Send + Sync + 'static;

    fn acquire(&mut self) -> impl Future<Output = Result<Self::Held>> + Send;

    fn release(&mut self, held: Self::Held) -> impl Future<Output = Result<()>> + Send;
}

/// What a task holds.
pub(super) type Held<L> = <<L as Locks>::Lock as Lock>::Held;
