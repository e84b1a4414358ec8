//! [`ParsedUrl`]: a URL with the options of the driver and of the backend.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use leasehold_core::{Error, Result, url::BackendUrl};
use sqlx::postgres::PgConnectOptions;
use url::form_urlencoded::Serializer;

use crate::{
    config::{
        PostgresConfig, invalid,
        libpq::{ONE_HOST, check_unsupported_options},
        tls::Tls,
    },
    error::ERRORS,
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

impl ParsedUrl {
    /// Parses a URL. No error shows the URL itself: it may hold a password.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        Self::parse_parts(url).map_err(|error| ERRORS.named(error, "connect"))
    }

    fn parse_parts(url: &str) -> Result<Self> {
        refuse_folder_as_host(url)?;
        let mut url = BackendUrl::parse(&with_plain_pluses(url))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(invalid(
                "the URL's scheme is neither `postgres` nor `postgresql`",
            ));
        }
        let config = config(&mut url)?;
        let options = options(&mut url)?;
        check_unsupported_options(&mut url)?;
        url.finish()?;
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
    if let Some(prefix) = url.take("prefix")? {
        config = config.with_prefix(prefix);
    }
    if let Some(keys) = url.take("keys")? {
        config.keys = scheme(&keys)?;
    }
    if let Some(fencing) = url.take("fencing")? {
        config.fencing = match &*fencing {
            "on" => true,
            "off" => false,
            _ => return Err(invalid("the option `fencing` is `on` or `off`")),
        };
    }
    if let Some(sequence) = url.take("sequence")? {
        config.sequence = Arc::from(sequence);
        config.sequence_parts()?;
    }
    if let Some(records) = url.take("records")? {
        config.records = Arc::from(records);
        config.records_parts()?;
    }
    if let Some(seconds) = url.take("connect_timeout")? {
        let seconds = seconds.parse().ok().filter(|seconds| *seconds > 0);
        config.connect_timeout = seconds.map(Duration::from_secs).ok_or_else(|| {
            invalid(
                "the option `connect_timeout` is not a whole number of seconds above 0; or write connect-timeout=500ms",
            )
        })?;
        if url.take("connect-timeout")?.is_some() {
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
        *target = url.take_duration(option)?.unwrap_or(*target);
    }
    if let Some(max) = url.take("max-sessions")? {
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
    let address = url.take("hostaddr")?;
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
        ("options", url.take("options")?),
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

/// Returns a value that stands before the `?` or in an option.
fn once(
    url: &mut BackendUrl,
    option: &'static str,
    before: Option<String>,
) -> Result<Option<String>> {
    let before = before.filter(|value| !value.is_empty());
    match (url.take(option)?, before) {
        (Some(_), Some(_)) => Err(invalid(format!(
            "the option `{option}` repeats what stands before the `?`; give it once"
        ))),
        (value, before) => Ok(value.or(before)),
    }
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

#[cfg(test)]
mod tests {
    use leasehold_core::ErrorKind;

    use super::*;

    #[test]
    fn url_sets_every_option() {
        let url = "postgres://al%40ice:p%23ss@h:7000/shop?prefix=shop%3A&keys=rails&fencing=off&timeout=300ms&sslmode=disable\
                   &fallback-poll-interval=3s&sequence=locks.tokens&records=locks.records&max-sessions=3&connect-timeout=1s";
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
        assert_eq!(config.records_parts().unwrap(), ("locks", "records"));
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
