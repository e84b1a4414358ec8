use leasehold::{LockClient, Result, Ttl};

/// A client of what is at `url`, with this TTL and label.
///
/// # Errors
/// As [`leasehold::connect`].
///
/// # Cancel safety
/// As [`leasehold::connect`].
pub async fn client(url: &str, ttl: Ttl, label: &str) -> Result<LockClient> {
    leasehold::ConnectOptions::new()
        .with_ttl(ttl)
        .with_label(label)
        .connect(url)
        .await
}
