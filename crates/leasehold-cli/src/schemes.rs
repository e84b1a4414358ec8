//! The schemes of URLs, and the features that they need.

use std::ffi::{OsStr, OsString};

use crate::{
    exit::{self, Failure},
    stderr,
};

/// The environment variable with the URL.
const VARIABLE: &str = "LEASEHOLD_URL";

/// A line of the help, and the schemes that it lists.
struct Row {
    schemes: &'static [&'static str],
    url: &'static str,
    what: &'static str,
    /// The feature of this package, and whether it is compiled in.
    feature: Option<(&'static str, bool)>,
}

macro_rules! feature {
    ($name:literal) => {
        Some(($name, cfg!(feature = $name)))
    };
}

const ROWS: [Row; 15] = [
    Row {
        schemes: &["file"],
        url: "file:",
        what: "lock files for this user on this host (default), in ~/.local/state/leasehold or, for root, /var/lib/leasehold",
        feature: None,
    },
    Row {
        schemes: &[],
        url: "file:/DIR",
        what: "the same in another directory that only this user may write; flock(1) uses the same locks",
        feature: None,
    },
    Row {
        schemes: &[],
        url: "file:/DIR?shared=true",
        what: "lock files for all users that may write the directory",
        feature: None,
    },
    Row {
        schemes: &["redis", "valkey"],
        url: "redis://[USER:PASSWORD@]HOST[:PORT][/DB][?prefix=P]",
        what: "one Redis server; also valkey://",
        feature: feature!("redis"),
    },
    Row {
        schemes: &["redis+unix"],
        url: "redis+unix:///PATH",
        what: "the same over a Unix socket",
        feature: feature!("redis"),
    },
    Row {
        schemes: &["rediss", "valkeys"],
        url: "rediss://HOST",
        what: "the same over TLS; also valkeys://",
        feature: feature!("redis-tls"),
    },
    Row {
        schemes: &["redlock"],
        url: "redlock://HOST,HOST,HOST",
        what: "a quorum of independent Redis servers",
        feature: feature!("redlock"),
    },
    Row {
        schemes: &["redlocks"],
        url: "redlocks://HOST,HOST,HOST",
        what: "the same over TLS",
        feature: Some((
            "redlock,redis-tls",
            cfg!(all(feature = "redlock", feature = "redis-tls")),
        )),
    },
    Row {
        schemes: &["etcd"],
        url: "etcd://[USER:PASSWORD@]HOST,HOST",
        what: "an etcd cluster",
        feature: feature!("etcd"),
    },
    Row {
        schemes: &["etcds"],
        url: "etcds://HOST,HOST",
        what: "the same over TLS",
        feature: feature!("etcd-tls"),
    },
    Row {
        schemes: &["postgres", "postgresql"],
        url: "postgres://[USER:PASSWORD@]HOST/DB",
        what: "a PostgreSQL database; also postgresql://",
        feature: feature!("postgres"),
    },
    Row {
        schemes: &[],
        url: "postgres://HOST/DB?sslmode=verify-full",
        what: "the same over TLS",
        feature: feature!("postgres-tls"),
    },
    Row {
        schemes: &["zookeeper", "zk"],
        url: "zookeeper://[USER:PASSWORD@]HOST,HOST[/PATH]",
        what: "a ZooKeeper ensemble; also zk://",
        feature: feature!("zookeeper"),
    },
    Row {
        schemes: &["zookeepers", "zks"],
        url: "zookeepers://HOST,HOST[/PATH]",
        what: "the same over TLS; also zks://",
        feature: feature!("zookeeper-tls"),
    },
    Row {
        schemes: &["memory"],
        url: "memory:",
        what: "the memory of one process, for `info` only",
        feature: None,
    },
];

/// Returns the list for the help. It names the feature of each scheme that is not compiled in.
pub(crate) fn help() -> String {
    let mut text = String::new();
    for Row {
        url, what, feature, ..
    } in ROWS
    {
        text.push_str(&format!("  {url}\n          {what}"));
        if let Some((feature, false)) = feature {
            text.push_str(&format!(" (not in this program; {})", remedy(feature)));
        }
        text.push('\n');
    }
    text
}

/// Refuses a URL whose scheme this program does not have, and names the remedy.
pub(crate) fn check(url: &str) -> Result<(), Failure> {
    // The URL may be a password in the wrong place, so that only its scheme is shown.
    let wrong = |what: String| Err(Failure::new(exit::USAGE, what));
    let source = if std::env::var(VARIABLE).is_ok_and(|value| value == url) {
        "the URL in the variable LEASEHOLD_URL"
    } else {
        "the URL after `--url`"
    };
    if url.is_empty() {
        return wrong(format!(
            "{source} is empty; name a backend, or leave it out for the lock files of this user"
        ));
    }
    let Some(scheme) = scheme_of(url) else {
        return wrong(format!(
            "{source} is not a URL, because it has no scheme; {}",
            known()
        ));
    };
    match ROWS.iter().find(|row| row.schemes.contains(&&*scheme)) {
        None => wrong(format!(
            "{source} has the unknown scheme `{scheme}:`; {}",
            known()
        )),
        Some(Row {
            feature: Some((feature, false)),
            ..
        }) => wrong(format!(
            "`{scheme}:` needs the feature `{feature}`, which this program was built without; {}",
            remedy(feature)
        )),
        Some(_) => Ok(()),
    }
}

/// Returns the schemes of this program.
fn known() -> String {
    let schemes: Vec<_> = ROWS
        .iter()
        .filter(|row| !row.schemes.contains(&"memory"))
        .filter(|row| row.feature.is_none_or(|(_, is_here)| is_here))
        .filter_map(|row| row.schemes.first())
        .map(|scheme| format!("{scheme}:"))
        .collect();
    format!(
        "this program knows {}, and `leasehold help` shows their URLs",
        schemes.join(", ")
    )
}

/// Warns of a URL in the place of a name. It is not shown, because it may contain a password.
pub(crate) fn warn_of_url(name: &OsStr) {
    if name.to_str().is_some_and(is_server_url) {
        stderr::report("the name of the lock is a URL; a URL for the locks comes after `--url`");
    }
}

/// Checks the names that are locked together. A URL is a valid name, but among several names it
/// stands in the wrong place.
pub(crate) fn check_names(names: &[OsString]) -> Result<(), Failure> {
    let is_url = |name: &&OsString| name.to_str().is_some_and(is_server_url);
    match (names, names.iter().find(is_url)) {
        ([name], Some(_)) => warn_of_url(name),
        (_, Some(url)) => {
            let scheme = url.to_str().and_then(scheme_of).unwrap_or_default();
            return Err(Failure::new(
                exit::USAGE,
                format!(
                    "one of the names is the URL {scheme}://***; a URL for the locks comes after `--url`"
                ),
            ));
        }
        (_, None) => {}
    }
    Ok(())
}

/// Returns whether `text` begins as the URL of a server.
pub(crate) fn is_server_url(text: &str) -> bool {
    text.contains("://")
        && scheme_of(text)
            .is_some_and(|scheme| ROWS.iter().any(|row| row.schemes.contains(&&*scheme)))
}

/// Refuses a URL whose locks exclude no other process, because they are in the memory of this one.
pub(crate) fn check_excludes(url: &str) -> Result<(), Failure> {
    if scheme_of(url).as_deref() == Some("memory") {
        let why = "`memory:` is the memory of one process, so that its locks exclude no other; choose another URL, or none";
        return Err(Failure::new(exit::USAGE, why));
    }
    Ok(())
}

/// Refuses a URL of anything but a quorum.
#[cfg(feature = "redlock")]
pub(crate) fn check_is_quorum(url: &str) -> Result<(), Failure> {
    match scheme_of(url).as_deref() {
        Some("redlock" | "redlocks") => Ok(()),
        _ => Err(Failure::new(
            exit::USAGE,
            "only a quorum can be initialized: --url redlock://HOST,HOST,HOST",
        )),
    }
}

/// Replaces the URLs of `arguments` in `message` by their scheme and `***`.
///
/// A URL in the wrong place may contain a password.
pub(crate) fn without_urls(message: &str, arguments: &[String]) -> String {
    let mut shown = String::from(message);
    for (before, secret) in arguments
        .iter()
        .filter_map(|argument| argument.split_once("://"))
    {
        let scheme = before.rsplit_once('=').map_or(before, |(_, scheme)| scheme);
        shown = shown.replace(&format!("{scheme}://{secret}"), &format!("{scheme}://***"));
    }
    shown
}

fn remedy(feature: &str) -> String {
    format!("install it with `cargo install leasehold-cli --features {feature}`")
}

fn scheme_of(url: &str) -> Option<String> {
    url.split_once(':')
        .map(|(scheme, _)| scheme.to_ascii_lowercase())
}
