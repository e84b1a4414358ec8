//! The errors of the memory backend.

use leasehold_core::{Error, ErrorKind, backend::support::BackendErrors};

pub(super) const ERRORS: BackendErrors = BackendErrors::new("memory", "this process");

pub(super) fn cancelled() -> Error {
    ERRORS.error(
        ErrorKind::Cancelled,
        "acquire",
        "the acquisition was cancelled",
    )
}
