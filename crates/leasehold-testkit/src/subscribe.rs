//! A subscriber for the events of one test beside others.

use tracing::{
    Dispatch, Subscriber,
    subscriber::{NoSubscriber, set_default},
};

/// Passes the events of this thread to `subscriber` until what this returns is dropped, also while
/// the tests of other threads have no subscriber.
///
/// With one subscriber in the whole program, `tracing` lets the thread that first reaches an event
/// decide whether anybody wants it. A thread without a subscriber would turn it off for all. So
/// there is a second subscriber, which wants nothing.
///
/// ```
/// use leasehold_testkit::{PanickingSubscriber, subscribe};
///
/// let (subscriber, calls) = PanickingSubscriber::new(Some(1));
/// let _subscribed = subscribe(subscriber);
/// tracing::warn!(target: "leasehold", "this is counted");
/// assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 1);
/// ```
#[must_use = "the subscriber is removed when this is dropped"]
pub fn subscribe(subscriber: impl Subscriber + Send + Sync + 'static) -> impl Sized {
    let second = Dispatch::new(NoSubscriber::default());
    (set_default(subscriber), second)
}
