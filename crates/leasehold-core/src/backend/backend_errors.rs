//! [`BackendErrors`]: creates the errors of one backend. [`SideEffect`]: what a request without an
//! answer may have done.

use std::borrow::Cow;

use crate::error::{Error, ErrorKind};

/// Creates errors that name a backend and an operation.
///
/// ```
/// use leasehold_core::{ErrorKind, backend::support::BackendErrors};
///
/// const ERRORS: BackendErrors = BackendErrors::new("etcd", "an etcd server");
///
/// let error = ERRORS.error(ErrorKind::Lost, "renew", "the server knows no such lease");
/// assert_eq!(error.to_string(), "etcd: renew: the server knows no such lease");
/// assert!(ERRORS.unexpected("acquire").to_string().ends_with("is it an etcd server?"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BackendErrors {
    backend: &'static str,
    server: &'static str,
}

impl BackendErrors {
    /// Creates the errors of the backend `backend`, whose server is called `server` with its
    /// article: `an etcd server`.
    #[must_use]
    pub const fn new(backend: &'static str, server: &'static str) -> Self {
        Self { backend, server }
    }

    /// Returns the backend's name, as in its [`Capabilities`](crate::Capabilities).
    #[must_use]
    pub const fn backend(&self) -> &'static str {
        self.backend
    }

    /// Creates an error of the backend without a source.
    #[must_use]
    pub fn error(
        &self,
        kind: ErrorKind,
        operation: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Error {
        self.named(Error::new(kind, message), operation)
    }

    /// Creates the error of an answer that the server never sends.
    #[must_use]
    pub fn unexpected(&self, operation: &'static str) -> Error {
        let message = format!(
            "the answer does not fit the request; is it {}?",
            self.server
        );
        self.error(ErrorKind::UnexpectedResponse, operation, message)
    }

    /// Creates the error of a renewal after the lock was released.
    #[must_use]
    pub fn released(&self) -> Error {
        self.error(ErrorKind::Lost, "renew", "the lock was released")
    }

    /// Creates the error of a renewal after the lock was gracefully revoked.
    #[must_use]
    pub fn revoked(&self) -> Error {
        let message = "the lock was revoked and ends at its deadline";
        self.error(ErrorKind::Revoked, "renew", message)
    }

    /// Adds the backend and the operation to an error that names no backend, such as one of this
    /// crate.
    #[must_use]
    pub fn named(&self, error: Error, operation: &'static str) -> Error {
        if error.backend().is_some() {
            error
        } else {
            error.with_backend(self.backend).with_operation(operation)
        }
    }
}

/// The side effect that a request without an answer may have.
///
/// ```
/// use leasehold_core::{ErrorKind, backend::support::SideEffect};
///
/// assert_eq!(SideEffect::Writes.lost_answer(), ErrorKind::Indeterminate);
/// assert_eq!(SideEffect::None.lost_answer(), ErrorKind::Unavailable);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideEffect {
    /// The request changes data. Without an answer, it may have taken effect.
    Writes,
    /// The request changes nothing.
    None,
}

impl SideEffect {
    /// Returns the kind of the error if the answer is lost.
    #[must_use]
    pub const fn lost_answer(self) -> ErrorKind {
        match self {
            Self::Writes => ErrorKind::Indeterminate,
            Self::None => ErrorKind::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_that_names_a_backend_keeps_its_names() {
        let errors = BackendErrors::new("etcd", "an etcd server");
        let error = errors.named(Error::new(ErrorKind::Closed, "it is closed"), "acquire");
        assert_eq!(error.to_string(), "etcd: acquire: it is closed");
        let error = BackendErrors::new("redis", "a Redis server").named(error, "renew");
        assert_eq!(error.to_string(), "etcd: acquire: it is closed");
    }
}
