//! [`WaiterRegistry`]: notifies waiters when a lock file is closed, and watchers when a record is
//! replaced.
//!
//! A backend has one inotify instance and one thread, which the first waiter starts. It is a thread
//! and not a task, because waiters may run on several runtimes, and none of them may miss a
//! notification when another runtime ends. The kernel reports the close of the last descriptor of a
//! lock, also when its process dies.

#[cfg(target_os = "linux")]
pub(super) use self::linux::{Registration, WaiterRegistry};
#[cfg(not(target_os = "linux"))]
pub(super) use self::none::{Registration, WaiterRegistry};

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        collections::HashMap,
        ffi::{OsStr, OsString},
        io,
        mem::MaybeUninit,
        os::{fd::OwnedFd, unix::ffi::OsStrExt},
        panic::{AssertUnwindSafe, catch_unwind},
        path::Path,
        sync::{
            Arc, Mutex, MutexGuard, PoisonError,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
    use tokio::sync::Notify;

    #[derive(Debug)]
    pub(in super::super) struct WaiterRegistry(Arc<Shared>);

    #[derive(Debug)]
    struct Shared {
        inotify: OwnedFd,
        waiters: Mutex<HashMap<i32, Vec<Waiter>>>,
        closing: AtomicBool,
        /// Whether the thread has failed, so that nobody is notified any more.
        failed: AtomicBool,
    }

    /// A waiter for some events of one file or directory. The watch of a file has the events of all
    /// its waiters.
    #[derive(Debug)]
    struct Waiter {
        notify: Arc<Notify>,
        events: WatchFlags,
        /// The file whose events in a directory matter. `None` if the directory itself matters.
        name: Option<OsString>,
    }

    /// The watched file itself was removed or moved.
    const GONE: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF);

    impl WaiterRegistry {
        pub(in super::super) fn start() -> io::Result<Self> {
            let shared = Arc::new(Shared {
                inotify: inotify::init(CreateFlags::CLOEXEC)?,
                waiters: Mutex::default(),
                closing: AtomicBool::new(false),
                failed: AtomicBool::new(false),
            });
            let reader = Arc::clone(&shared);
            thread::Builder::new()
                .name(String::from("leasehold-file"))
                .spawn(move || reader.run())?;
            Ok(Self(shared))
        }

        /// Registers a waiter. It is notified when `path` is closed, removed or moved, and when
        /// `dir` is removed or moved.
        pub(in super::super) fn register(
            &self,
            dir: &Path,
            path: &Path,
        ) -> io::Result<Registration> {
            // A lock file may have been open for writing or not: this crate, `flock(1)` and the
            // shell's `9>file` differ in that. The unlink of an open file changes its link count
            // (ATTRIB).
            let ends = WatchFlags::CLOSE_WRITE
                | WatchFlags::CLOSE_NOWRITE
                | WatchFlags::ATTRIB
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF;
            self.add(&[(path, ends, None), (dir, GONE, None)])
        }

        /// Registers a watcher of a record. It is notified when `path` is replaced, and when its
        /// directory or `dir` is removed or moved. If `while_held`, it is also notified when the
        /// writer of the record closes it.
        pub(in super::super) fn register_record(
            &self,
            dir: &Path,
            path: &Path,
            while_held: bool,
        ) -> io::Result<Registration> {
            let parent = path.parent().unwrap_or(dir);
            let name = path.file_name();
            let mut watches = vec![
                (parent, WatchFlags::MOVED_TO, name),
                (parent, GONE, None),
                (dir, GONE, None),
            ];
            if while_held {
                // Readers open the record for reading, so their closes notify nobody.
                watches.push((path, WatchFlags::CLOSE_WRITE, None));
            }
            match self.add(&watches) {
                // There is no record yet. The directory is watched.
                Err(error) if while_held && error.kind() == io::ErrorKind::NotFound => {
                    self.add(&watches[..3])
                }
                registered => registered,
            }
        }

        fn add(&self, watches: &[(&Path, WatchFlags, Option<&OsStr>)]) -> io::Result<Registration> {
            let notify = Arc::new(Notify::new());
            let mut registration = Registration {
                shared: Arc::clone(&self.0),
                watches: Vec::with_capacity(watches.len()),
                notify,
            };
            // Locked over all calls, so that the reader thread finds the waiter of every event that
            // it reads.
            let mut waiters = self.0.waiters();
            if self.0.failed.load(Ordering::Acquire) {
                return Err(io::Error::other("the thread that watches files has failed"));
            }
            for &(path, events, name) in watches {
                let mask = events | WatchFlags::MASK_ADD;
                let watch = inotify::add_watch(&self.0.inotify, path, mask)?;
                waiters.entry(watch).or_default().push(Waiter {
                    notify: Arc::clone(&registration.notify),
                    events,
                    name: name.map(OsStr::to_os_string),
                });
                registration.watches.push(watch);
            }
            drop(waiters);
            Ok(registration)
        }
    }

    impl Drop for WaiterRegistry {
        fn drop(&mut self) {
            self.0.closing.store(true, Ordering::Release);
            // The end of a watch is an event, which unblocks the reader thread.
            let ended = inotify::add_watch(&self.0.inotify, "/", WatchFlags::DELETE_SELF)
                .and_then(|watch| inotify::remove_watch(&self.0.inotify, watch));
            if let Err(error) = ended {
                tracing::debug!(%error, "the thread that watches lock files could not be stopped");
            }
        }
    }

    impl Shared {
        fn waiters(&self) -> MutexGuard<'_, HashMap<i32, Vec<Waiter>>> {
            self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn run(&self) {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
            loop {
                let event = match events.next() {
                    Ok(event) => event,
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => {
                        tracing::error!(%error, "lock files are no longer watched; waiters poll");
                        let waiters = self.waiters();
                        self.failed.store(true, Ordering::Release);
                        waiters.values().flatten().for_each(Waiter::notify);
                        return;
                    }
                };
                if self.closing.load(Ordering::Acquire) {
                    return;
                }
                let waiters = self.waiters();
                if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                    waiters.values().flatten().for_each(Waiter::notify);
                } else if let Some(registered) = waiters.get(&event.wd()) {
                    let name = event
                        .file_name()
                        .map(|name| OsStr::from_bytes(name.to_bytes()));
                    registered
                        .iter()
                        .filter(|waiter| waiter.waits_for(event.events(), name))
                        .for_each(Waiter::notify);
                }
            }
        }
    }

    impl Waiter {
        fn waits_for(&self, events: ReadFlags, name: Option<&OsStr>) -> bool {
            // A watch that has ended reports nothing more.
            let ended = ReadFlags::IGNORED | ReadFlags::UNMOUNT;
            events.intersects(ended)
                || events.bits() & self.events.bits() != 0 && name == self.name.as_deref()
        }

        /// Notifies the waiter. The panic of a waker is contained, so that the other waiters are
        /// notified and the thread continues.
        fn notify(&self) {
            drop(catch_unwind(AssertUnwindSafe(|| self.notify.notify_one())));
        }
    }

    /// The registration of one waiter, which ends when it is dropped.
    #[derive(Debug)]
    pub(in super::super) struct Registration {
        shared: Arc<Shared>,
        watches: Vec<i32>,
        notify: Arc<Notify>,
    }

    impl Registration {
        pub(in super::super) async fn notified(&self) {
            self.notify.notified().await;
        }
    }

    impl Drop for Registration {
        fn drop(&mut self) {
            let mut waiters = self.shared.waiters();
            for &watch in &self.watches {
                let Some(registered) = waiters.get_mut(&watch) else {
                    continue;
                };
                registered.retain(|waiter| !Arc::ptr_eq(&waiter.notify, &self.notify));
                if registered.is_empty() {
                    waiters.remove(&watch);
                    if let Err(error) = inotify::remove_watch(&self.shared.inotify, watch) {
                        tracing::trace!(%error, "the watch was removed together with its file");
                    }
                }
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use std::{
            fs::File,
            panic::resume_unwind,
            pin::pin,
            task::{Context, Wake},
            time::Duration,
        };

        use super::*;

        struct Panics;

        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                // This prints no message to the output of the test.
                resume_unwind(Box::new("the waker panics"));
            }
        }

        #[tokio::test]
        async fn panicking_waker_ends_no_watch() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("lock");
            let lock = File::create(&path).unwrap();
            let registry = WaiterRegistry::start().unwrap();
            let register = || registry.register(dir.path(), &path).unwrap();
            let (first, second) = (register(), register());
            let mut panics = pin!(first.notified());
            assert!(
                panics
                    .as_mut()
                    .poll(&mut Context::from_waker(&Arc::new(Panics).into()))
                    .is_pending()
            );
            drop(lock);
            for _ in 0..2 {
                tokio::time::timeout(Duration::from_secs(60), second.notified())
                    .await
                    .unwrap();
                drop(File::open(&path).unwrap());
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod none {
    use std::{io, path::Path};

    #[derive(Debug)]
    pub(in super::super) struct WaiterRegistry;

    #[derive(Debug)]
    pub(in super::super) struct Registration;

    impl WaiterRegistry {
        pub(in super::super) fn start() -> io::Result<Self> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }

        pub(in super::super) fn register(&self, _: &Path, _: &Path) -> io::Result<Registration> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }

        pub(in super::super) fn register_record(
            &self,
            _: &Path,
            _: &Path,
            _: bool,
        ) -> io::Result<Registration> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }
    }

    impl Registration {
        pub(in super::super) async fn notified(&self) {
            std::future::pending().await
        }
    }
}
