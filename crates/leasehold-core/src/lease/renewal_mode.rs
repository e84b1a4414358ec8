//! [`Renewal`]: who renews a lease.

/// Who renews a lease.
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
    /// The client, for as long as the guard lives. A guard that is leaked (`mem::forget`) is held
    /// until the process ends.
    #[default]
    Automatic,
    /// Whoever has the guard, by [`LockGuard::renew`](crate::LockGuard::renew). What is not renewed
    /// is released at its deadline.
    Manual,
}
