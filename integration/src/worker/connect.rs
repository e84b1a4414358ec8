use leasehold::{LockClient, LockClientBuilder, Result, Ttl};
use leasehold_postgres::PostgresBackend;

/// A client of what is at `url`, with this TTL and label.
///
/// # Errors
/// As [`leasehold::connect`], and as the backend connects.
///
/// # Cancel safety
/// As [`leasehold::connect`].
pub async fn client(url: &str, ttl: Ttl, label: &str) -> Result<LockClient> {
    Ok(builder(url).await?.with_ttl(ttl).with_label(label).build())
}

/// Also of backends that the facade is built without here.
async fn builder(url: &str) -> Result<LockClientBuilder> {
    match url.split(':').next() {
        Some("postgres") => Ok(LockClient::builder(PostgresBackend::connect(url).await?)),
        _ => leasehold::builder(url).await,
    }
}
