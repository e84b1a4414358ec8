//! [`Authenticator`]: how a connection gets its token, and another one when the server refuses it.
//!
//! A simple token expires, and no token outlives a change of the users and roles. The driver asks
//! for another one only in the first case.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use etcd_client::Client;
use leasehold_core::{Credentials, CredentialsProvider, Error, ErrorKind};

use crate::error::{self, MemberError};

/// Where the user and the password come from.
enum CredentialsSource {
    None,
    Url(Credentials),
    Provider(Arc<dyn CredentialsProvider>),
    /// The user's own client has them.
    Client,
}

/// Authenticates connections.
pub(crate) struct Authenticator {
    source: CredentialsSource,
    /// Whether the cluster has accepted credentials before.
    accepted: AtomicBool,
}

impl Authenticator {
    /// Authenticates with what `provider` supplies, otherwise with what the URL says.
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

    /// Authenticates with what `provider` supplies, otherwise with what the user's own client was
    /// made with.
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

    /// Gives `client` a new token. Without users on the server, it needs none.
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
                Some(supplied.map_err(|error| MemberError::fatal(error::named(error, operation)))?)
            }
            CredentialsSource::Client => None,
        };
        let mut client = client.clone();
        let outcome = match credentials {
            None => client.refresh_token().await,
            Some(credentials) => {
                let Some(user) = credentials.username() else {
                    let message = "etcd has no default user; name one in the credentials";
                    return Err(MemberError::fatal(error::plain(
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

    /// A provider that supplied what was accepted may be late with the next password: that passes.
    fn explained(&self, error: Error, operation: &'static str) -> Error {
        let passes = matches!(self.source, CredentialsSource::Provider(_))
            && self.accepted.load(Ordering::Relaxed);
        if error.kind() != ErrorKind::Denied || !passes {
            return error;
        }
        let message = "the cluster refuses what the credentials provider supplies, and accepted it before; \
                       has the password been changed?";
        error::plain(ErrorKind::Unavailable, operation, message).with_source(error)
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("has_credentials", &self.has_credentials())
            .finish_non_exhaustive()
    }
}
