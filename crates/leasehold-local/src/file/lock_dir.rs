//! [`LockDir`]: the directory of a backend, and its files.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use leasehold_core::{LockKey, Result};

use super::{
    access,
    config::FileConfig,
    directory,
    error::io_error,
    keys,
    shadow::Shadows,
    waiters::{Registration, WaiterRegistry},
};

/// The data that a backend and its acquisitions share.
#[derive(Debug)]
pub(super) struct LockDir {
    /// The canonical path.
    path: PathBuf,
    pub(super) config: FileConfig,
    pub(super) shadows: Shadows,
    registry: Mutex<Option<Arc<WaiterRegistry>>>,
}

impl LockDir {
    pub(super) fn open(path: &Path, config: FileConfig) -> Result<Self> {
        let path = directory::prepare(path, &config)?;
        Ok(Self {
            path,
            config,
            shadows: Shadows::of_this_user(),
            registry: Mutex::default(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of a file of `key`.
    pub(super) fn file(&self, key: &LockKey, suffix: &str) -> PathBuf {
        keys::path_of(&self.path, key, suffix)
    }

    /// Returns the path of the file that stores the tokens of `key`.
    pub(super) fn token_file(&self, key: &LockKey) -> PathBuf {
        self.file(key, ".token")
    }

    /// Opens a file of this directory. Creates the file and its parent directories if they are
    /// missing.
    pub(super) fn open_file(&self, path: &Path) -> Result<File> {
        match access::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                directory::prepare(&self.path, &self.config)?;
                access::create_parents(path)
                    .map_err(|error| io_error("create", path.parent().unwrap_or(path), error))?;
                access::open(path).map_err(|error| io_error("open", path, error))
            }
            opened => opened.map_err(|error| io_error("open", path, error)),
        }
    }

    /// Registers a waiter for `path`. Returns `None` where the file cannot be watched; the waiter
    /// then polls.
    pub(super) fn register(&self, path: &Path) -> Option<Registration> {
        self.watch(path, |registry| registry.register(&self.path, path))
    }

    /// Registers a watcher of the record at `path`, and of the end of its writer's hold if
    /// `while_held`. Returns `None` where the file cannot be watched; the watcher then polls.
    pub(super) fn register_record(&self, path: &Path, while_held: bool) -> Option<Registration> {
        self.watch(path, |registry| {
            let register = || registry.register_record(&self.path, path, while_held);
            match register() {
                // The directories of a long name are missing until its lock is used.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    access::create_parents(path)?;
                    register()
                }
                registered => registered,
            }
        })
    }

    fn watch(
        &self,
        path: &Path,
        register: impl FnOnce(&WaiterRegistry) -> io::Result<Registration>,
    ) -> Option<Registration> {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let registered = match &*registry {
            Some(registry) => register(registry),
            None => WaiterRegistry::start()
                .and_then(|started| register(registry.insert(Arc::new(started)))),
        };
        registered
            .inspect_err(|error| {
                tracing::debug!(
                    %error,
                    path = %path.display(),
                    "the file cannot be watched; its waiter polls"
                );
            })
            .ok()
    }
}
