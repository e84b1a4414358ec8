//! Locks in the memory of one process.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use leasehold_core::LockClient;
use leasehold_integration::Result;
use leasehold_local::MemoryBackend;
use tokio::sync::{Mutex as Lane, OwnedMutexGuard};

use super::{Backend, BackendName};
use crate::{
    scenario::Scenario,
    subject::{FLOOR, Leasehold, Lock, Locks, Source, Subject},
};

pub(super) struct Memory;

impl Backend for Memory {
    fn name(&self) -> BackendName {
        BackendName::Memory
    }

    fn location(&self) -> Option<String> {
        None
    }

    fn subjects(&self) -> Vec<Box<dyn Subject>> {
        subjects()
    }
}

pub(super) fn subjects() -> Vec<Box<dyn Subject>> {
    vec![
        Box::new(Floor),
        Box::new(Leasehold::new(|| async {
            Ok(LockClient::new(MemoryBackend::new()))
        })),
    ]
}

/// A map of tokio's mutexes and a counter, without leases and deadlines.
struct Floor;

impl Source for Floor {
    type Locks = Mutexes;

    fn name(&self) -> &'static str {
        FLOOR
    }

    fn takes_part(&self, scenario: Scenario) -> bool {
        matches!(scenario, Scenario::Pair | Scenario::Counter)
    }

    async fn open(&self) -> Result<Mutexes> {
        Ok(Mutexes::default())
    }
}

type Lanes = HashMap<Arc<str>, Arc<Lane<()>>>;

#[derive(Clone, Default)]
struct Mutexes {
    lanes: Arc<Mutex<Lanes>>,
    tokens: Arc<AtomicU64>,
}

struct MutexOf(Mutexes, Arc<str>);

impl Locks for Mutexes {
    type Lock = MutexOf;

    fn lock(&self, name: &str) -> MutexOf {
        MutexOf(self.clone(), name.into())
    }

    async fn renew(&self, _held: &(OwnedMutexGuard<()>, u64)) -> Result<()> {
        Ok(())
    }

    const RENEWED_BY_HAND: bool = false;

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Lock for MutexOf {
    /// The guard and the token.
    type Held = (OwnedMutexGuard<()>, u64);

    async fn acquire(&mut self) -> Result<Self::Held> {
        let Self(Mutexes { lanes, tokens }, name) = self;
        let lane = {
            let mut lanes = lanes.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(lanes.entry(Arc::clone(name)).or_default())
        };
        let guard = lane.lock_owned().await;
        Ok((guard, tokens.fetch_add(1, Ordering::Relaxed)))
    }

    async fn release(&mut self, held: Self::Held) -> Result<()> {
        drop(held);
        Ok(())
    }
}
