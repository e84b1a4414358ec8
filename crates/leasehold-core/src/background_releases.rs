//! [`BackgroundReleases`]: a bound on the operations that a client runs in the background.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Acquisitions wait while this many operations run in the background. A backend that answers stays
/// far below it, and this many operations need little memory and few descriptors.
const BOUND: usize = 1024;

/// Counts the operations in the background: releases of dropped guards, and cancelled acquisitions.
/// Each of them follows an acquisition, so delaying acquisitions bounds their number.
#[derive(Debug, Default)]
pub(crate) struct BackgroundReleases {
    count: AtomicUsize,
    shrank: Notify,
}

impl BackgroundReleases {
    /// Counts one more operation until the returned value is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Counted {
        self.count.fetch_add(1, Ordering::AcqRel);
        Counted(Arc::clone(self))
    }

    pub(crate) fn has_room(&self) -> bool {
        self.count.load(Ordering::Acquire) < BOUND
    }

    /// Waits until there is room for another operation.
    pub(crate) async fn room(&self) {
        loop {
            // Created before the count is read, so that no change in between is missed.
            let shrank = self.shrank.notified();
            if self.has_room() {
                return;
            }
            shrank.await;
        }
    }
}

/// Counts one operation in the background until it is dropped.
pub(crate) struct Counted(Arc<BackgroundReleases>);

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == BOUND {
            self.0.shrank.notify_waiters();
        }
    }
}
