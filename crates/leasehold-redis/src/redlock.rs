//! [`redlock`]: from a URL to a quorum of servers.

use std::sync::Arc;

use futures_util::future::join_all;
use leasehold_core::{
    Capabilities, Error, ErrorKind, Result, Ttl,
    quorum::{QuorumBackend, QuorumConfig, QuorumMember},
    url::{BackendUrl, Host},
};

use crate::{
    backend::RedisBackend,
    config::{DEFAULT_PORT, ParsedUrl},
};

/// The backend's name in errors and capabilities.
const NAME: &str = "redlock";

/// Opens a quorum of independent servers: Redlock with fencing tokens.
///
/// The URL is `redlock://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT],…[/DB][?OPTIONS]`, with an odd
/// number of hosts. All clients must name them in the same order. `redlocks://` is the same over
/// TLS. The options of [`RedisBackend::connect`] apply to every server. The quorum adds these:
///
/// | option | |
/// |---|---|
/// | `node-timeout=200ms` | the maximum time for a server's answer; by default a twentieth of the TTL, from 50 ms to 1 s |
/// | `largest-ttl=60s` | the longest TTL of any lock; the value with which the servers were provisioned takes precedence |
///
/// Some servers may be unreachable or unusable, for example because they refuse the password or are
/// replicas. This is no error as long as a majority of the servers can be used. The log and
/// [`QuorumBackend::nodes`] name each such server with the reason, and it takes part as soon as it
/// can be used.
///
/// ```no_run
/// # async fn example() -> Result<(), leasehold_redis::Error> {
/// let url = "redlock://10.0.0.1,10.0.0.2,10.0.0.3/?prefix=shop:";
/// let backend = leasehold_redis::redlock(url).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// - [`ErrorKind::InvalidInput`] if the URL is invalid, has an even number of servers, or names a
///   server twice. The message names the problem.
/// - [`ErrorKind::Unavailable`] if no majority can be used, or [`ErrorKind::Denied`] if the reason
///   is that servers refuse the user or the password.
///
/// # Cancel safety
/// Safe. A cancelled call leaves nothing on the servers.
pub async fn redlock(url: &str) -> Result<Arc<QuorumBackend>> {
    let Servers { locations, config } = Servers::parse(url)?;
    let opening = locations
        .into_iter()
        .map(|ParsedUrl { client, config }| async move {
            RedisBackend::from_client_if_usable(&client, config).await
        });
    let servers = join_all(opening)
        .await
        .into_iter()
        .map(|server| server.map(|server| QuorumMember::Voting(server)));
    QuorumBackend::open(servers.collect::<Result<Vec<_>>>()?, config).await
}

/// Returns the capabilities that every quorum at `url` has, without connecting to it. A
/// [`LazyBackend`](leasehold_core::backend::LazyBackend) reports them until it is connected.
///
/// # Errors
/// Those of [`redlock`] for an invalid URL.
pub fn redlock_provisional_capabilities(url: &str) -> Result<Capabilities> {
    let Servers { locations, config } = Servers::parse(url)?;
    let servers = locations.into_iter().map(|ParsedUrl { client, config }| {
        RedisBackend::weakest(&client, config).map(|server| QuorumMember::Voting(Arc::new(server)))
    });
    Ok(QuorumBackend::provisional_capabilities(
        servers.collect::<Result<Vec<_>>>()?,
        &config,
    ))
}

/// The options of each server and of the quorum.
struct Servers {
    locations: Vec<ParsedUrl>,
    config: QuorumConfig,
}

impl Servers {
    /// Parses a URL. No error shows the URL itself: it may hold a password.
    fn parse(url: &str) -> Result<Self> {
        let mut url = BackendUrl::parse(url).map_err(ours)?;
        let tls = match url.scheme() {
            "redlock" => false,
            "redlocks" => true,
            _ => return Err(invalid("the scheme of a quorum is redlock: or redlocks:")),
        };
        let mut config = QuorumConfig::new().with_name(NAME);
        if let Some(timeout) = url.take_duration("node-timeout").map_err(ours)? {
            config = config.with_node_timeout(timeout);
        }
        if let Some(largest) = url.take_duration("largest-ttl").map_err(ours)? {
            let ttl = Ttl::new(largest).map_err(|error| {
                invalid(format!("the option `largest-ttl`: {}", error.message()))
            })?;
            config = config.with_largest_ttl(ttl);
        }
        let hosts = url.hosts().to_vec();
        if hosts.is_empty() {
            return Err(invalid(
                "the URL has no host; write redlock://HOST,HOST,HOST",
            ));
        }
        let address = |host: &Host| {
            (
                host.name().to_ascii_lowercase(),
                host.port().unwrap_or(DEFAULT_PORT),
            )
        };
        for (at, host) in hosts.iter().enumerate() {
            if let Some(before) = hosts[..at]
                .iter()
                .position(|before| address(before) == address(host))
            {
                let (before, at) = (before + 1, at + 1);
                return Err(invalid(format!(
                    "the hosts {before} and {at} of the URL are the same; a quorum needs independent servers"
                )));
            }
        }
        if hosts.len().is_multiple_of(2) {
            return Err(invalid(format!(
                "{} servers: give an odd number, such as 3 or 5",
                hosts.len()
            )));
        }
        let locations = hosts
            .iter()
            .map(|host| ParsedUrl::of_server(url.clone(), host, tls).map_err(ours));
        Ok(Self {
            locations: locations.collect::<Result<_>>()?,
            config,
        })
    }
}

fn ours(error: Error) -> Error {
    error.with_backend(NAME).with_operation("connect")
}

fn invalid(message: impl Into<String>) -> Error {
    ours(Error::new(ErrorKind::InvalidInput, message.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NotificationMode;

    #[test]
    fn every_server_gets_the_user_the_database_and_the_options() {
        let servers = Servers::parse(
            "redlock://ann:s%40@h1,h2:7000,[::1]/3?prefix=a&node-timeout=20ms&notifications=poll",
        )
        .unwrap();
        let addresses: Vec<_> = servers
            .locations
            .iter()
            .map(|ParsedUrl { client, config }| {
                let info = client.get_connection_info();
                let settings = info.redis_settings();
                assert_eq!(
                    (settings.username(), settings.password(), settings.db()),
                    (Some("ann"), Some("s@"), 3)
                );
                assert_eq!(
                    (&*config.prefix, config.notifications),
                    (b"a".as_slice(), NotificationMode::Polled)
                );
                info.addr().to_string()
            })
            .collect();
        assert_eq!(addresses, ["h1:6379", "h2:7000", "::1:6379"]);
        assert!(format!("{:?}", servers.config).contains("20ms"));
        #[cfg(feature = "tls")]
        assert_eq!(Servers::parse("REDLOCKS://h1").unwrap().locations.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_named_and_the_password_is_not() {
        for (url, named) in [
            ("redlock://u:secret@h1,h2", "odd"),
            ("redlock://u:secret@h1,h2,h1", "1 and 3"),
            ("redlock://u:secret@h1,h2,H2:6379", "2 and 3"),
            ("redlock://u:secret@h1,,h2", "empty"),
            ("redlock://u:secret@", "host"),
            ("redlock://u:secret@h#x", "#"),
            ("redlock:h", "SCHEME://HOST"),
            ("redlock://u:top/secret@h", "%2F"),
            ("redlock://:secret,secret,secret", "port"),
            ("redlock://u:secret@h/?secret", "prefix"),
            ("redis://u:secret@h", "scheme"),
            ("redlock://u:secret@h?node-timeout=5", "node-timeout"),
            (
                "redlock://u:secret@h?node-timeout=5s&node-timeout=5s",
                "more than once",
            ),
            ("redlock://u:secret@h?largest-ttl=400000000s", "largest-ttl"),
            ("redlock://u:x?secret@h", "%3F"),
            ("redlock://:secret", "port"),
            ("redlock://u:x@h?node-timeout=a@secret", "%40"),
            ("redlock://h?secret=x", "unknown"),
            ("redlock://h?prefix=a&prefix=secret", "more than once"),
            ("redlock://h?db=1", "redis+unix"),
        ] {
            let Err(error) = Servers::parse(url) else {
                panic!("{url} is accepted")
            };
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
            assert!(error.to_string().contains(named), "{url}: {error}");
            assert!(
                !format!("{error} {error:?}").contains("secret"),
                "{url}: {error:?}"
            );
        }
    }
}
