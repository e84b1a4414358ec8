use std::error::Error;
use std::fmt;

/// The result type of the harness.
pub type Result<T, E = HarnessError> = std::result::Result<T, E>;

/// A failure of the harness itself, such as a server that does not start. The message is for the
/// reader of the failed test and names a remedy if there is one.
pub struct HarnessError {
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl HarnessError {
    /// Creates an error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            source: None,
        }
    }

    /// Creates an error with this message and this source.
    pub fn caused_by(
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            message: message.into(),
            source: Some(source.into()),
        }
    }
}

impl fmt::Display for HarnessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Prints the whole error with line breaks, because `unwrap` and `main` print with `Debug`.
impl fmt::Debug for HarnessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.source
            .as_ref()
            .map_or(Ok(()), |source| write!(f, ": {source}"))
    }
}

impl Error for HarnessError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
