//! [`Connector`]: creates members from addresses, with the TLS settings of the URL.

use std::{borrow::Cow, time::Duration};

use etcd_client::ConnectOptions;
use leasehold_core::{Error, ErrorKind, Result, url::TlsFiles};
use tonic::transport::Endpoint;

use crate::{error::ERRORS, member::Member};

const DEFAULT_PORT: u16 = 2379;

/// The interval of HTTP/2 pings. The server closes connections with pings less than 5 s apart
/// (`--grpc-keepalive-min-time`).
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Creates members with the settings of the URL.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) tls: bool,
    pub(crate) files: TlsFiles,
    pub(crate) connect_timeout: Duration,
}

impl Connector {
    pub(crate) fn endpoint(&self, host: &str) -> Result<Endpoint> {
        let scheme = if self.tls { "https" } else { "http" };
        let endpoint = endpoint(scheme, host)?
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        if self.tls {
            with_tls(endpoint, &self.files)
        } else {
            Ok(endpoint)
        }
    }

    /// Creates a member at an address that another member advertises, such as
    /// `http://10.0.0.7:2379`.
    pub(crate) fn member(&self, url: &str) -> Option<Member> {
        let (_scheme, host) = url.split_once("://")?;
        self.endpoint(host.trim_end_matches('/'))
            .ok()
            .map(Self::connecting)
    }

    /// Creates a member at this endpoint.
    pub(crate) fn connecting(endpoint: Endpoint) -> Member {
        // A member that is cut off from its leader then returns an error and does not block
        // requests and watches.
        Member::at(endpoint, ConnectOptions::new().with_require_leader(true))
    }
}

/// Parses a host into an endpoint of the driver, such as `http://h:2379`.
fn endpoint(scheme: &str, host: &str) -> Result<Endpoint> {
    let parsed = url::Url::parse(&format!("{scheme}://{host}/")).map_err(|error| {
        invalid(format!(
            "one of the hosts is not a host with a port: {error}"
        ))
    })?;
    match parsed.host_str() {
        // `port` is `None` for the default ports of the scheme, 80 and 443.
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

#[cfg(not(feature = "tls"))]
fn with_tls(_endpoint: Endpoint, _files: &TlsFiles) -> Result<Endpoint> {
    let message = "etcds: needs the feature `tls` of leasehold-etcd; enable it in Cargo.toml";
    Err(ERRORS.error(ErrorKind::Unsupported, "connect", message))
}

#[cfg(feature = "tls")]
fn with_tls(endpoint: Endpoint, files: &TlsFiles) -> Result<Endpoint> {
    use etcd_client::{Certificate, Identity, TlsOptions};
    let in_connect = |error| ERRORS.named(error, "connect");
    let tls = match files.read_ca().map_err(in_connect)? {
        Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(ca)),
        None => TlsOptions::new().with_native_roots(),
    };
    let tls = match files.read_identity().map_err(in_connect)? {
        Some((cert, key)) => tls.identity(Identity::from_pem(cert, key)),
        None => tls,
    };
    endpoint
        .tls_config(tls)
        .map_err(|error| invalid("the driver refuses the TLS settings").with_source(error))
}

fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
    ERRORS.error(ErrorKind::InvalidInput, "connect", message)
}
