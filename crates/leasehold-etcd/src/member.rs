//! [`Member`]: one member of the cluster.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use etcd_client::{Channel, Client, ConnectOptions, KvClient, LeaseClient, WatchClient};
use tokio::time::Instant;
use tonic::transport::Endpoint;

use crate::{
    authenticator::{Authenticator, Failed},
    probe::Probe,
};

/// The longest answer that is read. The driver's default of 4 MiB is less than the queue of one
/// lock can be.
const LONGEST_ANSWER: usize = 16 << 20;

/// One member, and the connection to it if there is one.
pub(crate) struct Member {
    /// Such as `etcd://10.0.0.1:2379`; for people.
    pub(crate) address: String,
    source: Source,
    live: Mutex<Option<Arc<Live>>>,
}

enum Source {
    Url(Box<(Endpoint, ConnectOptions)>),
    /// The user's own client, which balances over whatever endpoints it has.
    Client(Box<Client>),
}

/// The driver's clients of one connection.
pub(crate) struct Live {
    pub(crate) client: Client,
    pub(crate) kv: KvClient,
    pub(crate) lease: LeaseClient,
    pub(crate) watch: WatchClient,
    /// How many tokens it has had.
    tokens: AtomicU64,
    /// One authentication at a time. Its failure, and when it was begun.
    authenticating: tokio::sync::Mutex<Option<(Instant, Failed)>>,
}

impl Live {
    fn of(client: &Client) -> Arc<Self> {
        Arc::new(Self {
            client: client.clone(),
            kv: client.kv_client().max_decoding_message_size(LONGEST_ANSWER),
            lease: client.lease_client(),
            watch: client
                .watch_client()
                .max_decoding_message_size(LONGEST_ANSWER),
            tokens: AtomicU64::new(0),
            authenticating: tokio::sync::Mutex::default(),
        })
    }

    /// Returns which token it has, to compare with a later one.
    pub(crate) fn token(&self) -> u64 {
        self.tokens.load(Ordering::Acquire)
    }
}

impl Member {
    pub(crate) fn at(endpoint: Endpoint, options: ConnectOptions) -> Self {
        // As the user's URL has it: the driver's has the scheme `http` or `https`.
        let address = endpoint
            .uri()
            .to_string()
            .trim_end_matches('/')
            .replacen("http", "etcd", 1);
        Self {
            address,
            source: Source::Url(Box::new((endpoint, options))),
            live: Mutex::default(),
        }
    }

    /// Whatever the user's own client is connected to.
    pub(crate) fn of(client: Client) -> Self {
        Self {
            address: "the given client".into(),
            source: Source::Client(Box::new(client)),
            live: Mutex::default(),
        }
    }

    /// Connects, unless another task has done so meanwhile.
    ///
    /// # Errors
    /// Also those of [`Probe::check`].
    pub(crate) async fn connect(
        &self,
        authenticator: &Authenticator,
        operation: &'static str,
        probe: &Probe,
    ) -> Result<Arc<Live>, Failed> {
        let live = match &self.source {
            // Does not connect yet, except to authenticate a user.
            Source::Url(url) => {
                let (endpoint, options) = &**url;
                let channel = Channel::Tonic(endpoint.connect_lazy());
                let client = Client::from_channel(channel, Some(options.clone())).await;
                let client = client.map_err(|error| Failed::of(error, operation, &self.address))?;
                authenticator
                    .authenticate(&client, operation, &self.address)
                    .await?;
                Live::of(&client)
            }
            Source::Client(client) => Live::of(client),
        };
        probe.check(&live, operation, &self.address).await?;
        Ok(Arc::clone(self.lock().get_or_insert(live)))
    }

    /// Gets another token, unless there is another than `refused` already. Those who ask at the
    /// same time share one answer.
    pub(crate) async fn authenticate(
        &self,
        live: &Live,
        refused: u64,
        authenticator: &Authenticator,
        operation: &'static str,
    ) -> Result<(), Failed> {
        let asked = Instant::now();
        let mut failure = live.authenticating.lock().await;
        if live.token() != refused {
            return Ok(());
        }
        if let Some((begun, failed)) = &*failure
            && *begun >= asked
        {
            return Err(failed.clone());
        }
        let begun = Instant::now();
        let outcome = authenticator
            .authenticate(&live.client, operation, &self.address)
            .await;
        match &outcome {
            Ok(()) => {
                live.tokens.fetch_add(1, Ordering::AcqRel);
                *failure = None;
            }
            Err(failed) => *failure = Some((begun, failed.clone())),
        }
        outcome
    }

    pub(crate) fn known(&self) -> Option<Arc<Live>> {
        self.lock().clone()
    }

    /// The next request connects anew: a connection to a member that was stopped may hang for long.
    pub(crate) fn forget(&self, live: &Arc<Live>) {
        let mut known = self.lock();
        if matches!(self.source, Source::Url(_))
            && known.as_ref().is_some_and(|known| Arc::ptr_eq(known, live))
        {
            *known = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
