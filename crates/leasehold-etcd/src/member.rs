//! [`Member`]: one member of the cluster.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_client::{Channel, Client, ConnectOptions, Error as Driver, KvClient, LeaseClient, WatchClient};
use tonic::transport::Endpoint;

/// One member, and the connection to it if there is one.
pub(crate) struct Member {
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
    pub(crate) kv: KvClient,
    pub(crate) lease: LeaseClient,
    pub(crate) watch: WatchClient,
}

impl Live {
    fn of(client: &Client) -> Arc<Self> {
        Arc::new(Self { kv: client.kv_client(), lease: client.lease_client(), watch: client.watch_client() })
    }
}

impl Member {
    pub(crate) fn at(endpoint: Endpoint, options: ConnectOptions) -> Self {
        let address = endpoint.uri().to_string().trim_end_matches('/').to_owned();
        Self { address, source: Source::Url(Box::new((endpoint, options))), live: Mutex::default() }
    }

    /// Whatever the user's own client is connected to.
    pub(crate) fn of(client: Client) -> Self {
        let live = Mutex::new(Some(Live::of(&client)));
        Self { address: "the given client".into(), source: Source::Client(Box::new(client)), live }
    }

    pub(crate) async fn connect(&self) -> Result<Arc<Live>, Driver> {
        let live = match &self.source {
            // Does not connect yet, except to authenticate a user.
            Source::Url(url) => {
                let (endpoint, options) = &**url;
                let channel = Channel::Tonic(endpoint.connect_lazy());
                Live::of(&Client::from_channel(channel, Some(options.clone())).await?)
            }
            Source::Client(client) => Live::of(client),
        };
        Ok(Arc::clone(self.lock().get_or_insert(live)))
    }

    pub(crate) fn known(&self) -> Option<Arc<Live>> {
        self.lock().clone()
    }

    /// The next request connects anew: a connection to a member that was stopped may hang for long.
    pub(crate) fn forget(&self, live: &Arc<Live>) {
        let mut known = self.lock();
        if matches!(self.source, Source::Url(_)) && known.as_ref().is_some_and(|known| Arc::ptr_eq(known, live)) {
            *known = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
