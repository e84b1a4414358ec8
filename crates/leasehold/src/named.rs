//! The memory backends that a process shares by name.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use leasehold_local::MemoryBackend;

/// The backends by name. They are never removed, so that tokens keep growing after the last client
/// was dropped.
static NAMED: LazyLock<Mutex<HashMap<String, Arc<MemoryBackend>>>> = LazyLock::new(Mutex::default);

/// Returns the backend with this name, or a new one for an empty name.
pub(crate) fn memory(name: &str) -> Arc<MemoryBackend> {
    if name.is_empty() {
        return Arc::default();
    }
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(named.entry(String::from(name)).or_default())
}
