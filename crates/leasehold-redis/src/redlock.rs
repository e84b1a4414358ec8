//! [`redlock`]: from a URL to a quorum of servers.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use leasehold_core::{
    Error, ErrorKind, LockBackend, Result, Ttl,
    quorum::{QuorumBackend, QuorumConfig},
};

use crate::{
    backend::RedisBackend,
    error,
    location::{self, Location},
};

/// The backend's name in errors and capabilities.
const NAME: &str = "redlock";

/// A quorum of independent servers: Redlock with fencing tokens.
///
/// The URL is `redlock://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT],…[/DB][?OPTIONS]`, with an odd number of hosts, in the same
/// order everywhere; `redlocks://` is the same over TLS. The options are those of [`RedisBackend::connect`], for every
/// server, and
///
/// | option | |
/// |---|---|
/// | `node-timeout=200ms` | how long a server may take to answer; by default a twentieth of the TTL, from 50 ms to 1 s |
/// | `largest-ttl=60s` | the longest TTL of any lock; what the servers were provisioned with goes before it |
///
/// Servers that cannot be reached are no error as long as a majority can.
///
/// ```no_run
/// # async fn example() -> Result<(), leasehold_redis::Error> {
/// let backend = leasehold_redis::redlock("redlock://10.0.0.1,10.0.0.2,10.0.0.3/?prefix=shop:").await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// - [`ErrorKind::InvalidInput`] for the URL, naming what is wrong with it; for an even number of servers, or one named twice.
/// - [`ErrorKind::Unavailable`] if no majority can be reached, [`ErrorKind::Denied`] if a server refuses the user or the
///   password.
///
/// # Cancel safety
/// Safe: nothing is left behind.
pub async fn redlock(url: &str) -> Result<Arc<QuorumBackend>> {
    let Servers { urls, config } = Servers::parse(url)?;
    let locations = urls.iter().map(|url| Location::parse(url)).collect::<Result<Vec<_>>>()?;
    let opening = locations.into_iter().map(|Location { client, config }| async move {
        RedisBackend::from_client_if_reachable(&client, config).await
    });
    let servers = join_all(opening).await.into_iter().map(|server| server.map(|server| server as Arc<dyn LockBackend>));
    QuorumBackend::open(servers.collect::<Result<_>>()?, config).await
}

/// What the URL says: a URL for each server, and what concerns them all.
#[derive(Debug)]
struct Servers {
    urls: Vec<String>,
    config: QuorumConfig,
}

impl Servers {
    fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| invalid("write redlock://HOST,HOST,HOST"))?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "redlock" => "redis",
            "redlocks" => "rediss",
            _ => return Err(invalid("the scheme of a quorum is redlock: or redlocks:")),
        };
        let (place, fragment) = rest.split_once('#').map_or((rest, false), |(place, _)| (place, true));
        if fragment {
            return Err(invalid("a URL of this backend has no `#…`; write `%23` for a `#` in a password"));
        }
        let (place, query) = place.split_once('?').unwrap_or((place, ""));
        // The last `@`: what is before it should be encoded, and may not be.
        let (user, hosts) = place.rsplit_once('@').map_or((None, place), |(user, hosts)| (Some(user), hosts));
        let (hosts, db) = hosts.split_once('/').unwrap_or((hosts, ""));
        let mut config = QuorumConfig::new().with_name(NAME);
        let mut options = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("node-timeout", value)) => config = config.with_node_timeout(duration("node-timeout", value)?),
                Some(("largest-ttl", value)) => {
                    let ttl = Ttl::new(duration("largest-ttl", value)?)
                        .map_err(|error| invalid(format!("the option `largest-ttl`: {}", error.message())))?;
                    config = config.with_largest_ttl(ttl);
                }
                _ => options.push(option),
            }
        }
        let hosts: Vec<_> = hosts.split(',').collect();
        for (at, host) in hosts.iter().enumerate() {
            if host.is_empty() {
                return Err(invalid("one of the hosts is empty; write redlock://HOST,HOST,HOST"));
            }
            if hosts[..at].contains(host) {
                return Err(invalid(format!("`{host}` is named twice; a quorum needs independent servers")));
            }
        }
        if hosts.len().is_multiple_of(2) {
            return Err(invalid(format!("{} servers: give an odd number, such as 3 or 5", hosts.len())));
        }
        let user = user.map_or_else(String::new, |user| format!("{user}@"));
        let options = if options.is_empty() { String::new() } else { format!("?{}", options.join("&")) };
        let urls = hosts.into_iter().map(|host| format!("{scheme}://{user}{host}/{db}{options}")).collect();
        Ok(Self { urls, config })
    }
}

fn duration(name: &str, text: &str) -> Result<Duration> {
    location::duration(name, text).map_err(|error| invalid(error.message().to_owned()))
}

fn invalid(message: impl Into<String>) -> Error {
    error::plain(ErrorKind::InvalidInput, "connect", message).with_backend(NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_gets_the_user_the_database_and_the_options() {
        let servers =
            Servers::parse("redlock://ann:s%40@h1,h2:7000,[::1]/3?prefix=a&node-timeout=20ms&wakeup=poll").unwrap();
        assert_eq!(
            servers.urls,
            [
                "redis://ann:s%40@h1/3?prefix=a&wakeup=poll",
                "redis://ann:s%40@h2:7000/3?prefix=a&wakeup=poll",
                "redis://ann:s%40@[::1]/3?prefix=a&wakeup=poll"
            ]
        );
        assert_eq!(Servers::parse("REDLOCKS://h1").unwrap().urls, ["rediss://h1/"]);
        assert!(format!("{:?}", servers.config).contains("20ms"));
    }

    #[test]
    fn what_is_wrong_is_named_and_the_password_is_not() {
        for (url, named) in [
            ("redlock://u:secret@h1,h2", "odd"),
            ("redlock://u:secret@h1,h2,h1", "twice"),
            ("redlock://u:secret@h1,,h2", "empty"),
            ("redlock://u:secret@", "empty"),
            ("redlock://u:secret@h#x", "#"),
            ("redlock:h", "redlock://HOST"),
            ("redlock://u:secret@h?node-timeout=5", "node-timeout"),
            ("redlock://u:secret@h?largest-ttl=400000000s", "largest-ttl"),
        ] {
            let error = Servers::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
            assert!(error.to_string().contains(named), "{url}: {error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{url}: {error:?}");
        }
    }
}
