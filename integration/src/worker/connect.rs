use leasehold_core::{Error, ErrorKind, LockClient, Result, Ttl};
use leasehold_local::FileBackend;
use leasehold_redis::RedisBackend;

/// A client of what is at `url`, with this TTL and label.
///
/// # Errors
/// As the backend connects.
pub async fn client(url: &str, ttl: Ttl, label: &str) -> Result<LockClient> {
    let builder = match url.split_once(':') {
        Some(("file", dir)) => LockClient::builder(FileBackend::open(dir)?),
        Some(("redis", _)) => LockClient::builder(RedisBackend::connect(url).await?),
        _ => return Err(Error::new(ErrorKind::InvalidInput, "the tests know redis: and file:")),
    };
    Ok(builder.with_ttl(ttl).with_label(label).build())
}
