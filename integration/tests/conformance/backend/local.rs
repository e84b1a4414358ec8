use std::sync::{Arc, LazyLock};

use leasehold_core::{TestClock, backend::LockBackend};
use leasehold_local::MemoryBackend;
use leasehold_testkit::FixtureFn;

use super::{Backend, at};

/// Creates a memory backend for each case, in simulated time.
pub(super) const MEMORY: Backend = Backend {
    name: "memory",
    simulated_time: true,
    fixture: || {
        Box::pin(async {
            let clock = Arc::new(TestClock::new());
            let memory = Arc::new(MemoryBackend::with_clock(clock.clone()));
            let opened = move || {
                let memory = Arc::clone(&memory);
                async move { memory as Arc<dyn LockBackend> }
            };
            FixtureFn::new(opened).with_clock(clock)
        })
    },
};

pub(super) const FILE: Backend = Backend {
    name: "file",
    simulated_time: false,
    fixture: || {
        static DIR: LazyLock<tempfile::TempDir> =
            LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));
        Box::pin(async { at(format!("file:{}", DIR.path().display())) })
    },
};
