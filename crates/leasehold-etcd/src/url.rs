//! [`ParsedUrl`]: what a URL says.

use std::{fmt, path::PathBuf};

use etcd_client::ConnectOptions;
use leasehold_core::{Credentials, Error, ErrorKind, Result, url::BackendUrl};
use tonic::transport::Endpoint;

use crate::{config::EtcdConfig, error, member::Member};

const DEFAULT_PORT: u16 = 2379;

/// What a URL says.
pub(crate) struct ParsedUrl {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) connector: Connector,
    pub(crate) config: EtcdConfig,
    pub(crate) credentials: Option<Credentials>,
}

impl fmt::Debug for ParsedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of it is secret but the password, and nothing else is needed.
        f.debug_struct("ParsedUrl")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

impl ParsedUrl {
    /// Reads `url`. What it does not say is as in `config`.
    pub(crate) fn parse(url: &str, mut config: EtcdConfig) -> Result<Self> {
        let mut url = BackendUrl::parse(url).map_err(ours)?;
        let tls = match url.scheme() {
            "etcd" => false,
            "etcds" => true,
            _ => return Err(invalid("the URL's scheme is neither `etcd` nor `etcds`")),
        };
        if !matches!(url.path(), "" | "/") {
            return Err(invalid(
                "the URL has a path, which means nothing here; put it into `?prefix=`",
            ));
        }
        if url.hosts().is_empty() {
            return Err(invalid("the URL has no host; write etcd://127.0.0.1:2379/"));
        }
        let credentials = match (url.user(), url.password()) {
            (Some(user), Some(password)) => Some(Credentials::new(password).with_username(user)),
            (None, None) => None,
            _ => {
                return Err(invalid(
                    "a user needs a password; write etcd://user:password@host/",
                ));
            }
        };
        let mut take = |option| url.take(option).map_err(ours);
        if let Some(prefix) = take("prefix")? {
            config.prefix = prefix.into_bytes().into();
        }
        if let Some(names) = take("names")? {
            config.exact_names = match names.as_str() {
                "exact" => true,
                "encoded" => false,
                _ => return Err(invalid("the option `names` is `encoded` or `exact`")),
            };
        }
        let mut path = |option| {
            let path = take(option)?;
            match path {
                Some(_) if !tls => Err(invalid(format!("the option `{option}` needs etcds:"))),
                path => Ok(path.map(PathBuf::from)),
            }
        };
        let files = TlsFiles {
            ca: path("ca")?,
            cert: path("cert")?,
            key: path("key")?,
        };
        for (option, target) in [
            ("timeout", &mut config.timeout),
            ("connect-timeout", &mut config.connect_timeout),
            ("fallback-poll-interval", &mut config.fallback_poll_interval),
        ] {
            *target = url.take_duration(option).map_err(ours)?.unwrap_or(*target);
        }
        let connector = Connector {
            tls,
            files,
            config: config.clone(),
        };
        let hosts = url.hosts().iter().map(ToString::to_string);
        let endpoints = hosts
            .map(|host| connector.endpoint(&host))
            .collect::<Result<Vec<_>>>()?;
        url.finish().map_err(ours)?;
        Ok(Self {
            endpoints,
            connector,
            config,
            credentials,
        })
    }
}

/// Connects to members as the URL says.
#[derive(Debug)]
pub(crate) struct Connector {
    tls: bool,
    files: TlsFiles,
    config: EtcdConfig,
}

impl Connector {
    fn endpoint(&self, host: &str) -> Result<Endpoint> {
        let scheme = if self.tls { "https" } else { "http" };
        self.files
            .apply_to(self.tls, self.config.apply_to(endpoint(scheme, host)?))
    }

    /// A member at an address that another one knows, such as `http://10.0.0.7:2379`.
    pub(crate) fn member(&self, url: &str) -> Option<Member> {
        let (_scheme, host) = url.split_once("://")?;
        self.endpoint(host.trim_end_matches('/'))
            .ok()
            .map(Self::connecting)
    }

    /// A member at this address.
    pub(crate) fn connecting(endpoint: Endpoint) -> Member {
        // A member that is cut off from the others says so, and does not sit on requests and
        // watches.
        Member::at(endpoint, ConnectOptions::new().with_require_leader(true))
    }
}

/// As the driver takes it: `http://h:2379`.
fn endpoint(scheme: &str, host: &str) -> Result<Endpoint> {
    let parsed = url::Url::parse(&format!("{scheme}://{host}/")).map_err(|error| {
        invalid(format!(
            "one of the hosts is not a host with a port: {error}"
        ))
    })?;
    match parsed.host_str() {
        // `port` is `None` for the scheme's own, 80 and 443.
        Some(name) if !name.is_empty() && parsed.path() == "/" => {
            let given = host
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse::<u16>().ok());
            let port = parsed
                .port()
                .or(given.filter(|_| !host.ends_with(']')))
                .unwrap_or(DEFAULT_PORT);
            Endpoint::from_shared(format!("{scheme}://{name}:{port}")).map_err(|error| {
                invalid(format!(
                    "one of the hosts is not a host with a port: {error}"
                ))
            })
        }
        _ => Err(invalid("the URL has no host; write etcd://127.0.0.1:2379/")),
    }
}

#[derive(Debug, Default)]
struct TlsFiles {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl TlsFiles {
    #[cfg(not(feature = "tls"))]
    fn apply_to(&self, tls: bool, endpoint: Endpoint) -> Result<Endpoint> {
        let _unused = (&self.ca, &self.cert, &self.key);
        if tls {
            let message =
                "etcds: needs the feature `tls` of leasehold-etcd; enable it in Cargo.toml";
            return Err(error::plain(ErrorKind::Unsupported, "connect", message));
        }
        Ok(endpoint)
    }

    #[cfg(feature = "tls")]
    fn apply_to(&self, tls: bool, endpoint: Endpoint) -> Result<Endpoint> {
        use etcd_client::{Certificate, Identity, TlsOptions};
        if !tls {
            return Ok(endpoint);
        }
        let read = |path: &PathBuf| {
            std::fs::read(path)
                .map_err(|error| invalid(format!("cannot read {}: {error}", path.display())))
        };
        let mut tls = TlsOptions::new();
        tls = match &self.ca {
            Some(ca) => tls.ca_certificate(Certificate::from_pem(read(ca)?)),
            None => tls.with_native_roots(),
        };
        tls = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => tls.identity(Identity::from_pem(read(cert)?, read(key)?)),
            (None, None) => tls,
            _ => return Err(invalid("the options `cert` and `key` belong together")),
        };
        endpoint
            .tls_config(tls)
            .map_err(|error| invalid("the driver refuses the TLS settings").with_source(error))
    }
}

fn invalid(message: impl Into<String>) -> Error {
    error::plain(ErrorKind::InvalidInput, "connect", message)
}

fn ours(error: Error) -> Error {
    error::named(error, "connect")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_everything() {
        let url = "etcd://al%40ice:p%23ss%2F@h1,h2:7000,[::1]:80/?prefix=shop%3A&timeout=300ms&names=exact&fallback-poll-interval=3s";
        let location = ParsedUrl::parse(url, EtcdConfig::default()).unwrap();
        let addresses = |url| {
            let endpoints = ParsedUrl::parse(url, EtcdConfig::default())
                .unwrap()
                .endpoints;
            endpoints
                .iter()
                .map(|endpoint| endpoint.uri().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            addresses(url),
            ["http://h1:2379/", "http://h2:7000/", "http://[::1]:80/"]
        );
        assert_eq!(&*location.config.prefix, b"shop:");
        assert!(location.config.exact_names);
        assert_eq!(
            (
                location.config.timeout.as_millis(),
                location.config.fallback_poll_interval.as_secs()
            ),
            (300, 3)
        );
        assert_eq!(addresses("etcd://[::1]"), ["http://[::1]:2379/"]);
        assert_eq!(addresses("etcd://h"), ["http://h:2379/"]);
    }

    #[test]
    fn what_is_wrong_is_named_and_the_password_is_not() {
        for (url, named) in [
            ("etcd://u:secret@h/?prefx=a", "prefx"),
            ("etcd://u:secret@h/x", "path"),
            ("etcd://u:secret@h:99999/", "port"),
            ("etcd://u:secret@/", "host"),
            ("etcd://u:secret@h1,,h2/", "host"),
            ("etcd://secret@h/", "password"),
            ("etcd://u:secret@h/?timeout=5", "timeout"),
            (
                "etcd://u:secret@h/?fallback-poll-interval=0s",
                "fallback-poll-interval",
            ),
            ("etcd://u:secret@h/?ca=/x", "etcds"),
            ("etcd://u:secret@h/?names=odd", "names"),
            ("etcd://u:secret@h/#insecure", "#"),
            ("etcd://u:top@secret127.0.0.1:1/", "host"),
            ("http://u:secret@h/", "scheme"),
            ("secret", "scheme"),
            ("etcd://u:Top?secret@h/", "%3F"),
            ("etcd://u:x@h/?prefix=%ff", "UTF-8"),
            ("etcd://u:x@h/?prefix=a&prefix=b", "more than once"),
        ] {
            let error = ParsedUrl::parse(url, EtcdConfig::default()).unwrap_err();
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
        let error = ParsedUrl::parse("etcds://h/", EtcdConfig::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }
}
