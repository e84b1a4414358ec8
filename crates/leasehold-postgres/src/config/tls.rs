//! [`Tls`]: the TLS settings of a URL and of the environment.

use std::{env, net::IpAddr};

use leasehold_core::{ErrorKind, Result, url::BackendUrl};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::{config::invalid, error::ERRORS};

/// The TLS settings of the URL and the environment.
pub(super) struct Tls {
    mode: Option<PgSslMode>,
    root: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl Tls {
    pub(super) fn take(url: &mut BackendUrl) -> Result<Self> {
        // The spelling of JDBC, which libpq accepts as well.
        let old = match url.take("ssl")?.as_deref() {
            None => None,
            Some("true") => Some(PgSslMode::Require),
            Some(_) => return Err(invalid("the option `ssl` is `true`; or write `sslmode`")),
        };
        let mode = match url.take("sslmode")? {
            Some(_) if old.is_some() => {
                return Err(invalid("`ssl` and `sslmode` are one option; give it once"));
            }
            Some(mode) => Some(ssl_mode("the option `sslmode`", &mode)?),
            None => old,
        };
        // The driver replaces an unknown value by the default, which verifies nothing.
        let mode = match (mode, env::var("PGSSLMODE")) {
            (None, Ok(mode)) => Some(ssl_mode("the environment variable PGSSLMODE", &mode)?),
            (mode, _) => mode,
        };
        // As in libpq, an empty value means none.
        let root = url
            .take("sslrootcert")?
            .or_else(|| env::var("PGSSLROOTCERT").ok())
            .filter(|root| !root.is_empty());
        Ok(Self {
            mode,
            root,
            cert: url.take("sslcert")?,
            key: url.take("sslkey")?,
        })
    }

    /// Verifies as libpq does: `require` with a root certificate is `verify-ca`, and
    /// `sslrootcert=system` goes with `verify-full` alone. Sockets have no TLS.
    pub(super) fn apply_to(self, mut options: PgConnectOptions) -> Result<PgConnectOptions> {
        let Self {
            mode,
            root,
            cert,
            key,
        } = self;
        let system = root.as_deref() == Some("system");
        let mode = match mode.unwrap_or(if system {
            PgSslMode::VerifyFull
        } else {
            PgSslMode::Prefer
        }) {
            _ if is_socket(&options) => PgSslMode::Disable,
            PgSslMode::VerifyFull => PgSslMode::VerifyFull,
            _ if system => return Err(invalid("sslrootcert=system needs sslmode=verify-full")),
            PgSslMode::Require if root.is_some() => PgSslMode::VerifyCa,
            mode => mode,
        };
        options = options.ssl_mode(mode);
        if matches!(mode, PgSslMode::Disable | PgSslMode::Allow) {
            return Ok(options);
        }
        // The driver always trusts the authorities of the system.
        if system {
            options = options.ssl_root_cert_from_pem(Vec::new());
        } else if let Some(root) = root.filter(|_| verifies(mode)) {
            options = options.ssl_root_cert(readable("sslrootcert", root)?);
        }
        if let Some(cert) = cert {
            options = options.ssl_client_cert(readable("sslcert", cert)?);
        }
        if let Some(key) = key {
            options = options.ssl_client_key(readable("sslkey", key)?);
        }
        Ok(options)
    }
}

/// Returns whether the mode verifies the identity of the server.
fn verifies(mode: PgSslMode) -> bool {
    matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull)
}

/// Checks that the file can be read: the driver would report an address that cannot be reached.
fn readable(option: &str, path: String) -> Result<String> {
    match std::fs::File::open(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(invalid(format!(
            "cannot read the file of `{option}`, {path}: {error}"
        ))),
    }
}

/// Returns whether the driver connects to a socket of this host.
fn is_socket(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some() || options.get_host().starts_with('/')
}

/// Returns whether the address belongs to this host.
pub(crate) fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    is_socket(options)
        || host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

fn ssl_mode(of: &str, mode: &str) -> Result<PgSslMode> {
    mode.parse().map_err(|_| {
        invalid(format!(
            "{of} is none of disable, allow, prefer, require, verify-ca, verify-full"
        ))
    })
}

/// Fails if the options need TLS and the crate was built without it.
pub(crate) fn check_tls(options: &PgConnectOptions) -> Result<()> {
    #[cfg(feature = "tls")]
    choose_crypto_provider();
    let wanted = !matches!(
        options.get_ssl_mode(),
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer
    );
    if wanted && !cfg!(feature = "tls") {
        let message =
            "`sslmode` needs the feature `tls` of leasehold-postgres; enable it in Cargo.toml";
        return Err(ERRORS.error(ErrorKind::Unsupported, "connect", message));
    }
    Ok(())
}

/// Installs a crypto provider for the process if there is none. For `verify-ca` the driver uses the
/// provider of the process, and panics if none is installed and several are compiled in.
#[cfg(feature = "tls")]
fn choose_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only if another thread has just installed one.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}

#[cfg(test)]
mod tests {
    use crate::config::ParsedUrl;

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_the_feature_names_the_feature() {
        let parsed = ParsedUrl::parse("postgres://h/?sslmode=require").unwrap();
        let error = super::check_tls(&parsed.options).unwrap_err();
        assert_eq!(error.kind(), super::ErrorKind::Unsupported);
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }

    #[test]
    fn tls_modes_verify_as_in_libpq() {
        // Any file will do.
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        for (url, mode) in [
            (String::from("postgres://h/?sslmode=require"), "Require"),
            (String::from("postgres://h/?ssl=true"), "Require"),
            (
                String::from("postgres://h/?sslmode=require&sslrootcert="),
                "Require",
            ),
            (
                format!("postgres://h/?sslmode=require&sslrootcert={root}"),
                "VerifyCa",
            ),
            (
                format!("postgres://h/?sslmode=verify-full&sslrootcert={root}"),
                "VerifyFull",
            ),
            (
                format!("postgres://h/?sslmode=disable&sslrootcert={root}"),
                "Disable",
            ),
            (
                String::from("postgres://h/?sslrootcert=system"),
                "VerifyFull",
            ),
            (
                String::from("postgres:///?host=/run/x&sslmode=verify-full"),
                "Disable",
            ),
        ] {
            let options = ParsedUrl::parse(&url).unwrap().options;
            assert_eq!(format!("{:?}", options.get_ssl_mode()), mode, "{url}");
        }
    }
}
