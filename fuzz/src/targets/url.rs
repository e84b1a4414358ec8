//! URLs: no error shows a secret, and every backend parses what a URL is made of.

use leasehold_core::{
    Capabilities, Error, ErrorKind, Result,
    url::{BackendUrl, decode, duration},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// Stands in for a secret. It resembles no option.
const SECRET: &str = "Zq7xWv9Kt3Bm";

/// The byte that an input has in place of the secret, so that the fuzzer can move it as a whole.
const SECRET_BYTE: &str = "\u{1}";

/// Returns the URL in the input, with the secret in its place. Returns `None` if the fuzzer has
/// copied a part of the secret, which it sees in the comparisons.
fn url_of(data: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(data);
    (!has_secret(&text)).then(|| text.replace(SECRET_BYTE, SECRET))
}

/// Checks an error about a URL.
fn check(url: &str, error: &Error) {
    assert!(
        [ErrorKind::InvalidInput, ErrorKind::Unsupported].contains(&error.kind()),
        "{url:?}: {error:?}"
    );
    assert!(error.message().len() > 20, "{url:?}: {error:?}");
    let shown = error.to_string();
    // A path of 2 KiB has up to six characters for each byte once it is escaped.
    assert!(
        shown.len() < 16 * 1024 && !shown.contains(char::is_control),
        "{url:?}: {shown}"
    );
}

/// Checks that the error shows no part of the URL that may be secret.
fn check_secret(url: &str, error: &Error) {
    let shown = format!("{error} {error:?}");
    assert!(!has_secret(&shown), "{url:?}: {error:?}");
}

/// Returns whether a text has the secret or the beginning of it.
fn has_secret(text: &str) -> bool {
    text.to_lowercase().contains(&SECRET[..6].to_lowercase())
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Writes the parts of a parsed URL as a URL.
fn print(url: &BackendUrl, prefix: Option<&str>) -> String {
    let user = url.user().map(encode).unwrap_or_default();
    let password = url
        .password()
        .map(|password| format!(":{}", encode(password)));
    let at = if url.user().is_some() || url.password().is_some() {
        "@"
    } else {
        ""
    };
    let hosts: Vec<String> = url.hosts().iter().map(ToString::to_string).collect();
    let path = url
        .path()
        .strip_prefix('/')
        .map(|path| format!("/{}", encode(path)));
    format!(
        "{}://{user}{}{at}{}{}?{}",
        url.scheme(),
        password.unwrap_or_default(),
        hosts.join(","),
        path.unwrap_or_default(),
        prefix
            .map(|prefix| format!("prefix={}", encode(prefix)))
            .unwrap_or_default(),
    )
}

/// Checks the parser that all backends share.
pub(super) fn core(data: &[u8]) {
    let Some(text) = url_of(data) else {
        return;
    };
    for option in [text.as_str(), text.trim_start()] {
        match duration("timeout", option) {
            Ok(time) => {
                assert!(!time.is_zero() && option.starts_with(|c: char| c.is_ascii_digit()));
                if let Ok(millis) = u64::try_from(time.as_millis()) {
                    assert_eq!(duration("timeout", &format!("{millis}ms")).unwrap(), time);
                }
            }
            Err(error) => assert!(error.to_string().contains("`timeout`"), "{error}"),
        }
    }
    if let Err(error) = decode("password", &text) {
        check_secret(&text, &error);
    }
    let refused = |error: &Error| {
        check(&text, error);
        check_secret(&text, error);
    };
    let mut url = match BackendUrl::parse(&text) {
        Ok(url) => url,
        Err(error) => return refused(&error),
    };
    // A scheme is no secret.
    if has_secret(url.scheme()) {
        return;
    }
    let in_a_host = url.hosts().iter().any(|host| has_secret(host.name()));
    assert!(in_a_host || !has_secret(&format!("{url:?}")), "{text:?}");
    let prefix = match url.take("prefix") {
        Ok(prefix) => prefix,
        Err(error) => return refused(&error),
    };
    let printed = print(&url, prefix.as_deref());
    let mut again = BackendUrl::parse(&printed)
        .unwrap_or_else(|error| panic!("{text:?} was parsed, and {printed:?} is not: {error}"));
    assert_eq!(again.take("prefix").unwrap(), prefix, "{printed}");
    assert_eq!(
        (
            again.scheme(),
            again.user(),
            again.password(),
            again.hosts(),
            again.path()
        ),
        (
            url.scheme(),
            url.user(),
            url.password(),
            url.hosts(),
            url.path()
        ),
        "{text:?} {printed}"
    );
    again.finish().unwrap();
    for host in url.hosts() {
        assert_ne!(host.port(), Some(0));
        assert!(!host.name().is_empty() && !host.name().contains(['/', '@', ',', '?', '#', '[']));
    }
    if let Err(error) = url.take_duration("timeout") {
        refused(&error);
    }
    if let Err(error) = url.take_tls_files(&["etcds"]) {
        refused(&error);
    }
    if let Err(error) = url.finish() {
        refused(&error);
    }
}

/// Checks the errors of a backend.
fn backend(data: &[u8], schemes: &[&str], parse: fn(&str) -> Result<Capabilities>) {
    let Some(text) = url_of(data) else {
        return;
    };
    // Most inputs that are mutated have no scheme left.
    let (scheme, rest) = text.split_once("://").unwrap_or(("", &text));
    let scheme = if schemes.contains(&scheme) {
        scheme
    } else {
        schemes[0]
    };
    let url = format!("{scheme}://{rest}");
    if let Err(error) = parse(&url) {
        check(&url, &error);
        // A path is no secret: it is in the error if it cannot be used.
        let path_has_it = BackendUrl::parse(&url).is_ok_and(|url| url.path().contains(SECRET));
        let names_file = error.message().starts_with("cannot read the file of");
        if !path_has_it && !names_file {
            check_secret(&url, &error);
        }
    }
}

pub(super) fn redis(data: &[u8]) {
    backend(
        data,
        &["redis", "redis+unix", "valkey"],
        leasehold_redis::RedisBackend::provisional_capabilities,
    );
    backend(
        data,
        &["redlock"],
        leasehold_redis::redlock_provisional_capabilities,
    );
}

pub(super) fn etcd(data: &[u8]) {
    backend(
        data,
        &["etcd"],
        leasehold_etcd::EtcdBackend::provisional_capabilities,
    );
}

pub(super) fn zookeeper(data: &[u8]) {
    backend(
        data,
        &["zookeeper", "zk"],
        leasehold_zookeeper::ZookeeperBackend::provisional_capabilities,
    );
}

pub(super) fn postgres(data: &[u8]) {
    backend(
        data,
        &["postgres", "postgresql"],
        leasehold_postgres::PostgresBackend::provisional_capabilities,
    );
}
