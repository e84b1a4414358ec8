//! [`ParsedUrl`]: a URL with the client of the driver and the options of the backend.

use std::{borrow::Cow, path::PathBuf};

use leasehold_core::{
    Error, ErrorKind, Result,
    url::{BackendUrl, Host, TlsFiles},
};
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

use crate::{
    config::{NotificationMode, RedisConfig},
    error::{self, ERRORS},
};

pub(crate) const DEFAULT_PORT: u16 = 6379;

/// The schemes with TLS, of a server and of a quorum.
const TLS_SCHEMES: [&str; 3] = ["rediss", "valkeys", "redlocks"];

/// A URL, parsed into the client of the driver and the options.
pub(crate) struct ParsedUrl {
    pub(crate) client: Client,
    pub(crate) config: RedisConfig,
}

impl ParsedUrl {
    /// Parses a URL. No error shows the URL itself: it may hold a password.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let url = BackendUrl::parse(url).map_err(in_connect)?;
        let tls = match url.scheme() {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            "redis+unix" | "valkey+unix" => return Self::of_socket(url),
            _ => {
                return Err(invalid(
                    "that is not a scheme of this backend; use redis:, rediss: or redis+unix:",
                ));
            }
        };
        let [host] = url.hosts() else {
            return Err(invalid(
                "the URL has not one host; write redis://127.0.0.1/",
            ));
        };
        let host = host.clone();
        Self::of_server(url, &host, tls)
    }

    /// Returns the configuration of one host of the URL.
    pub(crate) fn of_server(mut url: BackendUrl, host: &Host, tls: bool) -> Result<Self> {
        for option in ["db", "user", "pass"] {
            if take(&mut url, option)?.is_some() {
                return Err(invalid(format!(
                    "the option `{option}` is for redis+unix:; here write redis://user:pass@host:port/db"
                )));
            }
        }
        let db = Some(url.path().trim_start_matches('/'))
            .filter(|db| !db.is_empty())
            .map(str::to_owned);
        let (user, pass) = (
            url.user().map(str::to_owned),
            url.password().map(str::to_owned),
        );
        Self::at(server(host, tls), url, db, user, pass)
    }

    fn of_socket(mut url: BackendUrl) -> Result<Self> {
        let (db, user, pass) = (
            take(&mut url, "db")?,
            take(&mut url, "user")?,
            take(&mut url, "pass")?,
        );
        Self::at(socket(&url)?, url, db, user, pass)
    }

    fn at(
        address: ConnectionAddr,
        mut url: BackendUrl,
        db: Option<String>,
        user: Option<String>,
        pass: Option<String>,
    ) -> Result<Self> {
        let config = config(&mut url)?;
        let files = url.take_tls_files(&TLS_SCHEMES).map_err(in_connect)?;
        url.finish().map_err(in_connect)?;
        let db = db.map_or(Ok(0), |db| database(&db))?;
        let mut settings = RedisConnectionInfo::default().set_db(db);
        if let Some(user) = user {
            settings = settings.set_username(user);
        }
        if let Some(pass) = pass {
            settings = settings.set_password(pass);
        }
        let client = open(info_of(address)?.set_redis_settings(settings), &files)?;
        Ok(Self { client, config })
    }
}

/// Returns the options that do not depend on the scheme.
fn config(url: &mut BackendUrl) -> Result<RedisConfig> {
    let mut config = RedisConfig::new();
    if let Some(prefix) = take(url, "prefix")? {
        config = config.with_prefix(prefix);
    }
    if let Some(name) = take(url, "name")? {
        config = config.with_name(name);
    }
    if let Some(timeout) = url.take_duration("connect-timeout").map_err(in_connect)? {
        config = config.with_connect_timeout(timeout);
    }
    if let Some(timeout) = url.take_duration("timeout").map_err(in_connect)? {
        config = config.with_timeout(timeout);
    }
    let interval = url.take_duration("fallback-poll-interval");
    if let Some(interval) = interval.map_err(in_connect)? {
        config = config.with_fallback_poll_interval(interval);
    }
    if let Some(text) = take(url, "nodelay")? {
        config = config.with_nodelay(flag("nodelay", &text)?);
    }
    if let Some(text) = take(url, "notifications")? {
        config = config.with_notifications(notification_mode(&text)?);
    }
    Ok(config)
}

fn server(host: &Host, tls: bool) -> ConnectionAddr {
    let (host, port) = (host.name().to_owned(), host.port().unwrap_or(DEFAULT_PORT));
    if tls {
        ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

fn socket(url: &BackendUrl) -> Result<ConnectionAddr> {
    if !url.hosts().is_empty() || matches!(url.path(), "" | "/") {
        return Err(invalid(
            "the URL has no absolute path to a socket; write redis+unix:///run/redis.sock",
        ));
    }
    Ok(ConnectionAddr::Unix(PathBuf::from(url.path())))
}

fn take(url: &mut BackendUrl, option: &'static str) -> Result<Option<String>> {
    url.take(option).map_err(in_connect)
}

fn info_of(address: ConnectionAddr) -> Result<ConnectionInfo> {
    if !address.is_supported() {
        let remedy = match address {
            ConnectionAddr::Unix(_) => "this platform has no unix sockets; use redis:",
            _ => "rediss: needs the feature `tls` of leasehold-redis; enable it in Cargo.toml",
        };
        return Err(ERRORS.error(ErrorKind::Unsupported, "connect", remedy));
    }
    address
        .into_connection_info()
        .map_err(|error| error::from_command(error, "connect", error::SideEffect::None))
}

#[cfg(feature = "tls")]
fn open(info: ConnectionInfo, files: &TlsFiles) -> Result<Client> {
    let root_cert = files.read_ca().map_err(in_connect)?;
    let identity = files.read_identity().map_err(in_connect)?;
    let client_tls = identity.map(|(client_cert, client_key)| redis::ClientTlsConfig {
        client_cert,
        client_key,
    });
    if client_tls.is_none() && root_cert.is_none() {
        return Client::open(info)
            .map_err(|error| error::from_command(error, "connect", error::SideEffect::None));
    }
    Client::build_with_tls(
        info,
        redis::TlsCertificates {
            client_tls,
            root_cert,
        },
    )
    .map_err(|error| {
        invalid(format!(
            "the files are not what they should be, in PEM format ({error}): {files}"
        ))
        .with_source(error)
    })
}

#[cfg(not(feature = "tls"))]
fn open(info: ConnectionInfo, _files: &TlsFiles) -> Result<Client> {
    Client::open(info)
        .map_err(|error| error::from_command(error, "connect", error::SideEffect::None))
}

fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
    ERRORS.error(ErrorKind::InvalidInput, "connect", message)
}

fn in_connect(error: Error) -> Error {
    ERRORS.named(error, "connect")
}

fn database(text: &str) -> Result<i64> {
    text.parse::<u32>()
        .map(i64::from)
        .map_err(|_| invalid("the database in the URL is not a number; write redis://host/0"))
}

fn flag(name: &str, text: &str) -> Result<bool> {
    text.parse()
        .map_err(|_| invalid(format!("the option `{name}` is `true` or `false`")))
}

fn notification_mode(text: &str) -> Result<NotificationMode> {
    match text {
        "push" => Ok(NotificationMode::Pushed),
        "poll" => Ok(NotificationMode::Polled),
        _ => Err(invalid("the option `notifications` is `push` or `poll`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> Error {
        match ParsedUrl::parse(url) {
            Ok(_) => panic!("{url} was accepted"),
            Err(error) => error,
        }
    }

    #[test]
    fn url_sets_every_option() {
        let parsed = ParsedUrl::parse(
            "redis://al%40ice:p%23ss%2F@[::1]:7000/3?prefix=shop%3A&connect-timeout=200ms&timeout=3s&nodelay=false&notifications=poll&fallback-poll-interval=4s",
        )
        .unwrap();
        let info = parsed.client.get_connection_info();
        assert_eq!(info.addr(), &ConnectionAddr::Tcp("::1".into(), 7000));
        let settings = info.redis_settings();
        assert_eq!(
            (settings.username(), settings.password(), settings.db()),
            (Some("al@ice"), Some("p#ss/"), 3)
        );
        let config = parsed.config;
        assert_eq!(&*config.prefix, b"shop:");
        assert_eq!(
            (
                config.connect_timeout.as_millis(),
                config.timeout.as_millis()
            ),
            (200, 3000)
        );
        assert_eq!(
            (config.nodelay, config.notifications),
            (false, NotificationMode::Polled)
        );
        assert_eq!(
            config.fallback_poll_interval,
            Some(std::time::Duration::from_secs(4))
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_is_named_by_its_path() {
        let parsed =
            ParsedUrl::parse("redis+unix:///run/my%20redis.sock?db=2&user=u&pass=p&prefix=x")
                .unwrap();
        let info = parsed.client.get_connection_info();
        assert_eq!(
            info.addr(),
            &ConnectionAddr::Unix("/run/my redis.sock".into())
        );
        let settings = info.redis_settings();
        assert_eq!(
            (settings.username(), settings.password(), settings.db()),
            (Some("u"), Some("p"), 2)
        );
    }

    #[test]
    fn url_errors_name_the_problem_but_no_password() {
        for (url, named) in [
            ("redis://:secret@h/?prefx=a", "prefx"),
            ("redis://:secret@h/x", "database"),
            ("redis://:secret@h/-1", "database"),
            ("redis://:secret@h:99999/", "port"),
            ("redis://:secret@h/?notifications=never", "notifications"),
            ("redis://:secret@h/?connect-timeout=5", "connect-timeout"),
            ("redis://:secret@h/?connect-timeout=0ms", "connect-timeout"),
            ("redis://:secret@h/?db=1", "redis+unix"),
            ("redis://:secret@h/?ca=/x", "rediss"),
            ("redis://:secret@h/?cert=/x", "rediss"),
            ("redis://:secret@h1,h2/", "host"),
            ("redis://:secret@h/#insecure", "#"),
            ("redis://:secret@h/?prefix=%ff", "UTF-8"),
            ("redis:///0", "host"),
            ("http://:secret@h/", "scheme"),
            ("redis+unix://h/x?pass=secret", "path"),
            ("redis+unix:///?pass=secret", "path"),
            ("secret", "scheme"),
            ("redis://:secret", "port"),
            ("redis://h/?prefix=a&prefix=b", "more than once"),
            ("redis://h/?notifications=poll@secret", "%40"),
        ] {
            let error = refused(url);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
            assert!(error.to_string().contains(named), "{url}: {error}");
            assert!(
                !format!("{error} {error:?}").contains("secret"),
                "{url}: {error:?}"
            );
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
