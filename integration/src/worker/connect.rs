use leasehold::{LockClient, Result, Ttl};

/// Connects a client to `url` with this TTL and label.
///
/// # Errors
/// See [`leasehold::connect`].
///
/// # Cancel safety
/// See [`leasehold::connect`].
pub async fn client(url: &str, ttl: Ttl, label: &str) -> Result<LockClient> {
    leasehold::ConnectOptions::new()
        .with_ttl(ttl)
        .with_label(label)
        .connect(url)
        .await
}
