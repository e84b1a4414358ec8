//! [`Location`]: what a URL says.

use std::{fmt, path::PathBuf, time::Duration};

use etcd_client::ConnectOptions;
use leasehold_core::{Credentials, Error, ErrorKind, Result};
use tonic::transport::Endpoint;

use crate::{config::EtcdConfig, error, member::Member};

const DEFAULT_PORT: u16 = 2379;

/// What a URL says.
pub(crate) struct Location {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) connector: Connector,
    pub(crate) config: EtcdConfig,
    pub(crate) credentials: Option<Credentials>,
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of it is secret but the password, and nothing else is needed.
        f.debug_struct("Location").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Location {
    /// Reads `url`. What it does not say is as in `config`.
    pub(crate) fn parse(url: &str, mut config: EtcdConfig) -> Result<Self> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(invalid("the URL cannot be parsed; write etcd://127.0.0.1:2379/"));
        };
        let tls = match scheme {
            "etcd" => false,
            "etcds" => true,
            _ => return Err(invalid("the URL's scheme is neither `etcd` nor `etcds`")),
        };
        if rest.contains('#') {
            return Err(invalid("the URL has a `#`; write %23 for one in a name or password"));
        }
        let (authority, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = authority.split_once('/').unwrap_or((authority, ""));
        if !path.is_empty() {
            return Err(invalid("the URL has a path, which means nothing here; put it into `?prefix=`"));
        }
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, authority),
        };
        let mut files = TlsFiles::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "prefix" => config.prefix = value.as_bytes().into(),
                "names" => {
                    config.exact_names = match &*value {
                        "exact" => true,
                        "encoded" => false,
                        _ => return Err(invalid("the option `names` is `encoded` or `exact`")),
                    }
                }
                "timeout" => config.timeout = duration("timeout", &value)?,
                "connect-timeout" => config.connect_timeout = duration("connect-timeout", &value)?,
                "safety-net" => config.safety_net = duration("safety-net", &value)?,
                "ca" if tls => files.ca = Some(PathBuf::from(&*value)),
                "cert" if tls => files.cert = Some(PathBuf::from(&*value)),
                "key" if tls => files.key = Some(PathBuf::from(&*value)),
                "ca" | "cert" | "key" => return Err(invalid(format!("the option `{name}` needs etcds:"))),
                other => {
                    return Err(invalid(format!(
                        "the option `{}` is none of prefix, names, timeout, connect-timeout, safety-net, ca, cert, key",
                        other.escape_debug()
                    )));
                }
            }
        }
        let connector = Connector { tls, files, config: config.clone() };
        let endpoints = hosts.split(',').map(|host| connector.endpoint(host)).collect::<Result<Vec<_>>>()?;
        let credentials = user.map(|user| match user.split_once(':') {
            Some((name, password)) => {
                Ok(Credentials::new(decoded("password", password)?).with_username(decoded("user", name)?))
            }
            None => Err(invalid("the URL has a user without a password; write etcd://user:password@host/")),
        });
        Ok(Self { endpoints, connector, config, credentials: credentials.transpose()? })
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
        self.files.apply_to(self.tls, self.config.apply_to(endpoint(scheme, host)?))
    }

    /// A member at an address that another one knows, such as `http://10.0.0.7:2379`.
    pub(crate) fn member(&self, url: &str) -> Option<Member> {
        let (_scheme, host) = url.split_once("://")?;
        self.endpoint(host.trim_end_matches('/')).ok().map(Self::connecting)
    }

    /// A member at this address.
    pub(crate) fn connecting(endpoint: Endpoint) -> Member {
        // A member that is cut off from the others says so, and does not sit on requests and watches.
        Member::at(endpoint, ConnectOptions::new().with_require_leader(true))
    }
}

/// As the driver takes it: `http://h:2379`.
fn endpoint(scheme: &str, host: &str) -> Result<Endpoint> {
    let parsed = url::Url::parse(&format!("{scheme}://{host}/"))
        .map_err(|error| invalid(format!("`{}` is not a host with a port: {error}", host.escape_debug())))?;
    match parsed.host_str() {
        // `port` is `None` for the scheme's own, 80 and 443.
        Some(name) if !name.is_empty() && parsed.path() == "/" => {
            let given = host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            let port = parsed.port().or(given.filter(|_| !host.ends_with(']'))).unwrap_or(DEFAULT_PORT);
            Endpoint::from_shared(format!("{scheme}://{name}:{port}"))
                .map_err(|error| invalid(format!("`{}` is not a host with a port: {error}", host.escape_debug())))
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
            let message = "etcds: needs the feature `tls` of leasehold-etcd; enable it in Cargo.toml";
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
            std::fs::read(path).map_err(|error| invalid(format!("cannot read {}: {error}", path.display())))
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
        endpoint.tls_config(tls).map_err(|error| invalid("the driver refuses the TLS settings").with_source(error))
    }
}

fn invalid(message: impl Into<String>) -> Error {
    error::plain(ErrorKind::InvalidInput, "connect", message)
}

fn decoded(part: &str, text: &str) -> Result<String> {
    leasehold_core::url::decode(part, text).map_err(|error| error::named(error, "connect"))
}

fn duration(name: &str, text: &str) -> Result<Duration> {
    leasehold_core::url::duration(name, text).map_err(|error| error::named(error, "connect"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_everything() {
        let url =
            "etcd://al%40ice:p%23ss%2F@h1,h2:7000,[::1]:80/?prefix=shop%3A&timeout=300ms&names=exact&safety-net=3s";
        let location = Location::parse(url, EtcdConfig::default()).unwrap();
        let addresses = |url| {
            let endpoints = Location::parse(url, EtcdConfig::default()).unwrap().endpoints;
            endpoints.iter().map(|endpoint| endpoint.uri().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(addresses(url), ["http://h1:2379/", "http://h2:7000/", "http://[::1]:80/"]);
        assert_eq!(&*location.config.prefix, b"shop:");
        assert!(location.config.exact_names);
        assert_eq!((location.config.timeout.as_millis(), location.config.safety_net.as_secs()), (300, 3));
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
            ("etcd://u:secret@h/?safety-net=0s", "safety-net"),
            ("etcd://u:secret@h/?ca=/x", "etcds"),
            ("etcd://u:secret@h/?names=odd", "names"),
            ("etcd://u:secret@h/#insecure", "#"),
            ("http://u:secret@h/", "scheme"),
            ("secret", "parsed"),
        ] {
            let error = Location::parse(url, EtcdConfig::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
            assert!(error.to_string().contains(named), "{url}: {error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{url}: {error:?}");
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_the_feature_names_the_feature() {
        let error = Location::parse("etcds://h/", EtcdConfig::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }
}
