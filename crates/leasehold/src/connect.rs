//! From a URL to a client.

use std::sync::Arc;

use leasehold_core::{
    Capabilities, Error, LockClient, Result, Ttl,
    backend::{LazyBackend, LockBackend, support::contained},
};

use crate::scheme::Scheme;

/// Connects to the backend that `url` names, and returns a client with the defaults.
///
/// [`ConnectOptions`] sets a TTL and a label.
///
/// | URL | |
/// |---|---|
/// | `memory:` | locks among the users of this one client and its clones |
/// | `memory:NAME` | locks among all clients of this process that say the same name; kept until the process ends |
/// | `file:` | locks among this user's programs on this host, in `FileBackend::default_dir()`: `/var/lib/leasehold` for root, `.local/state/leasehold` in the home directory of others |
/// | `file:DIR`, `file:///DIR` | locks among this user's programs on this host that use the directory; the path is taken as it stands, and begins with `/` |
/// | `file:DIR?shared=true` | locks among all programs on this host that can write the directory (`FileConfig::with_shared`) |
/// | `redis://[USER:PASSWORD@]HOST[:PORT][/DB][?prefix=…]` | locks among all who reach the server; the options are those of `RedisBackend::connect` |
/// | `rediss://…` | the same over TLS |
/// | `redis+unix:///PATH[?db=…]` | the same over a socket |
/// | `redlock://[USER:PASSWORD@]HOST[:PORT],HOST,…[/DB][?prefix=…]` | locks among all who reach a majority of the servers; the options are those of `redlock` in the Redis crate |
/// | `redlocks://…` | the same over TLS |
/// | `etcd://[USER:PASSWORD@]HOST[:PORT],…[/?prefix=…]` | locks among all who reach the cluster; the options are those of `EtcdBackend::connect` |
/// | `etcds://…` | the same over TLS |
/// | `postgres://[USER:PASSWORD@]HOST[:PORT]/DB[?prefix=…]` | locks among all who reach the database; the options are those of `PostgresBackend::connect`, TLS with `sslmode=verify-full` |
/// | `zookeeper://[USER:PASSWORD@]HOST[:PORT],…[/PATH][?tick=…]` | locks among all who reach the ensemble; the options are those of `ZookeeperBackend::connect` |
/// | `zookeepers://…` | the same over TLS |
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use leasehold::ErrorKind;
///
/// assert_eq!(leasehold::connect("redis-sentinel://10.0.0.7").await.unwrap_err().kind(), ErrorKind::Unsupported);
/// assert_eq!(leasehold::connect("10.0.0.7:6379").await.unwrap_err().kind(), ErrorKind::InvalidInput);
/// # }
/// ```
///
/// # Errors
/// - [`InvalidInput`](crate::ErrorKind::InvalidInput) for a URL that cannot be read. It is named,
///   without its password.
/// - [`Unsupported`](crate::ErrorKind::Unsupported) for a scheme whose feature is off (it is
///   named), or whose backend this version does not have.
/// - [`Unavailable`](crate::ErrorKind::Unavailable) and [`Denied`](crate::ErrorKind::Denied) as the
///   backend says.
///
/// # Cancel safety
/// Safe: nothing is left behind.
pub async fn connect(url: &str) -> Result<LockClient> {
    ConnectOptions::new().connect(url).await
}

/// Returns a client as [`connect`] does, which connects when it is first used: the program starts
/// while the server is down. The URL is checked at once.
///
/// Until the server is reached, operations fail with [`Unavailable`](crate::ErrorKind::Unavailable)
/// and the cause, except that a lock that waits tries again, as [`Mutex::lock`](crate::Mutex::lock)
/// documents. Each operation tries to connect again, with one attempt under way at a time, and
/// [`LockClient::ping`] does nothing else. [`LockClient::capabilities`] are
/// [provisional](Capabilities::provisional) until then. See
/// [`LazyBackend`](crate::backend::LazyBackend) for all that is guaranteed. `memory:` and `file:`
/// have no server: they are opened at once.
///
/// It needs no runtime.
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
/// As [`connect`] for what is wrong without asking a server:
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) and
/// [`Unsupported`](crate::ErrorKind::Unsupported).
pub fn connect_lazily(url: &str) -> Result<LockClient> {
    ConnectOptions::new().connect_lazily(url)
}

/// Options of a client that is connected by a URL. Each may be left out.
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
}

impl ConnectOptions {
    /// Returns the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the TTL of locks that have none of their own, as
    /// [`LockClientBuilder::with_ttl`](crate::LockClientBuilder::with_ttl) does. A TTL that is not
    /// valid is an error when the client connects.
    pub fn with_ttl<T>(mut self, ttl: T) -> Self
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        self.ttl = Some(ttl.try_into().map_err(Error::from));
        self
    }

    /// Sets the label of locks that have none of their own, for people who inspect locks. Defaults
    /// to `host/pid/program`.
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Connects to the backend that `url` names.
    ///
    /// # Errors
    /// As [`connect`], and [`InvalidInput`](crate::ErrorKind::InvalidInput) for a TTL.
    ///
    /// # Cancel safety
    /// As [`connect`].
    pub async fn connect(self, url: &str) -> Result<LockClient> {
        self.client(connect_backend(url).await?)
    }

    /// Returns a client that connects when it is first used.
    ///
    /// # Errors
    /// As [`connect_lazily`], and [`InvalidInput`](crate::ErrorKind::InvalidInput) for a TTL.
    pub fn connect_lazily(self, url: &str) -> Result<LockClient> {
        let (scheme, rest) = Scheme::of(url)?;
        self.client(match scheme {
            Scheme::Memory => memory(scheme, rest)?,
            Scheme::File => file(scheme, url)?,
            _ => {
                let capabilities = provisional_capabilities(scheme, url)
                    .map_err(|error| naming_the_url(error, url))?;
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
        Ok(builder.build())
    }
}

/// Reads the URL, and returns what any server there does.
fn provisional_capabilities(scheme: Scheme, url: &str) -> Result<Capabilities> {
    // Without a backend.
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

/// Connects to the backend that `url` names, and returns the backend alone, to be wrapped or
/// shared.
///
/// # Errors
/// As [`connect`].
///
/// # Cancel safety
/// As [`connect`].
pub async fn connect_backend(url: &str) -> Result<Arc<dyn LockBackend>> {
    let (scheme, rest) = Scheme::of(url)?;
    // A driver may panic, as on a runtime that does no I/O.
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
        .map_err(|error| naming_the_url(error, url))
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

/// Connects to the quorum of a `redlock://` URL, to be provisioned or looked at. As a backend it is
/// what [`connect_backend`] returns.
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
        .map_err(|error| naming_the_url(error, url))
}

#[cfg(feature = "etcd")]
async fn etcd(_: Scheme, url: &str) -> Result<Arc<dyn LockBackend>> {
    let connected = leasehold_etcd::EtcdBackend::connect(url).await;
    connected
        .map(|backend| backend as _)
        .map_err(|error| naming_the_url(error, url))
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
        .map_err(|error| naming_the_url(error, url))
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
        .map_err(|error| naming_the_url(error, url))
}

#[cfg(not(feature = "zookeeper"))]
async fn zookeeper(scheme: Scheme, _: &str) -> Result<Arc<dyn LockBackend>> {
    Err(scheme.not_compiled_in())
}

/// A backend does not repeat the URL, which may hold a password; here it is shown without.
fn naming_the_url(error: Error, url: &str) -> Error {
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
