//! [`Case`]: one named property of a backend, and the capabilities that it needs.

use std::fmt;

use leasehold_core::{
    Capabilities, Expiry, Fencing, LossDetection, Records, WaiterNotification, backend::BoxFuture,
};

use crate::backend_fixture::BackendFixture;

/// A check of whether a case applies to a backend. `Err` is the reason why it does not.
pub type Needs = fn(&Capabilities) -> Result<(), &'static str>;

/// One named property of a backend.
///
/// ```
/// use leasehold_testkit::{Outcome, cases, mutants::ModelFixture, run_case};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let case = cases::all().into_iter().find(|case| case.name == "readers_share").unwrap();
/// assert_eq!(case.concept, "modes");
/// assert_eq!(run_case(&ModelFixture::healthy(), &case).await, Outcome::Passed);
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct Case {
    /// The name of the case, which states the property.
    pub name: &'static str,
    /// The concept that the property belongs to, which is its module in [`cases`](crate::cases).
    pub concept: &'static str,
    /// Checks that the backend has the capabilities that the case needs.
    pub needs: Needs,
    /// Runs the case. Panics if the property does not hold.
    pub run: for<'a> fn(&'a dyn BackendFixture) -> BoxFuture<'a, ()>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Case({}::{})", self.concept, self.name)
    }
}

fn when(able: bool, reason: &'static str) -> Result<(), &'static str> {
    if able { Ok(()) } else { Err(reason) }
}

pub(crate) fn exclusive(c: &Capabilities) -> Result<(), &'static str> {
    when(c.exclusive, "there are no exclusive locks")
}

pub(crate) fn shared(c: &Capabilities) -> Result<(), &'static str> {
    exclusive(c)?;
    when(c.shared, "there are no shared locks")
}

pub(crate) fn permits(c: &Capabilities) -> Result<(), &'static str> {
    when(c.permits, "there are no permits")
}

pub(crate) fn a_mode_is_missing(c: &Capabilities) -> Result<(), &'static str> {
    when(
        !(c.exclusive && c.shared && c.permits),
        "every mode is supported",
    )
}

pub(crate) fn expiry(c: &Capabilities) -> Result<(), &'static str> {
    exclusive(c)?;
    when(
        c.expiry != Expiry::ProcessDeath,
        "locks end with the process, not by a TTL",
    )
}

pub(crate) fn tokens(c: &Capabilities) -> Result<(), &'static str> {
    exclusive(c)?;
    when(c.fencing > Fencing::None, "there are no fencing tokens")
}

pub(crate) fn tokens_and_expiry(c: &Capabilities) -> Result<(), &'static str> {
    tokens(c)?;
    expiry(c)
}

pub(crate) fn shared_tokens(c: &Capabilities) -> Result<(), &'static str> {
    shared(c)?;
    tokens(c)
}

pub(crate) fn pushed_notification(c: &Capabilities) -> Result<(), &'static str> {
    exclusive(c)?;
    when(
        c.waiter_notification == WaiterNotification::Pushed,
        "waiters are not notified, but poll",
    )
}

pub(crate) fn inspection(c: &Capabilities) -> Result<(), &'static str> {
    exclusive(c)?;
    when(c.inspect, "locks cannot be inspected")
}

pub(crate) fn revocation(c: &Capabilities) -> Result<(), &'static str> {
    inspection(c)?;
    when(c.revoke, "locks cannot be revoked")
}

pub(crate) fn revocation_is_reported(c: &Capabilities) -> Result<(), &'static str> {
    revocation(c)?;
    when(
        c.loss_detection != LossDetection::Deadline,
        "a loss is only detected at the deadline",
    )
}

pub(crate) fn records(c: &Capabilities) -> Result<(), &'static str> {
    exclusive(c)?;
    when(
        c.records > Records::None,
        "there are no records beside locks",
    )
}

pub(crate) fn records_and_expiry(c: &Capabilities) -> Result<(), &'static str> {
    records(c)?;
    expiry(c)
}

pub(crate) fn records_and_another_mode(c: &Capabilities) -> Result<(), &'static str> {
    records(c)?;
    when(c.shared || c.permits, "every lock is exclusive")
}

pub(crate) fn records_and_revocation(c: &Capabilities) -> Result<(), &'static str> {
    records(c)?;
    revocation(c)
}

pub(crate) fn records_and_notification(c: &Capabilities) -> Result<(), &'static str> {
    records(c)?;
    pushed_notification(c)
}

pub(crate) fn no_records(c: &Capabilities) -> Result<(), &'static str> {
    exclusive(c)?;
    when(c.records == Records::None, "there are records beside locks")
}

pub(crate) fn bounded_ttl(c: &Capabilities) -> Result<(), &'static str> {
    use leasehold_core::Ttl;
    exclusive(c)?;
    when(
        c.min_ttl > Ttl::MIN || c.max_ttl < Ttl::MAX,
        "every TTL is supported",
    )
}
