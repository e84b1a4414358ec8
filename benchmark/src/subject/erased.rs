//! [`Subject`]: a subject without its types.

use std::time::Duration;

use leasehold_core::backend::async_trait;
use leasehold_integration::Result;
use tokio::sync::mpsc::UnboundedReceiver;

use super::Source;
use crate::scenario::{
    Scenario, contenders,
    counter::{self, Count},
    crowd, handoff,
    held::{self, Holding},
    pair::{self, PairRound, Pairs},
    stopped,
};

/// A [`Source`] without its types, with one method per measurement.
#[async_trait]
pub(crate) trait Subject: Send + Sync {
    fn name(&self) -> &'static str;
    fn period(&self) -> Duration;
    fn takes_part(&self, scenario: Scenario) -> bool;
    fn excuse(&self, scenario: Scenario) -> Option<&'static str>;
    fn together(&self, keys: usize) -> Option<Box<dyn Subject>>;
    async fn pairs(&self, round: PairRound) -> Result<Pairs>;
    async fn count(&self, tasks: usize) -> Result<Count>;
    async fn hold(&self, leases: usize, time: Duration) -> Result<Holding>;
    async fn take_turns(&self, orders: UnboundedReceiver<String>) -> Result<()>;
    async fn crowd(&self, waiters: usize, orders: UnboundedReceiver<String>) -> Result<()>;
    async fn contend(
        &self,
        tasks: usize,
        time: Duration,
        orders: UnboundedReceiver<String>,
    ) -> Result<()>;
    async fn acquire_while(
        &self,
        time: Duration,
        stop: &(dyn Fn() -> Result<()> + Sync),
    ) -> Result<Vec<u64>>;
}

#[async_trait]
impl<S: Source> Subject for S {
    fn name(&self) -> &'static str {
        Source::name(self)
    }

    fn period(&self) -> Duration {
        Source::period(self)
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        Source::takes_part(self, scenario)
    }

    fn excuse(&self, scenario: Scenario) -> Option<&'static str> {
        Source::excuse(self, scenario)
    }

    fn together(&self, keys: usize) -> Option<Box<dyn Subject>> {
        Source::together(self, keys)
    }

    async fn pairs(&self, round: PairRound) -> Result<Pairs> {
        pair::measure(self, round).await
    }

    async fn count(&self, tasks: usize) -> Result<Count> {
        counter::measure(self, tasks).await
    }

    async fn hold(&self, leases: usize, time: Duration) -> Result<Holding> {
        held::measure(self, leases, time).await
    }

    async fn take_turns(&self, orders: UnboundedReceiver<String>) -> Result<()> {
        handoff::take_turns(self, orders).await
    }

    async fn crowd(&self, waiters: usize, orders: UnboundedReceiver<String>) -> Result<()> {
        crowd::take_part(self, waiters, orders).await
    }

    async fn contend(
        &self,
        tasks: usize,
        time: Duration,
        orders: UnboundedReceiver<String>,
    ) -> Result<()> {
        contenders::take_part(self, tasks, time, orders).await
    }

    async fn acquire_while(
        &self,
        time: Duration,
        stop: &(dyn Fn() -> Result<()> + Sync),
    ) -> Result<Vec<u64>> {
        stopped::measure(self, time, stop).await
    }
}
