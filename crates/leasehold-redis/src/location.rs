//! The URL.

use std::{path::PathBuf, time::Duration};

use leasehold_core::{Error, ErrorKind, Result};
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use url::Url;

use crate::{
    config::{RedisConfig, WakeMode},
    error,
};

const DEFAULT_PORT: u16 = 6379;

/// What a URL says.
pub(crate) struct Location {
    pub(crate) client: Client,
    pub(crate) config: RedisConfig,
}

impl Location {
    /// Parses a URL. No error shows the URL itself: it may hold a password.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let url = Url::parse(url).map_err(|error| invalid(format!("the URL cannot be parsed: {error}")))?;
        let (unix, tls) = match url.scheme() {
            "redis" | "valkey" => (false, false),
            "rediss" | "valkeys" => (false, true),
            "redis+unix" | "valkey+unix" => (true, false),
            other => {
                return Err(invalid(format!(
                    "`{other}:` is not a scheme of this backend; use redis:, rediss: or redis+unix:"
                )));
            }
        };
        if url.fragment().is_some() {
            return Err(invalid("a URL of this backend has no `#…`; write `%23` for a `#` in a password"));
        }
        let mut options = Options::read(&url, unix, tls)?;
        let info = if unix { options.unix(&url)? } else { options.tcp(&url, tls)? };
        let mut settings = RedisConnectionInfo::default().set_db(options.db.unwrap_or(0));
        if let Some(user) = options.user.take() {
            settings = settings.set_username(user);
        }
        if let Some(pass) = options.pass.take() {
            settings = settings.set_password(pass);
        }
        let client = open(info.set_redis_settings(settings), options.ca.as_deref())?;
        Ok(Self { client, config: options.config })
    }
}

/// What stands in the URL beside the address.
struct Options {
    config: RedisConfig,
    db: Option<i64>,
    user: Option<String>,
    pass: Option<String>,
    ca: Option<PathBuf>,
}

impl Options {
    fn read(url: &Url, unix: bool, tls: bool) -> Result<Self> {
        let mut options = Self { config: RedisConfig::new(), db: None, user: None, pass: None, ca: None };
        for (name, value) in url.query_pairs() {
            if value.contains(char::REPLACEMENT_CHARACTER) {
                return Err(invalid(format!("the option `{}` is not UTF-8 when decoded", name.escape_debug())));
            }
            let config = options.config.clone();
            match &*name {
                "prefix" => options.config = config.with_prefix(value.as_bytes()),
                "connect-timeout" => options.config = config.with_connect_timeout(duration(&name, &value)?),
                "response-timeout" => options.config = config.with_response_timeout(duration(&name, &value)?),
                "nodelay" => options.config = config.with_nodelay(flag(&name, &value)?),
                "wakeup" => options.config = config.with_wake_up(wake_mode(&value)?),
                "ca" if tls => options.ca = Some(PathBuf::from(value.into_owned())),
                "ca" => return Err(invalid("the option `ca` needs TLS: write rediss:")),
                "db" if unix => options.db = Some(database(&value)?),
                "user" if unix => options.user = Some(value.into_owned()),
                "pass" if unix => options.pass = Some(value.into_owned()),
                "db" | "user" | "pass" => {
                    return Err(invalid(format!(
                        "the option `{name}` is for redis+unix:; here write redis://user:pass@host:port/db"
                    )));
                }
                _ => {
                    return Err(invalid(format!(
                        "`{}` is not an option; there are prefix, connect-timeout, response-timeout, nodelay, wakeup, and ca \
                         for rediss:, and db, user, pass for redis+unix:",
                        name.escape_debug()
                    )));
                }
            }
        }
        Ok(options)
    }

    fn tcp(&mut self, url: &Url, tls: bool) -> Result<ConnectionInfo> {
        // `host_str` has brackets around an IPv6 address, which the resolver does not take.
        let host = match url.host() {
            Some(url::Host::Domain(name)) if !name.is_empty() => decoded("host", name)?,
            Some(url::Host::Ipv4(address)) => address.to_string(),
            Some(url::Host::Ipv6(address)) => address.to_string(),
            _ => return Err(invalid("the URL has no host; write redis://127.0.0.1/")),
        };
        let port = url.port().unwrap_or(DEFAULT_PORT);
        match url.path().trim_start_matches('/') {
            "" => {}
            db => self.db = Some(database(db)?),
        }
        if !url.username().is_empty() {
            self.user = Some(decoded("user", url.username())?);
        }
        if let Some(pass) = url.password() {
            self.pass = Some(decoded("password", pass)?);
        }
        let address = if tls {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        info_of(address)
    }

    fn unix(&self, url: &Url) -> Result<ConnectionInfo> {
        if url.host_str().is_some_and(|host| !host.is_empty()) || !url.path().starts_with("/") || url.path() == "/" {
            return Err(invalid("the URL has no absolute path to a socket; write redis+unix:///run/redis.sock"));
        }
        info_of(ConnectionAddr::Unix(PathBuf::from(decoded("path", url.path())?)))
    }
}

fn info_of(address: ConnectionAddr) -> Result<ConnectionInfo> {
    if !address.is_supported() {
        let remedy = match address {
            ConnectionAddr::Unix(_) => "this platform has no unix sockets; use redis:",
            _ => "rediss: needs the feature `tls` of leasehold-redis; enable it in Cargo.toml",
        };
        return Err(error::plain(ErrorKind::Unsupported, "connect", remedy));
    }
    address.into_connection_info().map_err(|error| error::of_command(error, "connect", error::Effect::None))
}

#[cfg(feature = "tls")]
fn open(info: ConnectionInfo, ca: Option<&std::path::Path>) -> Result<Client> {
    match (info.addr(), ca) {
        (ConnectionAddr::TcpTls { .. }, Some(path)) => {
            let pem = std::fs::read(path)
                .map_err(|error| invalid(format!("cannot read the CA file {}: {error}", path.display())))?;
            let certificates = redis::TlsCertificates { client_tls: None, root_cert: Some(pem) };
            Client::build_with_tls(info, certificates).map_err(|error| {
                invalid(format!("{} is not a file of PEM certificates: {error}", path.display())).with_source(error)
            })
        }
        _ => Client::open(info).map_err(|error| error::of_command(error, "connect", error::Effect::None)),
    }
}

#[cfg(not(feature = "tls"))]
fn open(info: ConnectionInfo, _ca: Option<&std::path::Path>) -> Result<Client> {
    Client::open(info).map_err(|error| error::of_command(error, "connect", error::Effect::None))
}

fn invalid(message: impl Into<String>) -> Error {
    error::plain(ErrorKind::InvalidInput, "connect", message)
}

fn decoded(what: &str, text: &str) -> Result<String> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| invalid(format!("the {what} in the URL is not UTF-8 when decoded")))
}

fn database(text: &str) -> Result<i64> {
    text.parse::<u32>()
        .map(i64::from)
        .map_err(|_| invalid("the database in the URL is not a number; write redis://host/0"))
}

pub(crate) fn duration(name: &str, text: &str) -> Result<Duration> {
    let parsed = match text.strip_suffix("ms") {
        Some(millis) => millis.parse().map(Duration::from_millis),
        None => text.strip_suffix('s').unwrap_or("").parse().map(Duration::from_secs),
    };
    parsed
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| invalid(format!("the option `{name}` is not a time such as 500ms or 2s")))
}

fn flag(name: &str, text: &str) -> Result<bool> {
    text.parse().map_err(|_| invalid(format!("the option `{name}` is `true` or `false`")))
}

fn wake_mode(text: &str) -> Result<WakeMode> {
    match text {
        "push" => Ok(WakeMode::Pushed),
        "poll" => Ok(WakeMode::Polled),
        _ => Err(invalid("the option `wakeup` is `push` or `poll`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> Error {
        match Location::parse(url) {
            Ok(_) => panic!("{url} was accepted"),
            Err(error) => error,
        }
    }

    #[test]
    fn a_url_says_everything() {
        let location = Location::parse(
            "redis://al%40ice:p%23ss%2F@[::1]:7000/3?prefix=shop%3A&connect-timeout=200ms&response-timeout=3s&nodelay=false&wakeup=poll",
        )
        .unwrap();
        let info = location.client.get_connection_info();
        assert_eq!(info.addr(), &ConnectionAddr::Tcp("::1".into(), 7000));
        let settings = info.redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("al@ice"), Some("p#ss/"), 3));
        let config = location.config;
        assert_eq!(&*config.prefix, b"shop:");
        assert_eq!((config.connect_timeout.as_millis(), config.response_timeout.as_millis()), (200, 3000));
        assert_eq!((config.nodelay, config.wake_up), (false, WakeMode::Polled));
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_is_named_by_its_path() {
        let location = Location::parse("redis+unix:///run/my%20redis.sock?db=2&user=u&pass=p&prefix=x").unwrap();
        let info = location.client.get_connection_info();
        assert_eq!(info.addr(), &ConnectionAddr::Unix("/run/my redis.sock".into()));
        let settings = info.redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("u"), Some("p"), 2));
    }

    #[test]
    fn what_is_wrong_is_named_and_the_password_is_not() {
        for (url, named) in [
            ("redis://:secret@h/?prefx=a", "prefx"),
            ("redis://:secret@h/x", "database"),
            ("redis://:secret@h/-1", "database"),
            ("redis://:secret@h:99999/", "port"),
            ("redis://:secret@h/?wakeup=never", "wakeup"),
            ("redis://:secret@h/?connect-timeout=5", "connect-timeout"),
            ("redis://:secret@h/?connect-timeout=0ms", "connect-timeout"),
            ("redis://:secret@h/?db=1", "redis+unix"),
            ("redis://:secret@h/?ca=/x", "rediss"),
            ("redis://:secret@h/#insecure", "#"),
            ("redis://:secret@h/?prefix=%ff", "prefix"),
            ("redis:///0", "host"),
            ("http://:secret@h/", "http"),
            ("redis+unix://h/x?pass=secret", "path"),
            ("redis+unix:///?pass=secret", "path"),
            ("secret", "parsed"),
        ] {
            let error = refused(url);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
            assert!(error.to_string().contains(named), "{url}: {error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{url}: {error:?}");
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_the_feature_names_the_feature() {
        let error = refused("rediss://h/");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }
}
