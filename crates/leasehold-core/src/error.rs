//! [`Error`] and its [`ErrorKind`].

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc};

use crate::text::Escaped;

/// A [`Result`](std::result::Result) with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kind of an error, for programs that handle errors.
///
/// ```
/// use leasehold_core::{ErrorKind, LockKey};
///
/// let error = LockKey::new("").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ErrorKind {
    /// A name, TTL, URL or option is invalid. Nothing was sent.
    InvalidInput,
    /// The backend does not support the operation; see its [`Capabilities`](crate::Capabilities).
    /// Nothing was sent.
    Unsupported,
    /// The backend could not be reached or could not answer, and the operation did *not* take
    /// effect. It is also the outcome of a wait that ended before the backend answered.
    Unavailable,
    /// No answer arrived, so that the operation may have taken effect. A lock that was granted is
    /// released or expires.
    Indeterminate,
    /// The backend rejected the user, the password, or the access.
    Denied,
    /// The lease has ended. Another holder may have the lock.
    Lost,
    /// The lock was gracefully revoked. It stays held until its deadline and cannot be renewed.
    Revoked,
    /// The client was closed.
    Closed,
    /// The request was cancelled. Only backends return this kind, since a cancelled caller no
    /// longer waits for the result.
    Cancelled,
    /// The client is used outside a tokio runtime, or on another runtime than its own.
    WrongRuntime,
    /// The name is in use in an incompatible way: with another number of permits, or by the same
    /// session of the backend, or by another program.
    Conflict,
    /// The backend sent an answer that violates its protocol.
    UnexpectedResponse,
}

impl ErrorKind {
    const fn describe(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid input",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::Indeterminate => "indeterminate",
            Self::Denied => "denied",
            Self::Lost => "lost",
            Self::Revoked => "revoked",
            Self::Closed => "closed",
            Self::Cancelled => "cancelled",
            Self::WrongRuntime => "wrong runtime",
            Self::Conflict => "conflict",
            Self::UnexpectedResponse => "unexpected response",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

/// The error of a failed operation.
///
/// [`Display`](fmt::Display) prints one line with the backend, the operation, what happened, and
/// what to do about it. It escapes unprintable characters, because a message may contain text from
/// a server. The driver's error is the [`source`](StdError::source). Cloning is cheap, so that all
/// operations that share one failed round trip can return its error.
///
/// ```
/// # use leasehold_local::MemoryBackend;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold_core::Result<()> {
/// # use leasehold_core::LockClient;
/// # let client = LockClient::new(MemoryBackend::new());
/// use leasehold_core::ErrorKind;
///
/// let client = client.clone();
/// client.close().await?;
/// let error = client.mutex("item/42").lock().await.unwrap_err();
/// assert_eq!((error.kind(), error.backend()), (ErrorKind::Closed, Some("memory")));
/// assert!(!error.is_retryable());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    backend: Option<&'static str>,
    operation: Option<&'static str>,
    message: Cow<'static, str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Creates an error of this kind. `message` says what happened and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner {
            kind,
            backend: None,
            operation: None,
            message: message.into(),
            source: None,
        }))
    }

    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns whether the same call may succeed later without any change. This is true for
    /// faults that may pass, but not for invalid input.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Unavailable | ErrorKind::Indeterminate
        )
    }

    /// Returns whether a later acquisition may succeed: after a fault that may pass, and after a
    /// loss.
    pub(crate) fn may_pass(&self) -> bool {
        self.is_retryable() || matches!(self.0.kind, ErrorKind::Lost | ErrorKind::Revoked)
    }

    /// Returns the name of the backend that failed, as in its
    /// [`Capabilities`](crate::Capabilities).
    #[must_use]
    pub fn backend(&self) -> Option<&'static str> {
        self.0.backend
    }

    /// Returns the operation that failed, such as `acquire`.
    #[must_use]
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// Returns the message without the backend and the operation.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Sets the name of the backend.
    #[must_use]
    pub fn with_backend(mut self, backend: &'static str) -> Self {
        Arc::make_mut(&mut self.0).backend = Some(backend);
        self
    }

    /// Sets the name of the operation.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        Arc::make_mut(&mut self.0).operation = Some(operation);
        self
    }

    /// Sets the underlying error.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::from(source.into()));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        if let Some(backend) = inner.backend {
            write!(f, "{backend}: ")?;
        }
        if let Some(operation) = inner.operation {
            write!(f, "{operation}: ")?;
        }
        write!(f, "{}", Escaped(&inner.message))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind);
        if let Some(backend) = self.0.backend {
            out.field("backend", &backend);
        }
        if let Some(operation) = self.0.operation {
            out.field("operation", &operation);
        }
        out.field("message", &self.0.message);
        if let Some(source) = &self.0.source {
            out.field("source", source);
        }
        out.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}

/// Allows parameters of type `impl TryInto<LockKey>` to accept a [`LockKey`](crate::LockKey).
impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_shows_its_own_layer_and_keeps_the_source() {
        let error = Error::new(ErrorKind::Unavailable, "no answer within 1s")
            .with_backend("redis")
            .with_operation("acquire")
            .with_source(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(error.to_string(), "redis: acquire: no answer within 1s");
        let source = error
            .source()
            .unwrap()
            .downcast_ref::<std::io::Error>()
            .unwrap();
        assert_eq!(source.kind(), std::io::ErrorKind::BrokenPipe);
        assert!(error.is_retryable());
    }

    #[test]
    fn server_messages_are_escaped() {
        let error = Error::new(
            ErrorKind::UnexpectedResponse,
            "the server says `\u{1b}[2J\u{202e}`",
        );
        assert_eq!(error.to_string(), r"the server says `\u{1b}[2J\u{202e}`");
    }
}
