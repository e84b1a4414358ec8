//! [`PanickingSubscriber`]: a tracing subscriber that panics on demand.

use std::{
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use tracing::{
    Event, Metadata, Subscriber,
    span::{Attributes, Id, Record},
    subscriber::Interest,
};

/// A tracing subscriber that panics at one of its calls, or at every call. It enables the targets
/// of all Leasehold crates.
///
/// The panics run no panic hook, so the output of a test stays short.
///
/// ```
/// use leasehold_testkit::PanickingSubscriber;
///
/// let (subscriber, calls) = PanickingSubscriber::new(None);
/// let panicked = std::panic::catch_unwind(|| {
///     tracing::subscriber::with_default(subscriber, || {
///         tracing::warn!(target: "leasehold", "this panics");
///     });
/// });
/// assert!(panicked.is_err());
/// assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 1);
/// ```
#[derive(Debug)]
pub struct PanickingSubscriber {
    at: Option<usize>,
    calls: Arc<AtomicUsize>,
    spans: AtomicU64,
}

impl PanickingSubscriber {
    /// Returns a subscriber and the counter of its calls. The call number `at`, counted from 0,
    /// panics; with `None`, every call panics.
    #[must_use]
    pub fn new(at: Option<usize>) -> (Self, Arc<AtomicUsize>) {
        let calls = Arc::new(AtomicUsize::new(0));
        (
            Self {
                at,
                calls: Arc::clone(&calls),
                spans: AtomicU64::new(0),
            },
            calls,
        )
    }

    fn called(&self) {
        let call = self.calls.fetch_add(1, SeqCst);
        if self.at.is_none_or(|at| at == call) {
            resume_unwind(Box::new("a panic on demand"));
        }
    }
}

impl Subscriber for PanickingSubscriber {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("leasehold")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        self.called();
        Id::from_u64(self.spans.fetch_add(1, SeqCst) + 1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {
        self.called();
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {
        self.called();
    }

    fn event(&self, _: &Event<'_>) {
        self.called();
    }

    fn enter(&self, _: &Id) {
        self.called();
    }

    fn exit(&self, _: &Id) {
        self.called();
    }

    fn try_close(&self, _: Id) -> bool {
        self.called();
        false
    }
}
