//! Recorders and subscribers that panic, at each single call and at every call. No lock is
//! affected.

mod support;

use std::{
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use leasehold_core::{LockClient, LossReason, Released, Renewal};
use leasehold_testkit::subscribe;
use support::{secs, settle, two_processes};
use tracing::{
    Event, Metadata, Subscriber,
    span::{Attributes, Id, Record},
    subscriber::Interest,
};

/// Panics at one call, counted from 0, or at every call.
#[derive(Debug, Default)]
struct Fuse {
    at: Option<usize>,
    calls: AtomicUsize,
}

impl Fuse {
    fn at(at: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            at,
            calls: AtomicUsize::new(0),
        })
    }

    fn called(&self) {
        let call = self.calls.fetch_add(1, SeqCst);
        if self.at.is_none_or(|at| at == call) {
            // Suppresses the message of each panic.
            resume_unwind(Box::new("made to panic"));
        }
    }
}

/// Uses the locks of `client` in every way. All of them are free when it returns.
async fn use_locks(client: &LockClient, other: &LockClient) {
    let guard = client.mutex("released").lock().await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Freed);
    drop(client.mutex("dropped").lock().await.unwrap());
    drop(client.rwlock("read").read().await.unwrap());
    drop(client.semaphore("permit", 1).acquire().await.unwrap());
    client.mutex("run").run(async |_| ()).await.unwrap();

    let owner = client.reentrant_owner();
    let (first, second) = (
        owner.lock("owned").await.unwrap(),
        owner.lock("owned").await.unwrap(),
    );
    assert_eq!(first.release().await.unwrap(), Released::StillHeld);
    drop(second);

    let held = other.mutex("contended").lock().await.unwrap();
    let contended = client.mutex("contended");
    assert!(contended.try_lock().await.unwrap().is_none());
    assert!(
        contended
            .lock_timeout(Duration::from_secs(1))
            .await
            .unwrap()
            .is_none()
    );
    tokio::time::timeout(Duration::from_secs(1), contended.lock())
        .await
        .unwrap_err();
    let mut granted_and_dropped = Box::pin(contended.lock());
    assert!(futures_util::poll!(&mut granted_and_dropped).is_pending());
    held.release().await.unwrap();
    drop(granted_and_dropped);

    let lost = client
        .mutex("lost")
        .with_ttl(secs(1))
        .with_renewal(Renewal::Manual)
        .lock()
        .await
        .unwrap();
    let kept = client.mutex("kept").with_ttl(secs(3)).lock().await.unwrap();
    kept.renew().await.unwrap();
    assert_eq!(lost.lost().await, LossReason::Expired);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(kept.is_held());
    let panics = tokio::spawn(async move {
        let _kept = kept;
        resume_unwind(Box::new("the holder panics"));
    });
    assert!(panics.await.unwrap_err().is_panic());
}

/// Uses locks while the fuse may blow at each possible point. `install` turns a fuse into a
/// recorder or a subscriber.
async fn at_every_point<G>(install: impl Fn(Arc<Fuse>) -> G) {
    let names = [
        "released",
        "dropped",
        "read",
        "permit",
        "run",
        "owned",
        "contended",
        "lost",
        "kept",
    ];
    let mut point = None;
    loop {
        let fuse = Fuse::at(point);
        {
            let _installed = install(Arc::clone(&fuse));
            let (client, other) = two_processes();
            use_locks(&client, &other).await;
            settle().await;
            for name in names {
                let free = other.mutex(name).try_lock().await;
                assert!(
                    matches!(free, Ok(Some(_))),
                    "a panic at call {point:?} leaves `{name}` locked: {free:?}"
                );
            }
            client.close().await.unwrap();
        }
        let calls = fuse.calls.load(SeqCst);
        assert!(calls > 10, "only {calls} calls: nothing is tested");
        match point {
            Some(at) if at >= calls => return,
            at => point = Some(at.map_or(0, |at| at + 1)),
        }
    }
}

#[derive(Debug)]
struct Panicking {
    fuse: Arc<Fuse>,
    spans: AtomicU64,
}

impl Subscriber for Panicking {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        if metadata.target() != "leasehold" {
            return false;
        }
        self.fuse.called();
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        self.fuse.called();
        Id::from_u64(self.spans.fetch_add(1, SeqCst) + 1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {
        self.fuse.called();
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {
        self.fuse.called();
    }

    fn event(&self, _: &Event<'_>) {
        self.fuse.called();
    }

    fn enter(&self, _: &Id) {
        self.fuse.called();
    }

    fn exit(&self, _: &Id) {
        self.fuse.called();
    }

    fn try_close(&self, _: Id) -> bool {
        self.fuse.called();
        false
    }
}

#[tokio::test(start_paused = true)]
async fn a_panicking_subscriber_leaks_no_lock() {
    at_every_point(|fuse| {
        subscribe(Panicking {
            fuse,
            spans: AtomicU64::new(0),
        })
    })
    .await;
}

#[cfg(feature = "metrics")]
mod recorder {
    use metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Recorder,
        SharedString, Unit,
    };

    use super::*;

    struct Meter(Arc<Fuse>);

    impl CounterFn for Fuse {
        fn increment(&self, _: u64) {
            self.called();
        }

        fn absolute(&self, _: u64) {
            self.called();
        }
    }

    impl GaugeFn for Fuse {
        fn increment(&self, _: f64) {
            self.called();
        }

        fn decrement(&self, _: f64) {
            self.called();
        }

        fn set(&self, _: f64) {
            self.called();
        }
    }

    impl HistogramFn for Fuse {
        fn record(&self, _: f64) {
            self.called();
        }
    }

    impl Recorder for Meter {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
            self.0.called();
        }

        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
            self.0.called();
        }

        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
            self.0.called();
        }

        fn register_counter(&self, _: &Key, _: &metrics::Metadata<'_>) -> Counter {
            self.0.called();
            Counter::from_arc(Arc::clone(&self.0))
        }

        fn register_gauge(&self, _: &Key, _: &metrics::Metadata<'_>) -> Gauge {
            self.0.called();
            Gauge::from_arc(Arc::clone(&self.0))
        }

        fn register_histogram(&self, _: &Key, _: &metrics::Metadata<'_>) -> Histogram {
            self.0.called();
            Histogram::from_arc(Arc::clone(&self.0))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicking_recorder_leaks_no_lock() {
        at_every_point(|fuse| {
            // A recorder of the thread must outlive its guard.
            let meter: &'static Meter = Box::leak(Box::new(Meter(fuse)));
            metrics::set_default_local_recorder(meter)
        })
        .await;
    }
}
