//! No error about a URL shows a password, wherever it stands and whatever is wrong with the URL.
#![cfg(all(
    feature = "local",
    feature = "redis-tls",
    feature = "redlock",
    feature = "etcd-tls",
    feature = "postgres-tls",
    feature = "zookeeper-tls"
))]

use std::{collections::BTreeMap, error::Error as _};

use leasehold::{Error, connect, connect_lazily};

/// The two halves of every password. The characters between them differ.
const HALVES: [&str; 2] = ["Zq7xWv", "Kw9vTy"];

const BETWEEN: [&str; 25] = [
    "",
    "?",
    "#",
    "@",
    "/",
    ":",
    "%",
    "%ff",
    "%zz",
    "%00",
    "&",
    "=",
    ",",
    "[",
    "]",
    " ",
    "\\",
    "//",
    "é",
    "\u{202e}",
    "\n",
    "+",
    "?password=",
    "://",
    "@127.0.0.1:1/",
];

const SCHEMES: [&str; 21] = [
    "redis",
    "Redis",
    "rediss",
    "valkey",
    "valkeys",
    "redis+unix",
    "redlock",
    "redlocks",
    "etcd",
    "etcds",
    "postgres",
    "postgresql",
    "zookeeper",
    "zk",
    "zookeepers",
    "zks",
    "ftp",
    "redis-sentinel",
    "re dis",
    "",
    // With an authority, which files do not have. Without one it is the name of a directory.
    "file",
];

/// `P` is the password. Nobody listens on port 1.
const FORMS: [&str; 44] = [
    "//ann:P@127.0.0.1:1/",
    "//:P@127.0.0.1:1/",
    "//P@127.0.0.1:1/",
    "//ann:P127.0.0.1:1/",
    "//:P",
    "//:P/",
    "//ann:P",
    "//ann:P@",
    "//ann:P@/",
    "//ann:P@127.0.0.1:99999/",
    "//ann:P@127.0.0.1:x/",
    "//ann:P@127.0.0.1:0/",
    "//ann:P@[::1/",
    "//ann:P@[zz]:1/",
    "//ann:P@[::1]x/",
    "//ann:P@127.0.0.1:1,127.0.0.1:x/",
    "//ann:P@127.0.0.1:1,,127.0.0.1:1/",
    "//ann:P@127.0.0.1:1,127.0.0.1:1/",
    "//ann:P@127.0.0.1:1,127.0.0.2:1,127.0.0.1:1/",
    "//127.0.0.1:1,ann:P@127.0.0.1:x/",
    "//ann:P,ann:P,ann:P/",
    "//:P,:P,:P",
    "//ann:P@ann:P@127.0.0.1:x/",
    "//[ann:P]/",
    "//127.0.0.1:P/",
    "//ann:P@127.0.0.1:1/x/y?odd=1",
    "//ann:P@127.0.0.1:1/?prefx=a",
    "//ann:P@127.0.0.1:1/?name=two%20words",
    "//127.0.0.1:1/?password=P",
    "//127.0.0.1:1/?pass=P@b",
    "//127.0.0.1:1/?password=P@127.0.0.1",
    "//127.0.0.1:1/?P",
    "//127.0.0.1:1/?P=1",
    "//127.0.0.1:1/?timeout=P&connect-timeout=P&node-timeout=P",
    "//127.0.0.1:1/?prefix=P&prefix=P",
    "//127.0.0.1:1/?sslmode=P",
    "//127.0.0.1:1/?notifications=P&keys=P&acl=P&names=P",
    "//127.0.0.1:1/?sequence=P&odd=P",
    "//127.0.0.1:1/?port=P&host=127.0.0.1",
    "//127.0.0.1:1/#P",
    "//ann:P@127.0.0.1:1/#odd",
    "ann:P@127.0.0.1:1/",
    "/ann:P@127.0.0.1:1/",
    ":ann:P@127.0.0.1:1/",
];

/// Everything that may be printed of an error.
fn shown(error: &Error) -> String {
    let mut shown = format!("{error} {error:?} {error:#?} {}", error.message());
    let mut cause = error.source();
    while let Some(error) = cause {
        shown.push_str(&format!(" {error} {error:?}"));
        cause = error.source();
    }
    shown.to_lowercase()
}

/// Whether four characters of the password in a row are shown.
fn shows_a_part(text: &str) -> bool {
    HALVES
        .iter()
        .any(|half| (0..=half.len() - 4).any(|at| text.contains(&half[at..at + 4].to_lowercase())))
}

fn urls() -> impl Iterator<Item = (&'static str, String)> {
    SCHEMES.into_iter().flat_map(|scheme| {
        FORMS.into_iter().flat_map(move |form| {
            BETWEEN.into_iter().map(move |between| {
                let password = format!("{}{between}{}", HALVES[0], HALVES[1]);
                (scheme, format!("{scheme}:{}", form.replace('P', &password)))
            })
        })
    })
}

fn is_postgres(scheme: &str) -> bool {
    scheme.starts_with("postgres")
}

/// Reads the URLs of these schemes. Returns how many are malformed.
fn refused(schemes: impl Fn(&str) -> bool) -> usize {
    let (mut refused, mut leaks) = (0, BTreeMap::<&str, Vec<String>>::new());
    for (scheme, url) in urls().filter(|(scheme, _)| schemes(scheme)) {
        // A URL that can be read is not connected to here.
        let Err(error) = connect_lazily(&url) else {
            continue;
        };
        refused += 1;
        let text = shown(&error);
        if shows_a_part(&text) {
            leaks
                .entry(scheme)
                .or_default()
                .push(format!("{url:?}: {error}"));
        }
    }
    let few = |(scheme, leaks): (_, &Vec<String>)| {
        format!(
            "{scheme}: {} leaks\n  {}",
            leaks.len(),
            leaks[..leaks.len().min(5)].join("\n  ")
        )
    };
    assert!(
        leaks.is_empty(),
        "{}",
        leaks.iter().map(few).collect::<Vec<_>>().join("\n")
    );
    refused
}

#[test]
fn no_error_shows_a_part_of_a_password() {
    let refused = refused(|scheme| !is_postgres(scheme));
    assert!(refused >= 10_000, "{refused} URLs are malformed");
}

/// Of servers that are not there. Returns how many were tried.
async fn unreachable(schemes: impl Fn(&str) -> bool) -> usize {
    let mut tried = 0;
    for (scheme, url) in urls().filter(|(scheme, _)| schemes(scheme)) {
        let sound = ["//ann:Z", "//:Z"].iter().any(|form| url.contains(form))
            && url.ends_with("@127.0.0.1:1/");
        if !sound || connect_lazily(&url).is_err() {
            continue;
        }
        tried += 1;
        let error = connect(&url).await.expect_err("nobody listens there");
        assert!(
            !shows_a_part(&shown(&error)),
            "{scheme}: {url:?}: {}",
            shown(&error)
        );
    }
    tried
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_error_of_a_connection_shows_a_part_of_a_password() {
    let schemes = [
        "redis",
        "redis+unix",
        "rediss",
        "redlock",
        "etcd",
        "zookeeper",
    ];
    let tried = unreachable(|scheme| schemes.contains(&scheme)).await;
    assert!(tried >= 100, "{tried} URLs were connected to");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_error_of_postgres_shows_a_part_of_a_password() {
    let refused = refused(is_postgres);
    assert!(refused >= 1_000, "{refused} URLs are malformed");
    let tried = unreachable(|scheme| scheme == "postgres").await;
    assert!(tried >= 10, "{tried} URLs were connected to");
}
