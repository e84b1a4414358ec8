//! [`Authenticator`]: tokens of connections, and their replacement when the server rejects them.
//!
//! A simple token expires, and every token becomes invalid when users or roles change. The driver
//! replaces a token only in the first case.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use etcd_client::Client;
use leasehold_core::{Credentials, CredentialsProvider, Error, ErrorKind};

use crate::error::{self, ERRORS, MemberError};

/// The source of the user and the password.
enum CredentialsSource {
    None,
    Url(Credentials),
    Provider(Arc<dyn CredentialsProvider>),
    /// Those of the user's own client.
    Client,
}

/// Authenticates connections.
pub(crate) struct Authenticator {
    source: CredentialsSource,
    /// Whether the cluster has accepted credentials before.
    accepted: AtomicBool,
}

impl Authenticator {
    /// Creates an authenticator with the credentials of `provider`, or else of the URL.
    pub(crate) fn new(
        provider: Option<Arc<dyn CredentialsProvider>>,
        url: Option<Credentials>,
    ) -> Self {
        let source = match (provider, url) {
            (Some(provider), _) => CredentialsSource::Provider(provider),
            (None, Some(credentials)) => CredentialsSource::Url(credentials),
            (None, None) => CredentialsSource::None,
        };
        Self {
            source,
            accepted: AtomicBool::new(false),
        }
    }

    /// Creates an authenticator with the credentials of `provider`, or else of the user's own
    /// client.
    pub(crate) fn of_client(provider: Option<Arc<dyn CredentialsProvider>>) -> Self {
        let source = provider.map_or(CredentialsSource::Client, CredentialsSource::Provider);
        Self {
            source,
            accepted: AtomicBool::new(false),
        }
    }

    /// Returns whether there are credentials to authenticate with.
    pub(crate) fn has_credentials(&self) -> bool {
        !matches!(self.source, CredentialsSource::None)
    }

    /// Obtains a new token for `client`. A server without users needs none.
    pub(crate) async fn authenticate(
        &self,
        client: &Client,
        operation: &'static str,
        address: &str,
    ) -> Result<(), MemberError> {
        let credentials = match &self.source {
            CredentialsSource::None => return Ok(()),
            CredentialsSource::Url(credentials) => Some(credentials.clone()),
            CredentialsSource::Provider(provider) => {
                let supplied = provider.credentials().await;
                Some(supplied.map_err(|error| MemberError::fatal(ERRORS.named(error, operation)))?)
            }
            CredentialsSource::Client => None,
        };
        let mut client = client.clone();
        let outcome = match credentials {
            None => client.refresh_token().await,
            Some(credentials) => {
                let Some(user) = credentials.username() else {
                    let message = "etcd has no default user; name one in the credentials";
                    return Err(MemberError::fatal(ERRORS.error(
                        ErrorKind::InvalidInput,
                        operation,
                        message,
                    )));
                };
                let user = (user.to_owned(), credentials.password().to_owned());
                match client.update_user(Some(user)).await {
                    Err(error) if error::is_without_users(&error) => client.update_user(None).await,
                    outcome => outcome,
                }
            }
        };
        match outcome {
            Ok(()) => {
                self.accepted.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                let MemberError { error, try_next } =
                    MemberError::from_driver(error, operation, address);
                Err(MemberError {
                    error: self.explained(error, operation),
                    try_next,
                })
            }
        }
    }

    /// Makes the rejection of credentials retryable if they were accepted before: a provider may
    /// have the next password a little later.
    fn explained(&self, error: Error, operation: &'static str) -> Error {
        let passes = matches!(self.source, CredentialsSource::Provider(_))
            && self.accepted.load(Ordering::Relaxed);
        if error.kind() != ErrorKind::Denied || !passes {
            return error;
        }
        let message = "the cluster rejects the credentials of the provider, which it accepted before; \
                       has the password been changed?";
        ERRORS
            .error(ErrorKind::Unavailable, operation, message)
            .with_source(error)
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("has_credentials", &self.has_credentials())
            .finish_non_exhaustive()
    }
}
