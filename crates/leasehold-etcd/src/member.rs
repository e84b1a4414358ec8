//! [`Member`]: one member of the cluster.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering};

use etcd_client::{Client, ConnectOptions};
use tokio::time::Instant;
use tonic::transport::Endpoint;

use crate::{
    authenticator::Authenticator, channel::Channel, error::MemberError, handshake::Handshake,
};

/// One member, and its connection if there is one.
pub(crate) struct Member {
    /// The address for error messages, such as `etcd://10.0.0.1:2379`.
    pub(crate) address: String,
    source: ChannelSource,
    channel: Mutex<Option<Arc<Channel>>>,
}

enum ChannelSource {
    Url(Box<(Endpoint, ConnectOptions)>),
    /// The user's own client, which balances over its endpoints.
    Client(Box<Client>),
}

impl Member {
    pub(crate) fn at(endpoint: Endpoint, options: ConnectOptions) -> Self {
        // The scheme of the user's URL; the driver's is `http` or `https`.
        let address = endpoint
            .uri()
            .to_string()
            .trim_end_matches('/')
            .replacen("http", "etcd", 1);
        Self {
            address,
            source: ChannelSource::Url(Box::new((endpoint, options))),
            channel: Mutex::default(),
        }
    }

    /// Creates a member from the user's own client.
    pub(crate) fn of(client: Client) -> Self {
        Self {
            address: "the given client".into(),
            source: ChannelSource::Client(Box::new(client)),
            channel: Mutex::default(),
        }
    }

    /// Connects, unless another task has connected in the meantime.
    ///
    /// # Errors
    /// Returns the errors of the driver and of [`Handshake::check`].
    pub(crate) async fn connect(
        &self,
        authenticator: &Authenticator,
        operation: &'static str,
        handshake: &Handshake,
    ) -> Result<Arc<Channel>, MemberError> {
        let channel = match &self.source {
            // This connects only to authenticate a user.
            ChannelSource::Url(url) => {
                let (endpoint, options) = &**url;
                let channel = etcd_client::Channel::Tonic(endpoint.connect_lazy());
                let client = Client::from_channel(channel, Some(options.clone())).await;
                let client = client
                    .map_err(|error| MemberError::from_driver(error, operation, &self.address))?;
                authenticator
                    .authenticate(&client, operation, &self.address)
                    .await?;
                Channel::new(&client)
            }
            ChannelSource::Client(client) => Channel::new(client),
        };
        handshake.check(&channel, operation, &self.address).await?;
        Ok(Arc::clone(self.lock().get_or_insert(channel)))
    }

    /// Requests another token, unless the token is no longer `refused`. Concurrent callers share
    /// one request.
    pub(crate) async fn authenticate(
        &self,
        channel: &Channel,
        refused: u64,
        authenticator: &Authenticator,
        operation: &'static str,
    ) -> Result<(), MemberError> {
        let called = Instant::now();
        let mut failure = channel.authenticating.lock().await;
        if channel.token() != refused {
            return Ok(());
        }
        if let Some((begun, failed)) = &*failure
            && *begun >= called
        {
            return Err(failed.clone());
        }
        let begun = Instant::now();
        let outcome = authenticator
            .authenticate(&channel.client, operation, &self.address)
            .await;
        match &outcome {
            Ok(()) => {
                channel.tokens.fetch_add(1, Ordering::AcqRel);
                *failure = None;
            }
            Err(failed) => *failure = Some((begun, failed.clone())),
        }
        outcome
    }

    pub(crate) fn channel(&self) -> Option<Arc<Channel>> {
        self.lock().clone()
    }

    /// Makes the next request open a new connection. A connection to a member that was stopped may
    /// hang for a long time.
    pub(crate) fn discard(&self, channel: &Arc<Channel>) {
        let mut current = self.lock();
        if matches!(self.source, ChannelSource::Url(_))
            && current
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(current, channel))
        {
            *current = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Channel>>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
