//! The errors of the memory backend.

use leasehold_core::{Error, ErrorKind};

pub(super) const NAME: &str = "memory";

pub(super) fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the acquisition was cancelled")
        .with_backend(NAME)
        .with_operation("acquire")
}

pub(super) fn lost(message: &'static str) -> Error {
    Error::new(ErrorKind::Lost, message)
        .with_backend(NAME)
        .with_operation("renew")
}

pub(super) fn revoked() -> Error {
    Error::new(
        ErrorKind::Revoked,
        "the lock was revoked and ends at its deadline",
    )
    .with_backend(NAME)
    .with_operation("renew")
}
