//! [`connect`] and [`ConnectOptions`], which create a client from a URL.

use std::sync::Arc;

use leasehold_core::{
    Capabilities, Error, LockClient, Result, Ttl,
    backend::{LazyBackend, LockBackend, support::contained},
};

use crate::scheme::Scheme;

/// Connects to the backend at `url`, and returns a client with the default options.
///
/// Use [`ConnectOptions`] to set a TTL or a label.
///
/// | URL | the lock is shared by |
/// |---|---|
/// | `memory:` | this client and its clones |
/// | `memory:NAME` | all clients of this process with the same name; kept until the process ends |
/// | `file:` | the programs of this user on this host. The directory is `FileBackend::default_dir()`: `/var/lib/leasehold` for root, and `.local/state/leasehold` in the home directory of other users |
/// | `file:DIR`, `file:///DIR` | the programs of this user on this host that use the directory. The path must start with `/` and is not decoded |
/// | `file:DIR?shared=true` | all programs on this host that can write the directory (`FileConfig::with_shared`) |
/// | `redis://[USER:PASSWORD@]HOST[:PORT][/DB][?prefix=…]` | all clients of the server. For the options see `RedisBackend::connect` |
/// | `rediss://…` | the same over TLS |
/// | `redis+unix:///PATH[?db=…]` | the same over a socket |
/// | `redlock://[USER:PASSWORD@]HOST[:PORT],HOST,…[/DB][?prefix=…]` | all clients of a majority of the servers. For the options see `redlock` in the Redis crate |
/// | `redlocks://…` | the same over TLS |
/// | `etcd://[USER:PASSWORD@]HOST[:PORT],…[/?prefix=…]` | all clients of the cluster. For the options see `EtcdBackend::connect` |
/// | `etcds://…` | the same over TLS |
/// | `postgres://[USER:PASSWORD@]HOST[:PORT]/DB[?prefix=…]` | all clients of the database. For the options see `PostgresBackend::connect`; `sslmode=verify-full` enables TLS |
/// | `zookeeper://[USER:PASSWORD@]HOST[:PORT],…[/PATH][?tick=…]` | all clients of the ensemble. For the options see `ZookeeperBackend::connect` |
/// | `zookeepers://…` | the same over TLS |
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use leasehold::ErrorKind;
///
/// let error = leasehold::connect("redis-sentinel://10.0.0.7").await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Unsupported);
/// let error = leasehold::connect("10.0.0.7:6379").await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// # }
/// ```
///
/// # Errors
/// - [`InvalidInput`](crate::ErrorKind::InvalidInput) for an invalid URL. The message has the URL
///   without its password.
/// - [`Unsupported`](crate::ErrorKind::Unsupported) if the feature of the scheme is disabled, or if
///   this version has no backend for it. The message names the feature.
/// - [`Unavailable`](crate::ErrorKind::Unavailable) or [`Denied`](crate::ErrorKind::Denied) as the
///   backend fails.
///
/// # Cancel safety
/// Safe: no connection is left behind.
pub async fn connect(url: &str) -> Result<LockClient> {
    ConnectOptions::new().connect(url).await
}

/// Creates a client that connects when it is first used, so that a program can start while its
/// server is down. The URL is checked at once.
///
/// Until the server is reached, operations fail with [`Unavailable`](crate::ErrorKind::Unavailable)
/// and the cause. A waiting acquisition retries, as [`Mutex::lock`](crate::Mutex::lock) documents.
/// Each operation tries to connect again, but at most one attempt runs at a time.
/// [`LockClient::ping`] only connects. Until then [`LockClient::capabilities`] are
/// [provisional](Capabilities::provisional). See [`LazyBackend`](crate::backend::LazyBackend) for
/// all guarantees. `memory:` and `file:` have no server and are opened at once.
///
/// The function may be called outside of a runtime.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
/// # #[cfg(feature = "redis")] {
/// let client = leasehold::connect_lazily("redis://10.0.0.1/?prefix=shop:")?;
/// // A readiness probe: ready once the server answers.
/// let ready = client.ping().await.is_ok();
/// # drop(ready);
/// # }
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) and
/// [`Unsupported`](crate::ErrorKind::Unsupported), as [`connect`].
pub fn connect_lazily(url: &str) -> Result<LockClient> {
    ConnectOptions::new().connect_lazily(url)
}

/// The options of a client that is created from a URL. All are optional.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> leasehold::Result<()> {
/// # #[cfg(feature = "local")] {
/// use std::time::Duration;
/// use leasehold::ConnectOptions;
///
/// let ttl = Duration::from_secs(5);
/// let client = ConnectOptions::new().with_ttl(ttl).with_label("till 3").connect("memory:").await?;
/// assert_eq!(client.mutex("item/42").lock().await?.ttl().as_duration(), ttl);
/// # }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ConnectOptions {
    ttl: Option<Result<Ttl>>,
    label: Option<Arc<str>>,
    order_warnings: Option<bool>,
}

impl ConnectOptions {
    /// Creates the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the default TTL for locks created by the client, as
    /// [`LockClientBuilder::with_ttl`](crate::LockClientBuilder::with_ttl) does. An invalid TTL is
    /// reported when the client connects.
    pub fn with_ttl<T>(mut self, ttl: T) -> Self
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        self.ttl = Some(ttl.try_into().map_err(Error::from));
        self
    }

    /// Sets the default label for locks created by the client, shown by `inspect`. Defaults to
    /// `host/pid/program`.
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets whether the client warns of tasks that lock the same keys in different orders, as
    /// [`LockClientBuilder::with_order_warnings`](crate::LockClientBuilder::with_order_warnings)
    /// does.
    pub fn with_order_warnings(mut self, warn: bool) -> Self {
        self.order_warnings = Some(warn);
        self
    }

    /// Connects to the backend at `url`.
    ///
    /// # Errors
    /// As [`connect`]. Also [`InvalidInput`](crate::ErrorKind::InvalidInput) for an invalid TTL.
    ///
    /// # Cancel safety
    /// As [`connect`].
    pub async fn connect(self, url: &str) -> Result<LockClient> {
        self.client(connect_backend(url).await?)
    }

    /// Creates a client that connects when it is first used.
    ///
    /// # Errors
    /// As [`connect_lazily`]. Also [`InvalidInput`](crate::ErrorKind::InvalidInput) for an invalid
    /// TTL.
    pub fn connect_lazily(self, url: &str) -> Result<LockClient> {
        let (scheme, rest) = Scheme::of(url)?;
        self.client(match scheme {
            Scheme::Memory => memory(scheme, rest)?,
            Scheme::File => file(scheme, url)?,
            _ => {
                let capabilities = provisional_capabilities(scheme, url)
                    .map_err(|error| with_url_context(error, url))?;
                let url = url.to_owned();
                Arc::new(LazyBackend::new(capabilities, move || {
                    let url = url.clone();
                    async move { connect_backend(&url).await }
                }))
            }
        })
    }

    fn client(self, backend: Arc<dyn LockBackend>) -> Result<LockClient> {
        let mut builder = LockClient::builder(backend);
        if let Some(ttl) = self.ttl {
            builder = builder.with_ttl(ttl?);
        }
        if let Some(label) = self.label {
            builder = builder.with_label(label);
        }
        if let Some(warn) = self.order_warnings {
            builder = builder.with_order_warnings(warn);
        }
        Ok(builder.build())
    }
}

/// Parses the URL, and returns the weakest capabilities of any server that it may lead to.
fn provisional_capabilities(scheme: Scheme, url: &str) -> Result<Capabilities> {
    // Unused if no backend is compiled in.
    let _ = url;
    match scheme {
        #[cfg(feature = "redis")]
        Scheme::Redis => leasehold_redis::RedisBackend::provisional_capabilities(url),
        #[cfg(feature = "redis-tls")]
        Scheme::RedisTls => leasehold_redis::RedisBackend::provisional_capabilities(url),
        #[cfg(feature = "redlock")]
        Scheme::Redlock => leasehold_redis::redlock_provisional_capabilities(url),
        #[cfg(all(feature = "redlock", feature = "redis-tls"))]
        Scheme::RedlockTls => leasehold_redis::redlock_provisional_capabilities(url),
        #[cfg(feature = "etcd")]
        Scheme::Etcd => leasehold_etcd::EtcdBackend::provisional_capabilities(url),
        #[cfg(feature = "etcd-tls")]
        Scheme::EtcdTls => leasehold_etcd::EtcdBackend::provisional_capabilities(url),
        #[cfg(feature = "postgres")]
        Scheme::Postgres => leasehold_postgres::PostgresBackend::provisional_capabilities(url),
        #[cfg(feature = "zookeeper")]
        Scheme::Zookeeper => leasehold_zookeeper::ZookeeperBackend::provisional_capabilities(url),
        #[cfg(feature = "zookeeper-tls")]
        Scheme::ZookeeperTls => {
            leasehold_zookeeper::ZookeeperBackend::provisional_capabilities(url)
        }
        scheme => Err(scheme.not_compiled_in()),
    }
}

/// Connects to the backend at `url`, and returns the backend without a client, to wrap or share it.
///
/// # Errors
/// As [`connect`].
///
/// # Cancel safety
/// As [`connect`].
pub async fn connect_backend(url: &str) -> Result<Arc<dyn LockBackend>> {
    let (scheme, rest) = Scheme::of(url)?;
    // A driver may panic, for example on a runtime without I/O.
    contained(open(scheme, url, rest)).await
}

async fn open(scheme: Scheme, url: &str, rest: &str) -> Result<Arc<dyn LockBackend>> {
    match scheme {
        Scheme::Memory => memory(scheme, rest),
        Scheme::File => file(scheme, url),
        Scheme::Redis if cfg!(feature = "redis") => redis(scheme, url).await,
        Scheme::RedisTls if cfg!(feature = "redis-tls") => redis(scheme, url).await,
        Scheme::Etcd if cfg!(feature = "etcd") => etcd(scheme, url).await,
        Scheme::EtcdTls if cfg!(feature = "etcd-tls") => etcd(scheme, url).await,
        Scheme::Postgres if cfg!(feature = "postgres") => postgres(scheme, url).await,
        Scheme::Redlock if cfg!(feature = "redlock") => quorum(scheme, url).await,
        Scheme::RedlockTls if cfg!(all(feature = "redlock", feature = "redis-tls")) => {
            quorum(scheme, url).await
        }
        Scheme::Zookeeper if cfg!(feature = "zookeeper") => zookeeper(scheme, url).await,
        Scheme::ZookeeperTls if cfg!(feature = "zookeeper-tls") => zookeeper(scheme, url).await,
        Scheme::Redis
        | Scheme::RedisTls
        | Scheme::Redlock
        | Scheme::RedlockTls
        | Scheme::Etcd
        | Scheme::EtcdTls
        | Scheme::Postgres
        | Scheme::Zookeeper
        | Scheme::ZookeeperTls => Err(scheme.not_compiled_in()),
    }
}

#[cfg(feature = "local")]
fn memory(_: Scheme, name: &str) -> Result<Arc<dyn LockBackend>> {
    Ok(crate::named::memory(name))
}

#[cfg(not(feature = "local"))]
fn memory(scheme: Scheme, _: &str) -> Result<Arc<dyn LockBackend>> {
    Err(scheme.not_compiled_in())
}

#[cfg(feature = "local")]
fn file(scheme: Scheme, url: &str) -> Result<Arc<dyn LockBackend>> {
    let Some((dir, config)) = crate::scheme::file_options(url)? else {
        return Err(scheme.not_compiled_in());
    };
    Ok(Arc::new(leasehold_local::FileBackend::open_with(
        dir, config,
    )?))
}

#[cfg(not(feature = "local"))]
fn file(scheme: Scheme, _: &str) -> Result<Arc<dyn LockBackend>> {
    Err(scheme.not_compiled_in())
}

#[cfg(feature = "redis")]
async fn redis(_: Scheme, url: &str) -> Result<Arc<dyn LockBackend>> {
    let connected = leasehold_redis::RedisBackend::connect(url).await;
    connected
        .map(|backend| backend as _)
        .map_err(|error| with_url_context(error, url))
}

#[cfg(not(feature = "redis"))]
async fn redis(scheme: Scheme, _: &str) -> Result<Arc<dyn LockBackend>> {
    Err(scheme.not_compiled_in())
}

#[cfg(feature = "redlock")]
async fn quorum(_: Scheme, url: &str) -> Result<Arc<dyn LockBackend>> {
    Ok(redlock(url).await?)
}

#[cfg(not(feature = "redlock"))]
async fn quorum(scheme: Scheme, _: &str) -> Result<Arc<dyn LockBackend>> {
    Err(scheme.not_compiled_in())
}

/// Connects to the quorum of a `redlock://` URL, to provision or inspect it. It is the same backend
/// as [`connect_backend`] returns.
///
/// # Errors
/// As [`connect`].
///
/// # Cancel safety
/// As [`connect`].
#[cfg(feature = "redlock")]
pub async fn redlock(url: &str) -> Result<Arc<leasehold_core::quorum::QuorumBackend>> {
    Scheme::of(url)?;
    leasehold_redis::redlock(url)
        .await
        .map_err(|error| with_url_context(error, url))
}

#[cfg(feature = "etcd")]
async fn etcd(_: Scheme, url: &str) -> Result<Arc<dyn LockBackend>> {
    let connected = leasehold_etcd::EtcdBackend::connect(url).await;
    connected
        .map(|backend| backend as _)
        .map_err(|error| with_url_context(error, url))
}

#[cfg(not(feature = "etcd"))]
async fn etcd(scheme: Scheme, _: &str) -> Result<Arc<dyn LockBackend>> {
    Err(scheme.not_compiled_in())
}

#[cfg(feature = "postgres")]
async fn postgres(_: Scheme, url: &str) -> Result<Arc<dyn LockBackend>> {
    let connected = leasehold_postgres::PostgresBackend::connect(url).await;
    connected
        .map(|backend| backend as _)
        .map_err(|error| with_url_context(error, url))
}

#[cfg(not(feature = "postgres"))]
async fn postgres(scheme: Scheme, _: &str) -> Result<Arc<dyn LockBackend>> {
    Err(scheme.not_compiled_in())
}

#[cfg(feature = "zookeeper")]
async fn zookeeper(_: Scheme, url: &str) -> Result<Arc<dyn LockBackend>> {
    let connected = leasehold_zookeeper::ZookeeperBackend::connect(url).await;
    connected
        .map(|backend| backend as _)
        .map_err(|error| with_url_context(error, url))
}

#[cfg(not(feature = "zookeeper"))]
async fn zookeeper(scheme: Scheme, _: &str) -> Result<Arc<dyn LockBackend>> {
    Err(scheme.not_compiled_in())
}

/// Adds the redacted URL to an error about it. Backends leave it out, because it may have a
/// password.
fn with_url_context(error: Error, url: &str) -> Error {
    use leasehold_core::ErrorKind;

    if error.kind() != ErrorKind::InvalidInput {
        return error;
    }
    let named = Error::new(
        ErrorKind::InvalidInput,
        format!(
            "`{}` cannot be used: {}",
            crate::redact::RedactedUrl(url),
            error.message()
        ),
    )
    .with_operation("connect");
    match error.backend() {
        Some(backend) => named.with_backend(backend),
        None => named,
    }
}
