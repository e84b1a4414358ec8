//! [`CredentialsProvider`]: supplies the user name and the password of each new connection.

use std::fmt::{self, Debug};

use async_trait::async_trait;

use crate::error::Result;

/// A user name and a password for a server.
///
/// [`Debug`] shows the user name and never the password.
///
/// ```
/// use leasehold_core::Credentials;
///
/// let credentials = Credentials::new("secret").with_username("locks");
/// assert_eq!(credentials.username(), Some("locks"));
/// assert!(!format!("{credentials:?}").contains("secret"));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    username: Option<String>,
    password: String,
}

impl Credentials {
    /// Creates credentials of a server's default user.
    #[must_use]
    pub fn new(password: impl Into<String>) -> Self {
        Self {
            username: None,
            password: password.into(),
        }
    }

    /// Sets the user name.
    #[must_use]
    pub fn with_username(mut self, username: impl Into<String>) -> Self {
        self.username = Some(username.into());
        self
    }

    /// Returns the user name, or `None` for the server's default user.
    #[must_use]
    pub fn username(&self) -> Option<&str> {
        self.username.as_deref()
    }

    /// Returns the password.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }
}

impl Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Supplies the credentials of each new connection.
///
/// A backend calls the provider before it opens a connection, and again if the server refuses
/// credentials that it accepted before. Rotated passwords and expiring tokens therefore need no
/// restart of the program. Fixed [`Credentials`] implement this trait too.
///
/// # For implementors
/// `Debug` must show no secret, because the configuration of a backend prints its provider. A call
/// may be slow: the backend counts it towards its connect timeout. Calls may come from several
/// tasks at once. Return an error of kind [`Unavailable`](crate::ErrorKind::Unavailable) if the
/// source of the credentials does not answer.
///
/// ```
/// use leasehold_core::{Credentials, CredentialsProvider, Result, async_trait};
///
/// /// Reads the password from a file that a secret manager keeps up to date.
/// #[derive(Debug)]
/// struct FromFile(std::path::PathBuf);
///
/// #[async_trait]
/// impl CredentialsProvider for FromFile {
///     async fn credentials(&self) -> Result<Credentials> {
///         let password = std::fs::read_to_string(&self.0).map_err(|error| {
///             let message = "cannot read the password file";
///             leasehold_core::Error::new(leasehold_core::ErrorKind::Unavailable, message)
///                 .with_source(error)
///         })?;
///         Ok(Credentials::new(password.trim()).with_username("locks"))
///     }
/// }
/// ```
#[async_trait]
pub trait CredentialsProvider: Debug + Send + Sync + 'static {
    /// Returns the credentials that are valid now.
    ///
    /// # Errors
    /// Returns an error if the source of the credentials does not answer or has none.
    async fn credentials(&self) -> Result<Credentials>;
}

#[async_trait]
impl CredentialsProvider for Credentials {
    async fn credentials(&self) -> Result<Credentials> {
        Ok(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_password() {
        let shown = format!("{:?}", Credentials::new("TopSecret").with_username("locks"));
        assert!(
            shown.contains("locks") && !shown.contains("TopSecret"),
            "{shown}"
        );
    }
}
