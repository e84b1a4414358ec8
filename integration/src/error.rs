use std::error::Error;
use std::fmt;

/// What the harness returns.
pub type Result<T, E = HarnessError> = std::result::Result<T, E>;

/// The harness itself failed: a server did not start, a process did not obey. The message is for
/// the person who reads the failed test, and names the remedy where there is one.
pub struct HarnessError {
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl HarnessError {
    /// An error that says `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            source: None,
        }
    }

    /// An error that says `message` and was caused by `source`.
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

/// As a test's `unwrap` and `main` print it: in full and readable, line breaks included.
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
