//! [`LocalReplica`]: a client in the process of the test.

use std::{
    convert::Infallible,
    path::Path,
    pin::Pin,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use leasehold_integration::worker::{EventLog, Op, Phase};
use tokio::sync::{mpsc as tasks, oneshot};

/// The work of a replica.
pub(crate) type Work = Pin<Box<dyn Future<Output = Infallible> + Send>>;

/// A client in the process of the test, on a thread and a runtime of its own, that can be paused
/// and killed. A backend in memory has no others.
pub(crate) struct LocalReplica {
    log: Arc<EventLog>,
    pauses: tasks::UnboundedSender<Pause>,
    resumes: Option<mpsc::Sender<()>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A pause of the thread.
struct Pause {
    begun: mpsc::Sender<()>,
    over: mpsc::Receiver<()>,
}

impl LocalReplica {
    /// Starts a replica whose events are in the log at this path.
    pub(crate) fn start(
        proc: &str,
        log: &Path,
        work: impl FnOnce(Arc<EventLog>) -> Work + Send + 'static,
    ) -> Self {
        let log = Arc::new(EventLog::open(log, proc).unwrap());
        let (pauses, mut asked) = tasks::unbounded_channel::<Pause>();
        let (end, ended) = oneshot::channel::<()>();
        let work = {
            let log = Arc::clone(&log);
            move || work(log)
        };
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let pausing = async {
                while let Some(Pause { begun, over }) = asked.recv().await {
                    begun.send(()).ok();
                    // Blocks the only thread of the runtime.
                    over.recv().ok();
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    _ = ended => {}
                    never = work() => match never {},
                    () = pausing => {}
                }
            });
            runtime.shutdown_background();
        });
        Self {
            log,
            pauses,
            resumes: None,
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// Stops the thread. In effect when this returns.
    pub(crate) fn pause(&mut self) {
        let ((begun, has_begun), (resumes, over)) = (mpsc::channel(), mpsc::channel());
        let sent = self.pauses.send(Pause { begun, over });
        assert!(
            sent.is_ok() && has_begun.recv().is_ok(),
            "the replica has ended"
        );
        self.resumes = Some(resumes);
    }

    /// Lets the thread continue.
    pub(crate) fn resume(&mut self) {
        self.resumes = None;
    }

    /// Ends the thread, and drops its work and its client, which frees its locks.
    pub(crate) fn kill(&mut self) {
        self.log.write(0, "", (Op::Kill, Phase::Invoke), None, None);
        self.resume();
        self.end = None;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the thread of a replica panicked");
        }
        self.log.write(0, "", (Op::Kill, Phase::Ok), None, None);
    }
}

impl Drop for LocalReplica {
    fn drop(&mut self) {
        if self.thread.is_some() && !thread::panicking() {
            self.kill();
        }
    }
}
