//! Memory backends that a process shares by name.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use leasehold_local::MemoryBackend;

/// They live as long as the process, so that their tokens go on growing when the last client has
/// gone.
static NAMED: LazyLock<Mutex<HashMap<String, Arc<MemoryBackend>>>> = LazyLock::new(Mutex::default);

/// The backend of this name; without a name, a new one.
pub(crate) fn memory(name: &str) -> Arc<MemoryBackend> {
    if name.is_empty() {
        return Arc::default();
    }
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(named.entry(String::from(name)).or_default())
}
