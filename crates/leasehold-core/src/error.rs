//! [`Error`]: the one error type, and its [`ErrorKind`].

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc};

use crate::text::Escaped;

/// [`std::result::Result`] with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a program needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ErrorKind {
    /// A name, TTL, URL or option is not valid. Nothing was sent.
    InvalidInput,
    /// The backend cannot do what was asked; see its [`Capabilities`](crate::Capabilities). Nothing
    /// was sent.
    Unsupported,
    /// The backend could not be reached or could not answer, and what was asked did *not* happen.
    /// Also the outcome of a wait whose time was over before the backend answered.
    Unavailable,
    /// The answer is missing: what was asked may have happened. What was granted is given back or
    /// expires.
    Indeterminate,
    /// The backend refused the user, the password, or the access.
    Denied,
    /// The lease is over. Another may hold the lock by now.
    Lost,
    /// The client was closed.
    Closed,
    /// The request was cancelled. Only backends make this; callers who cancel have gone away.
    Cancelled,
    /// The client is used outside of a tokio runtime, or from another one than its own.
    Runtime,
    /// The same name is used in ways that exclude each other, such as two permit counts. Or the
    /// session of a backend has it already.
    Mismatch,
    /// The backend answered what it never should.
    Protocol,
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
            Self::Closed => "closed",
            Self::Cancelled => "cancelled",
            Self::Runtime => "wrong runtime",
            Self::Mismatch => "mismatch",
            Self::Protocol => "protocol violation",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

/// Why an operation failed.
///
/// [`Display`](fmt::Display) is one line: backend, operation, what happened, and what to do about
/// it. It escapes what does not print, because a message may contain the words of a server. The
/// driver's own error is the [`source`](StdError::source). Cloning is cheap, so that one failed
/// round trip can be told to all who shared it.
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
    /// An error of this kind; `message` says what happened and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner {
            kind,
            backend: None,
            operation: None,
            message: message.into(),
            source: None,
        }))
    }

    /// What went wrong, for programs.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns whether the same call may succeed later without any change: a fault may pass, bad
    /// input does not.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Unavailable | ErrorKind::Indeterminate
        )
    }

    /// The backend that failed, as its [`Capabilities`](crate::Capabilities) name it.
    #[must_use]
    pub fn backend(&self) -> Option<&'static str> {
        self.0.backend
    }

    /// The operation that failed, such as `acquire`.
    #[must_use]
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// The message alone, without backend and operation.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Names the backend.
    #[must_use]
    pub fn with_backend(mut self, backend: &'static str) -> Self {
        Arc::make_mut(&mut self.0).backend = Some(backend);
        self
    }

    /// Names the operation.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        Arc::make_mut(&mut self.0).operation = Some(operation);
        self
    }

    /// Keeps the error that caused this one.
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

/// So that a parameter may be `impl TryInto<LockKey>` and still take a [`LockKey`](crate::LockKey).
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
    fn the_words_of_a_server_reach_no_terminal_unescaped() {
        let error = Error::new(ErrorKind::Protocol, "the server says `\u{1b}[2J\u{202e}`");
        assert_eq!(error.to_string(), r"the server says `\u{1b}[2J\u{202e}`");
    }
}
