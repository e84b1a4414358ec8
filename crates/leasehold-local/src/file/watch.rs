//! [`Watcher`]: tells waiters when someone closes their lock file.
//!
//! One inotify instance and one thread per backend, started by the first waiter: a thread, and not
//! a task, because the tasks of several runtimes may wait, and none may lose its wake-up when
//! another's runtime ends. The kernel reports the close of a lock's last descriptor, also for a
//! process that dies.

#[cfg(target_os = "linux")]
pub(super) use self::linux::{Subscription, Watcher};
#[cfg(not(target_os = "linux"))]
pub(super) use self::none::{Subscription, Watcher};

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        collections::HashMap,
        io,
        mem::MaybeUninit,
        os::fd::OwnedFd,
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
    pub(in super::super) struct Watcher(Arc<Shared>);

    #[derive(Debug)]
    struct Shared {
        inotify: OwnedFd,
        subscribers: Mutex<HashMap<i32, Vec<Arc<Notify>>>>,
        closing: AtomicBool,
    }

    impl Watcher {
        pub(in super::super) fn start() -> io::Result<Self> {
            let shared = Arc::new(Shared {
                inotify: inotify::init(CreateFlags::CLOEXEC)?,
                subscribers: Mutex::default(),
                closing: AtomicBool::new(false),
            });
            let reader = Arc::clone(&shared);
            thread::Builder::new()
                .name(String::from("leasehold-file"))
                .spawn(move || reader.run())?;
            Ok(Self(shared))
        }

        /// To be called at each close of `path`, and when it or `dir` is removed or moved.
        pub(in super::super) fn subscribe(
            &self,
            dir: &Path,
            path: &Path,
        ) -> io::Result<Subscription> {
            // A close with or without write access: our holders, `flock(1)` and the shell's
            // `9>file` all differ in that. An unlinked file that someone has open changes its link
            // count: ATTRIB.
            let ends = WatchFlags::CLOSE_WRITE
                | WatchFlags::CLOSE_NOWRITE
                | WatchFlags::ATTRIB
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF;
            let called = Arc::new(Notify::new());
            let mut subscription = Subscription {
                shared: Arc::clone(&self.0),
                watches: Vec::with_capacity(2),
                called,
            };
            // Held over both, so that the reader finds the subscriber of any event that it reads.
            let mut subscribers = self.0.subscribers();
            for (path, events) in [
                (path, ends),
                (dir, WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF),
            ] {
                let watch = inotify::add_watch(&self.0.inotify, path, events)?;
                subscribers
                    .entry(watch)
                    .or_default()
                    .push(Arc::clone(&subscription.called));
                subscription.watches.push(watch);
            }
            drop(subscribers);
            Ok(subscription)
        }
    }

    impl Drop for Watcher {
        fn drop(&mut self) {
            self.0.closing.store(true, Ordering::Release);
            // The end of a watch is an event too, and ends the reader's sleep.
            let ended = inotify::add_watch(&self.0.inotify, "/", WatchFlags::DELETE_SELF)
                .and_then(|watch| inotify::remove_watch(&self.0.inotify, watch));
            if let Err(error) = ended {
                tracing::debug!(%error, "the thread that watches lock files could not be ended");
            }
        }
    }

    impl Shared {
        fn subscribers(&self) -> MutexGuard<'_, HashMap<i32, Vec<Arc<Notify>>>> {
            self.subscribers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        }

        fn run(&self) {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
            loop {
                let (watch, lost) = match events.next() {
                    Ok(event) => (
                        event.wd(),
                        event.events().contains(ReadFlags::QUEUE_OVERFLOW),
                    ),
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => {
                        tracing::error!(%error, "lock files are no longer watched; waiters poll");
                        return;
                    }
                };
                if self.closing.load(Ordering::Acquire) {
                    return;
                }
                let subscribers = self.subscribers();
                if lost {
                    subscribers.values().flatten().for_each(call);
                } else if let Some(called) = subscribers.get(&watch) {
                    called.iter().for_each(call);
                }
            }
        }
    }

    /// A waker that panics keeps neither another waiter from being called nor the thread from going
    /// on.
    fn call(called: &Arc<Notify>) {
        drop(catch_unwind(AssertUnwindSafe(|| called.notify_one())));
    }

    /// Ends when dropped.
    #[derive(Debug)]
    pub(in super::super) struct Subscription {
        shared: Arc<Shared>,
        watches: Vec<i32>,
        called: Arc<Notify>,
    }

    impl Subscription {
        pub(in super::super) async fn called(&self) {
            self.called.notified().await;
        }
    }

    impl Drop for Subscription {
        fn drop(&mut self) {
            let mut subscribers = self.shared.subscribers();
            for &watch in &self.watches {
                let Some(called) = subscribers.get_mut(&watch) else {
                    continue;
                };
                called.retain(|called| !Arc::ptr_eq(called, &self.called));
                if called.is_empty() {
                    subscribers.remove(&watch);
                    if let Err(error) = inotify::remove_watch(&self.shared.inotify, watch) {
                        tracing::trace!(%error, "the file was removed, and the watch with it");
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
                // Without a message in the test's output for each.
                resume_unwind(Box::new("told to panic"));
            }
        }

        #[tokio::test]
        async fn a_waker_that_panics_ends_no_watch() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("lock");
            let lock = File::create(&path).unwrap();
            let watcher = Watcher::start().unwrap();
            let subscribe = || watcher.subscribe(dir.path(), &path).unwrap();
            let (first, second) = (subscribe(), subscribe());
            let mut panics = pin!(first.called());
            assert!(
                panics
                    .as_mut()
                    .poll(&mut Context::from_waker(&Arc::new(Panics).into()))
                    .is_pending()
            );
            drop(lock);
            for _ in 0..2 {
                tokio::time::timeout(Duration::from_secs(60), second.called())
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
    pub(in super::super) struct Watcher;

    #[derive(Debug)]
    pub(in super::super) struct Subscription;

    impl Watcher {
        pub(in super::super) fn start() -> io::Result<Self> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }

        pub(in super::super) fn subscribe(&self, _: &Path, _: &Path) -> io::Result<Subscription> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }
    }

    impl Subscription {
        pub(in super::super) async fn called(&self) {
            std::future::pending().await
        }
    }
}
