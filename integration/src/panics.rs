//! Panics of the crates under test, including those that a runtime catches.

use std::{
    panic,
    sync::{Mutex, Once, PoisonError},
};

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Records the panics of the crates under test from now on.
pub fn record() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // The library detects a runtime without a timer by catching this panic.
            let asks_for_timer = info.to_string().contains("timers are disabled");
            if !asks_for_timer
                && info
                    .location()
                    .is_some_and(|place| place.file().contains("crates/leasehold"))
            {
                PANICS
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(info.to_string());
            }
            default(info);
        }));
    });
}

/// Returns the panics that were recorded.
#[must_use]
pub fn recorded() -> Vec<String> {
    PANICS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// Asserts that no task and no thread of the crates under test has panicked since the first call
/// of [`record`].
///
/// # Panics
/// One has panicked.
#[track_caller]
pub fn nothing_panicked() {
    let panics = recorded();
    assert!(panics.is_empty(), "{panics:?}");
}
