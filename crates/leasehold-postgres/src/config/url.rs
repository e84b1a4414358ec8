//! [`ParsedUrl`]: a URL with the options of the driver and of the backend.

use std::{env, fmt, net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use leasehold_core::{Error, ErrorKind, Result, url::BackendUrl};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::form_urlencoded::Serializer;

use crate::{
    config::PostgresConfig,
    error::{self, named},
    keys::KeyScheme,
};

/// A URL, parsed into the options of the driver and of the backend.
pub(crate) struct ParsedUrl {
    pub(crate) options: PgConnectOptions,
    pub(crate) config: PostgresConfig,
}

impl fmt::Debug for ParsedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options contain a password.
        f.debug_struct("ParsedUrl")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// The options of libpq that the driver does not support, with the values that are accepted because
/// they have no effect, and the reason why others are refused.
const UNSUPPORTED_OPTIONS: [(&str, &[&str], &str); 34] = [
    (
        "channel_binding",
        &["disable", "prefer"],
        "the driver has no channel binding; use sslmode=verify-full",
    ),
    (
        "client_encoding",
        &["UTF8", "utf8", "auto"],
        "the driver speaks UTF-8",
    ),
    ("gssdelegation", &["0"], NO_GSSAPI),
    ("gssencmode", &["disable", "prefer"], NO_GSSAPI),
    ("gsslib", &[], NO_GSSAPI),
    ("keepalives", &[], SILENCE),
    ("keepalives_count", &[], SILENCE),
    ("keepalives_idle", &[], SILENCE),
    ("keepalives_interval", &[], SILENCE),
    ("krbsrvname", &[], NO_GSSAPI),
    ("load_balance_hosts", &["disable"], ONE_HOST),
    (
        "max_protocol_version",
        &["3.0", "latest"],
        "the driver speaks version 3.0",
    ),
    (
        "min_protocol_version",
        &["3.0"],
        "the driver speaks version 3.0",
    ),
    (
        "passfile",
        &[],
        "the driver reads the file that PGPASSFILE names",
    ),
    (
        "replication",
        &["false", "no", "off", "0"],
        "locks need an ordinary connection",
    ),
    ("require_auth", &[], NOT_THE_DRIVERS),
    ("requirepeer", &[], NOT_THE_DRIVERS),
    ("requiressl", &["0"], "write sslmode"),
    ("scram_client_key", &[], NOT_THE_DRIVERS),
    ("scram_server_key", &[], NOT_THE_DRIVERS),
    (
        "service",
        &[],
        "the driver reads no service file; write its settings into the URL",
    ),
    (
        "servicefile",
        &[],
        "the driver reads no service file; write its settings into the URL",
    ),
    ("ssl_max_protocol_version", &[], NOT_THE_DRIVERS),
    (
        "ssl_min_protocol_version",
        &["TLSv1", "TLSv1.1", "TLSv1.2"],
        "the driver's least version is TLSv1.2",
    ),
    (
        "sslcertmode",
        &["allow"],
        "the driver sends the certificate that `sslcert` names, if the server asks for one",
    ),
    ("sslcompression", &["0"], NOT_THE_DRIVERS),
    ("sslcrl", &[], NOT_THE_DRIVERS),
    ("sslcrldir", &[], NOT_THE_DRIVERS),
    ("sslkeylogfile", &[], NOT_THE_DRIVERS),
    ("sslnegotiation", &["postgres"], NOT_THE_DRIVERS),
    (
        "sslpassword",
        &[],
        "the driver reads keys without a passphrase alone",
    ),
    ("sslsni", &["1"], NOT_THE_DRIVERS),
    (
        "target_session_attrs",
        &["any", "primary", "read-write"],
        "locks live on the primary",
    ),
    ("tcp_user_timeout", &[], SILENCE),
];
const NO_GSSAPI: &str = "the driver has no GSSAPI";
const NOT_THE_DRIVERS: &str = "the driver has nothing like it";
const SILENCE: &str = "the backend notices silent connections by itself; see `timeout`";
const ONE_HOST: &str = "locks live on one server; name an address that always leads to the primary";

impl ParsedUrl {
    /// Parses a URL. No error shows the URL itself: it may hold a password.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        refuse_folder_as_host(url)?;
        let mut url = BackendUrl::parse(&with_plain_pluses(url)).map_err(ours)?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(invalid(
                "the URL's scheme is neither `postgres` nor `postgresql`",
            ));
        }
        let config = config(&mut url)?;
        let options = options(&mut url)?;
        check_unsupported_options(&mut url)?;
        url.finish().map_err(ours)?;
        Ok(Self { options, config })
    }
}

/// libpq reads `postgres://%2Frun%2Fx/db` as the folder of a socket.
fn refuse_folder_as_host(url: &str) -> Result<()> {
    let authority = url
        .split_once("://")
        .map_or("", |(_, rest)| rest)
        .split(['/', '?'])
        .next()
        .unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host
        .get(..3)
        .is_some_and(|begin| begin.eq_ignore_ascii_case("%2f"))
    {
        return Err(invalid(
            "the URL has the folder of a socket in place of the host; write postgres://user@/database?host=/run/postgresql",
        ));
    }
    Ok(())
}

/// libpq reads a `+` in an option as it is: only forms write a space so.
fn with_plain_pluses(url: &str) -> String {
    let (before, options) = url.split_at(url.find('?').unwrap_or(url.len()));
    format!("{before}{}", options.replace('+', "%2B"))
}

/// The options of the backend itself.
fn config(url: &mut BackendUrl) -> Result<PostgresConfig> {
    let mut config = PostgresConfig::default();
    if let Some(prefix) = take(url, "prefix")? {
        config = config.with_prefix(prefix);
    }
    if let Some(keys) = take(url, "keys")? {
        config.keys = scheme(&keys)?;
    }
    if let Some(fencing) = take(url, "fencing")? {
        config.fencing = match &*fencing {
            "on" => true,
            "off" => false,
            _ => return Err(invalid("the option `fencing` is `on` or `off`")),
        };
    }
    if let Some(sequence) = take(url, "sequence")? {
        config.sequence = Arc::from(sequence);
        config.sequence_parts()?;
    }
    if let Some(seconds) = take(url, "connect_timeout")? {
        let seconds = seconds.parse().ok().filter(|seconds| *seconds > 0);
        config.connect_timeout = seconds.map(Duration::from_secs).ok_or_else(|| {
            invalid(
                "the option `connect_timeout` is not a whole number of seconds above 0; or write connect-timeout=500ms",
            )
        })?;
        if take(url, "connect-timeout")?.is_some() {
            return Err(invalid(
                "`connect_timeout` and `connect-timeout` are one option; give it once",
            ));
        }
    }
    for (option, target) in [
        ("timeout", &mut config.timeout),
        ("connect-timeout", &mut config.connect_timeout),
        ("fallback-poll-interval", &mut config.fallback_poll_interval),
    ] {
        *target = url.take_duration(option).map_err(ours)?.unwrap_or(*target);
    }
    if let Some(max) = take(url, "max-sessions")? {
        let max = max.parse().ok().filter(|max| *max > 0);
        config.max_sessions =
            max.ok_or_else(|| invalid("the option `max-sessions` is no number above 0"))?;
    }
    Ok(config)
}

/// Returns the options of the driver. It gets all of them as options, because it does not parse
/// every address that may stand in a URL.
fn options(url: &mut BackendUrl) -> Result<PgConnectOptions> {
    let (host, port) = match url.hosts() {
        [] => (None, None),
        [host] => (
            Some(host.name().to_owned()),
            host.port().map(|port| port.to_string()),
        ),
        _ => return Err(several_hosts()),
    };
    let database = url.path().strip_prefix('/').map(str::to_owned);
    let (user, password) = (
        url.user().map(str::to_owned),
        url.password().map(str::to_owned),
    );
    let address = take(url, "hostaddr")?;
    let host = once(url, "host", host)?;
    if host.as_ref().is_some_and(|host| host.contains(',')) {
        return Err(several_hosts());
    }
    if address
        .as_ref()
        .is_some_and(|address| address.parse::<IpAddr>().is_err())
    {
        return Err(invalid("the option `hostaddr` is not one IP address"));
    }
    if host.is_some() && address.is_some() {
        return Err(invalid(
            "the driver cannot check the name `host` at the address `hostaddr`; give one of them",
        ));
    }
    let port = once(url, "port", port)?;
    if port
        .as_ref()
        .is_some_and(|port| port.parse::<u16>().ok().is_none_or(|port| port == 0))
    {
        return Err(invalid("the option `port` is not a number from 1 to 65535"));
    }
    let tls = Tls::take(url)?;
    let mut read = Serializer::for_suffix(String::from("postgres:///?"), "postgres:///?".len());
    for (option, value) in [
        ("host", host.or(address)),
        ("port", port),
        ("dbname", once(url, "dbname", database)?),
        ("user", once(url, "user", user)?),
        ("password", once(url, "password", password)?),
        ("options", take(url, "options")?),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            if value.contains('\0') {
                return Err(invalid(format!(
                    "the option `{option}` has a NUL character (`%00`)"
                )));
            }
            read.append_pair(option, &value);
        }
    }
    let options = PgConnectOptions::from_str(&read.finish())
        .map_err(|_| invalid("the driver cannot read the URL's host, port or options"))?;
    tls.apply_to(options)
}

/// The TLS settings of the URL and the environment.
struct Tls {
    mode: Option<PgSslMode>,
    root: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl Tls {
    fn take(url: &mut BackendUrl) -> Result<Self> {
        // The spelling of JDBC, which libpq accepts as well.
        let old = match take(url, "ssl")?.as_deref() {
            None => None,
            Some("true") => Some(PgSslMode::Require),
            Some(_) => return Err(invalid("the option `ssl` is `true`; or write `sslmode`")),
        };
        let mode = match take(url, "sslmode")? {
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
        let root = take(url, "sslrootcert")?
            .or_else(|| env::var("PGSSLROOTCERT").ok())
            .filter(|root| !root.is_empty());
        Ok(Self {
            mode,
            root,
            cert: take(url, "sslcert")?,
            key: take(url, "sslkey")?,
        })
    }

    /// Verifies as libpq does: `require` with a root certificate is `verify-ca`, and
    /// `sslrootcert=system` goes with `verify-full` alone. Sockets have no TLS.
    fn apply_to(self, mut options: PgConnectOptions) -> Result<PgConnectOptions> {
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
pub(crate) fn is_socket(options: &PgConnectOptions) -> bool {
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

/// Removes the options that the driver does not support, and refuses those that would have an
/// effect.
fn check_unsupported_options(url: &mut BackendUrl) -> Result<()> {
    // The connections have names of their own, by which sessions are recognized.
    for option in ["application_name", "fallback_application_name"] {
        take(url, option)?;
    }
    for (option, nothing, why) in UNSUPPORTED_OPTIONS {
        // From a copy, so that the error about an unknown option does not list these options.
        if take(&mut url.clone(), option)?.is_none() {
            continue;
        }
        if take(url, option)?.is_some_and(|value| !nothing.contains(&&*value)) {
            let only = match nothing {
                [] => String::new(),
                values => format!(" (only {})", values.join(", ")),
            };
            return Err(invalid(format!(
                "the option `{option}` of libpq is not supported{only}: {why}"
            )));
        }
    }
    Ok(())
}

/// Returns a value that stands before the `?` or in an option.
fn once(
    url: &mut BackendUrl,
    option: &'static str,
    before: Option<String>,
) -> Result<Option<String>> {
    let before = before.filter(|value| !value.is_empty());
    match (take(url, option)?, before) {
        (Some(_), Some(_)) => Err(invalid(format!(
            "the option `{option}` repeats what stands before the `?`; give it once"
        ))),
        (value, before) => Ok(value.or(before)),
    }
}

fn take(url: &mut BackendUrl, option: &'static str) -> Result<Option<String>> {
    url.take(option).map_err(ours)
}

fn several_hosts() -> Error {
    invalid(format!("the URL has several hosts: {ONE_HOST}"))
}

fn scheme(name: &str) -> Result<KeyScheme> {
    Ok(match name {
        "hash" => KeyScheme::Hash,
        "int64" => KeyScheme::Int64,
        "int32-pair" => KeyScheme::Int32Pair,
        "sqlx" => KeyScheme::Sqlx,
        "rails" => KeyScheme::Rails,
        "dotnet" => KeyScheme::DotNet,
        _ => {
            return Err(invalid(
                "the option `keys` is hash, int64, int32-pair, sqlx, rails or dotnet",
            ));
        }
    })
}

fn ours(error: Error) -> Error {
    named(error, "connect")
}

fn invalid(message: impl Into<String>) -> Error {
    error::plain(ErrorKind::InvalidInput, "connect", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_the_feature_names_the_feature() {
        let parsed = ParsedUrl::parse("postgres://h/?sslmode=require").unwrap();
        let error = crate::config::check_tls(&parsed.options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }

    #[test]
    fn url_sets_every_option() {
        let url = "postgres://al%40ice:p%23ss@h:7000/shop?prefix=shop%3A&keys=rails&fencing=off&timeout=300ms&sslmode=disable\
                   &fallback-poll-interval=3s&sequence=locks.tokens&max-sessions=3&connect-timeout=1s";
        let ParsedUrl { options, config } = ParsedUrl::parse(url).unwrap();
        assert_eq!(
            (
                options.get_username(),
                options.get_host(),
                options.get_port()
            ),
            ("al@ice", "h", 7000)
        );
        assert_eq!(options.get_database(), Some("shop"));
        assert_eq!(
            (&*config.prefix, config.keys, config.fencing),
            (b"shop:".as_slice(), KeyScheme::Rails, false)
        );
        assert_eq!(
            (
                config.timeout.as_millis(),
                config.fallback_poll_interval.as_secs(),
                config.max_sessions
            ),
            (300, 3, 3)
        );
        assert_eq!(config.sequence_parts().unwrap(), ("locks", "tokens"));
        let socket = ParsedUrl::parse("postgresql:///?host=/run/x&user=u&dbname=d").unwrap();
        assert_eq!(socket.options.get_socket(), Some(&"/run/x".into()));
        let plain = ParsedUrl::parse("postgres://h/?dbname=a+b&prefix=c+d").unwrap();
        assert_eq!(
            (plain.options.get_database(), &*plain.config.prefix),
            (Some("a+b"), b"c+d".as_slice())
        );
        for (url, database) in [
            ("postgres://h//d", "/d"),
            ("postgres://h/%2Fd", "/d"),
            ("postgres://h/d/", "d/"),
        ] {
            assert_eq!(
                ParsedUrl::parse(url).unwrap().options.get_database(),
                Some(database),
                "{url}"
            );
        }
        let address = ParsedUrl::parse("Postgres://u@[::1]:5433/d")
            .unwrap()
            .options;
        assert_eq!((address.get_host(), address.get_port()), ("::1", 5433));
    }

    #[test]
    fn options_of_libpq_are_read_or_refused_with_the_reason() {
        for (accepted, seconds) in [
            (
                "channel_binding=prefer&target_session_attrs=read-write&application_name=shop&connect_timeout=7",
                7,
            ),
            (
                "user=u&password=p&dbname=d&port=7000&options=-c%20geqo%3Doff&client_encoding=UTF8&gssencmode=prefer",
                2,
            ),
            (
                "hostaddr=10.0.0.1&sslsni=1&connect-timeout=3s&fallback_application_name=shop",
                3,
            ),
        ] {
            let config = ParsedUrl::parse(&format!("postgres:///?{accepted}"))
                .unwrap()
                .config;
            assert_eq!(config.connect_timeout.as_secs(), seconds, "{accepted}");
        }
        for (refused, named) in [
            ("channel_binding=require", "channel binding"),
            ("target_session_attrs=standby", "primary"),
            (
                "target_session_attrs=any&target_session_attrs=any",
                "more than once",
            ),
            ("host=h1,h2", "several hosts"),
            ("host=h&hostaddr=10.0.0.1", "`hostaddr`"),
            ("hostaddr=h", "`hostaddr`"),
            ("connect_timeout=0", "`connect_timeout`"),
            ("connect_timeout=7&connect-timeout=7s", "once"),
            ("sslcrl=/x", "`sslcrl`"),
            (
                "host=h&sslmode=require&sslrootcert=/nowhere.pem",
                "/nowhere.pem",
            ),
            ("host=h&sslrootcert=system&sslmode=require", "verify-full"),
            ("ssl=true&sslmode=require", "once"),
            ("port=0", "`port`"),
        ] {
            let error = ParsedUrl::parse(&format!("postgres:///?{refused}")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{refused}");
            assert!(error.to_string().contains(named), "{refused}: {error}");
        }
        assert!(
            ParsedUrl::parse("postgres://h1,h2/")
                .unwrap_err()
                .to_string()
                .contains("several hosts")
        );
        assert!(
            ParsedUrl::parse("postgres://%2Frun%2Fx/d")
                .unwrap_err()
                .to_string()
                .contains("?host=/run")
        );
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

    #[test]
    fn url_errors_name_the_problem_but_no_password() {
        for (url, named) in [
            ("postgres://u:secret@h/?prefx=a", "did you mean `prefix`"),
            ("postgres://u:secret@h/?odd=a", "prefix, keys"),
            ("postgres://u:top?secret@h/", "%3F"),
            ("postgres://u:secret@h:99999/", "port"),
            ("postgres://u:secret@h/?keys=odd", "keys"),
            ("postgres://u:secret@h/?fencing=maybe", "fencing"),
            ("postgres://u:secret@h/?sequence=tokens", "sequence"),
            ("postgres://u:secret@h/?sequence=a.b;drop", "sequence"),
            ("postgres://u:secret@h/?timeout=5", "timeout"),
            (
                "postgres://u:secret@h/?fallback-poll-interval=0s",
                "fallback-poll-interval",
            ),
            ("postgres://u:secret@h/?max-sessions=0", "max-sessions"),
            ("postgres://u:secret@h/?sslmode=odd", "sslmode"),
            ("postgres://u:secret@h/?prefix=%ff", "UTF-8"),
            ("postgres://u:secret@h/?prefix=a&prefix=b", "more than once"),
            ("postgres://u:secret@h/?user=v", "`user`"),
            ("postgres://u:a@h/?password=secret", "`password`"),
            ("postgres://u:secret@h/d?dbname=e", "`dbname`"),
            ("postgres://u:secret@h/#insecure", "#"),
            ("postgres://a%00database%00b:secret@h/", "`user`"),
            ("postgres://u:secret@h/a%00b", "`dbname`"),
            ("postgres://u:secret%00@h/", "`password`"),
            ("http://u:secret@h/", "scheme"),
            ("secret", "scheme"),
        ] {
            let error = ParsedUrl::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
            assert!(error.to_string().contains(named), "{url}: {error}");
            assert!(
                !format!("{error} {error:?}").contains("secret"),
                "{url}: {error:?}"
            );
        }
    }
}
