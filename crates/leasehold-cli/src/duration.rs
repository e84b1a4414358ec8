//! The times on the command line, such as `500ms`, `30s` and `5m`.

use std::time::Duration;

use leasehold::Ttl;

/// Parses a TTL.
pub(crate) fn ttl(text: &str) -> Result<Ttl, String> {
    Ttl::new(duration(text)?).map_err(|error| error.to_string())
}

/// Parses a duration.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and its unit, as in 500ms, 30s or 5m"))
}
