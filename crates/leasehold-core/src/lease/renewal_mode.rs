//! [`Renewal`]: the way in which a lease is renewed.

/// The way in which a lease is renewed.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::Renewal;
///
/// let mutex = client.mutex("item/42").with_renewal(Renewal::Manual);
/// let guard = mutex.lock().await?;
/// guard.renew().await?; // or the lock is released at its deadline
/// # drop(guard);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Renewal {
    /// The client renews the lease until its guard is dropped. If a guard is leaked
    /// (`mem::forget`), its lock is held until the process ends.
    #[default]
    Automatic,
    /// The owner of the guard calls [`LockGuard::renew`](crate::LockGuard::renew). A lease that is
    /// not renewed is released at its deadline.
    Manual,
}
