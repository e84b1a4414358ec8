//! [`WaiterGuard`]: a waiter's place in a slot, given up when dropped.

use std::{sync::Arc, time::Duration};

use leasehold_core::{Result, backend::Request};

use super::{
    backend::MemoryBackend,
    grant::Grant,
    slot::{Slot, Ticket},
};

/// Dropping it leaves the queue, and gives back what was granted but not taken: so neither a
/// cancellation nor a runtime that shuts down leaves a waiter or a lock behind.
#[derive(Debug)]
pub(super) struct WaiterGuard {
    backend: Arc<MemoryBackend>,
    pub(super) ticket: Arc<Ticket>,
    taken: bool,
}

/// What a waiter is told when it looks.
pub(super) enum Turn {
    Served(Arc<Grant>),
    /// Look again after this time, unless called before.
    Wait(Duration),
}

impl WaiterGuard {
    /// At the end of the queue.
    pub(super) fn in_queue(backend: Arc<MemoryBackend>, slot: &mut Slot, request: Request) -> Self {
        let ticket = Arc::new(Ticket::new(request, &backend.issuer));
        slot.queue.insert(ticket.number, Arc::clone(&ticket));
        Self {
            backend,
            ticket,
            taken: false,
        }
    }

    /// Outside of the queue, to be called when a new attempt makes sense.
    pub(super) fn as_watcher(
        backend: Arc<MemoryBackend>,
        slot: &mut Slot,
        request: Request,
    ) -> Self {
        let ticket = Arc::new(Ticket::new(request, &backend.issuer));
        slot.watchers.insert(ticket.number, Arc::clone(&ticket));
        Self {
            backend,
            ticket,
            taken: false,
        }
    }

    pub(super) fn look(&mut self) -> Result<Turn> {
        let backend = Arc::clone(&self.backend);
        if self.ticket.outcome.get().is_none() {
            let wait = self.with_slot(|slot| {
                slot.settle(&backend.issuer);
                let expiry = slot.holders.first_expiry()?;
                self.ticket.arm(expiry);
                Some(expiry.since(backend.issuer.now()))
            });
            if self.ticket.outcome.get().is_none() {
                // A head with no holder before it would have been served; the others are called as
                // they advance.
                return Ok(Turn::Wait(wait.unwrap_or(Duration::MAX)));
            }
        }
        match self.ticket.outcome.get() {
            Some(Ok(grant)) => {
                self.taken = true;
                Ok(Turn::Served(Arc::clone(grant)))
            }
            Some(Err(error)) => Err(error.clone()),
            None => Ok(Turn::Wait(Duration::ZERO)),
        }
    }

    fn with_slot<R>(&self, work: impl FnOnce(&mut Slot) -> R) -> R {
        self.backend
            .table
            .with_slot(self.ticket.request.key(), self.ticket.request.mode(), work)
    }
}

impl Drop for WaiterGuard {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        self.with_slot(|slot| {
            slot.queue.remove(&self.ticket.number);
            slot.watchers.remove(&self.ticket.number);
            if let Some(Ok(grant)) = self.ticket.outcome.get() {
                slot.holders.remove(grant);
            }
            slot.settle(&self.backend.issuer);
        });
    }
}
