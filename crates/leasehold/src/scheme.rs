//! [`Scheme`]: the backend that the scheme of a URL stands for.

use leasehold_core::{Error, ErrorKind, Result};

use crate::redact::RedactedUrl;

/// The backend that the scheme of a URL stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// `memory:NAME`
    Memory,
    /// `file:DIR`
    File,
    /// `redis://`, `redis+unix://`
    Redis,
    /// `rediss://`
    RedisTls,
    /// `etcd://`
    Etcd,
    /// `etcds://`
    EtcdTls,
    /// `postgres://`, `postgresql://`
    Postgres,
    /// `redlock://`
    Redlock,
    /// `redlocks://`
    RedlockTls,
    /// `zookeeper://`, `zk://`
    Zookeeper,
    /// `zookeepers://`, `zks://`
    ZookeeperTls,
}

const SCHEMES: [(&str, Scheme); 17] = [
    ("memory", Scheme::Memory),
    ("file", Scheme::File),
    ("redis", Scheme::Redis),
    ("redis+unix", Scheme::Redis),
    ("rediss", Scheme::RedisTls),
    ("valkey", Scheme::Redis),
    ("valkeys", Scheme::RedisTls),
    ("etcd", Scheme::Etcd),
    ("etcds", Scheme::EtcdTls),
    ("postgres", Scheme::Postgres),
    ("postgresql", Scheme::Postgres),
    ("redlock", Scheme::Redlock),
    ("redlocks", Scheme::RedlockTls),
    ("zookeeper", Scheme::Zookeeper),
    ("zk", Scheme::Zookeeper),
    ("zookeepers", Scheme::ZookeeperTls),
    ("zks", Scheme::ZookeeperTls),
];

/// The schemes of backends that this version does not have.
const PLANNED: [(&str, &str); 2] = [
    ("redis-cluster", "Redis Cluster"),
    ("redis-sentinel", "Redis Sentinel"),
];

const KNOWN: &str = "memory:, memory:NAME, file:, file:DIR, redis://HOST, rediss://HOST, redis+unix://PATH, redlock://HOST,HOST,HOST, \
     etcd://HOST,HOST, etcds://HOST, postgres://HOST/DB, zookeeper://HOST,HOST/PATH, zookeepers://HOST";

impl Scheme {
    /// Splits `url` at its first colon, and returns the scheme and the rest. The feature of a known
    /// scheme may be disabled.
    pub(crate) fn of(url: &str) -> Result<(Self, &str)> {
        let Some((scheme, rest)) = url.split_once(':') else {
            return Err(invalid(format!(
                "`{}` is not a URL, because it has no scheme; supported URLs are {KNOWN}",
                RedactedUrl(url)
            )));
        };
        let name = scheme.to_ascii_lowercase();
        if let Some((_, scheme)) = SCHEMES.into_iter().find(|(known, _)| *known == name) {
            return Ok((scheme, rest));
        }
        if let Some((name, backend)) = PLANNED.into_iter().find(|(planned, _)| *planned == name) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "`{name}:` needs a backend for {backend}, which this version does not have; supported URLs are {KNOWN}"
                ),
            ));
        }
        Err(invalid(format!(
            "`{}` has an unknown scheme; supported URLs are {KNOWN}",
            RedactedUrl(url)
        )))
    }

    /// Returns the error for a scheme whose feature is disabled.
    pub(crate) fn not_compiled_in(self) -> Error {
        let (scheme, feature) = match self {
            Self::Memory => ("memory:", "local"),
            Self::File => ("file:", "local"),
            Self::Redis => ("redis:", "redis"),
            Self::RedisTls => ("rediss:", "redis-tls"),
            Self::Etcd => ("etcd:", "etcd"),
            Self::EtcdTls => ("etcds:", "etcd-tls"),
            Self::Postgres => ("postgres:", "postgres"),
            Self::Zookeeper => ("zookeeper:", "zookeeper"),
            Self::ZookeeperTls => ("zookeepers:", "zookeeper-tls"),
            Self::Redlock => ("redlock:", "redlock"),
            Self::RedlockTls if cfg!(feature = "redlock") => ("redlocks:", "redis-tls"),
            Self::RedlockTls => ("redlocks:", "redlock"),
        };
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "`{scheme}` needs the feature `{feature}` of the crate `leasehold`, which this program was built without; \
                 enable it in Cargo.toml"
            ),
        )
    }
}

/// Parses a `file:` URL into its directory and its options. Returns `None` for another scheme.
///
/// Use it to open the backend with further options of
/// [`FileConfig`](leasehold_local::FileConfig).
///
/// ```
/// use std::path::PathBuf;
///
/// let options = leasehold::file_options("file:/var/lib/shop?shared=true")?;
/// let (dir, config) = options.expect("it is a file: URL");
/// assert_eq!(dir, PathBuf::from("/var/lib/shop"));
/// let config = config.with_sync(true);
///
/// let (dir, _) = leasehold::file_options("file:")?.expect("it is a file: URL");
/// assert_eq!(dir, leasehold::local::FileBackend::default_dir()?);
/// assert!(leasehold::file_options("memory:")?.is_none());
/// # Ok::<(), leasehold::Error>(())
/// ```
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) for an invalid URL, as
/// [`connect`](crate::connect).
#[cfg(feature = "local")]
pub fn file_options(
    url: &str,
) -> Result<Option<(std::path::PathBuf, leasehold_local::FileConfig)>> {
    match Scheme::of(url)? {
        (Scheme::File, rest) => {
            let (path, options) = rest.split_once('?').unwrap_or((rest, ""));
            Ok(Some((directory(url, path)?, config(options)?)))
        }
        _ => Ok(None),
    }
}

/// Parses the directory after `file:`. It is not decoded.
#[cfg(feature = "local")]
fn directory(url: &str, rest: &str) -> Result<std::path::PathBuf> {
    if rest.contains('\0') {
        return Err(invalid(format!(
            "`{}` has a NUL byte in its path; use another directory",
            RedactedUrl(url)
        )));
    }
    let path = match rest.strip_prefix("//") {
        None => rest,
        Some(after) => match after.strip_prefix("localhost").unwrap_or(after) {
            path if path.starts_with('/') => path,
            _ => {
                return Err(invalid(format!(
                    "`{}` has a host, which a `file:` URL cannot have; write file:DIR or file:///DIR",
                    RedactedUrl(url)
                )));
            }
        },
    };
    if path.is_empty() {
        return leasehold_local::FileBackend::default_dir();
    }
    let path = std::path::PathBuf::from(path);
    if !path.has_root() {
        // Two programs with different working directories would not share a lock. A shell expands
        // `~` only at the start of a word, so `--url file:~/locks` arrives unexpanded.
        return Err(invalid(
            "the path of a `file:` URL must start with `/`, and `~` is not expanded; write file:$HOME/DIR or file:$PWD/DIR",
        ));
    }
    Ok(path)
}

/// Parses the options after the `?`.
#[cfg(feature = "local")]
fn config(options: &str) -> Result<leasehold_local::FileConfig> {
    let mut config = leasehold_local::FileConfig::new();
    for (at, option) in options
        .split('&')
        .filter(|option| !option.is_empty())
        .enumerate()
    {
        config = match option {
            "shared=true" if at == 0 => config.with_shared(true),
            "shared=false" if at == 0 => config,
            _ => {
                return Err(invalid(
                    "the only option of a `file:` URL is shared=true or shared=false; a URL cannot name a directory with a `?` in \
                     its name",
                ));
            }
        };
    }
    Ok(config)
}

pub(crate) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_scheme_is_read_whatever_its_case() {
        for (name, scheme) in SCHEMES {
            assert_eq!(Scheme::of(&format!("{name}:x")).unwrap(), (scheme, "x"));
            assert_eq!(
                Scheme::of(&format!("{}:x", name.to_uppercase())).unwrap(),
                (scheme, "x")
            );
        }
    }

    #[test]
    fn planned_backends_are_unsupported_by_name() {
        for url in ["redis-sentinel://a,b,c", "redis-cluster://u:secret@h"] {
            let error = Scheme::of(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            let text = error.to_string();
            assert!(
                text.contains("this version does not have") && text.contains("redis://HOST"),
                "{text}"
            );
            assert!(!text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn unknown_url_error_lists_the_known_schemes() {
        for url in ["", "127.0.0.1", "ftp://h", "localhost:6379", ":", "redis"] {
            let error = Scheme::of(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let text = error.to_string();
            assert!(
                text.contains(&format!("`{url}`")) && text.contains("file:DIR"),
                "{text}"
            );
        }
        for url in ["re dis://h", "\u{1f512}:x"] {
            assert!(
                Scheme::of(url)
                    .unwrap_err()
                    .to_string()
                    .contains("file:DIR")
            );
        }
        assert!(
            !Scheme::of("ann:secret@host")
                .unwrap_err()
                .to_string()
                .contains("secret")
        );
    }

    #[test]
    fn a_missing_feature_is_named() {
        for (scheme, feature) in [
            (Scheme::Memory, "local"),
            (Scheme::File, "local"),
            (Scheme::Redis, "redis"),
            (Scheme::RedisTls, "redis-tls"),
            (Scheme::Etcd, "etcd"),
            (Scheme::EtcdTls, "etcd-tls"),
            (Scheme::Postgres, "postgres"),
            (Scheme::Zookeeper, "zookeeper"),
            (Scheme::ZookeeperTls, "zookeeper-tls"),
            (Scheme::Redlock, "redlock"),
        ] {
            let error = scheme.not_compiled_in();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(
                error.to_string().contains(&format!("feature `{feature}`")),
                "{error}"
            );
        }
    }

    #[cfg(feature = "local")]
    fn dir_of(url: &str) -> Result<std::path::PathBuf> {
        file_options(url).map(|options| options.expect("it is a file: URL").0)
    }

    #[cfg(feature = "local")]
    #[test]
    fn a_directory_that_depends_on_the_working_directory_is_refused() {
        for url in [
            "file:~",
            "file:~/locks",
            "file:~ann/locks",
            "file:locks",
            "file:./locks",
            "file:../x",
            "file:.",
        ] {
            let error = dir_of(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("$HOME"), "{error}");
        }
        for (url, dir) in [("file:/~/x", "/~/x"), ("file:///x~", "/x~")] {
            assert_eq!(dir_of(url).unwrap(), std::path::Path::new(dir));
        }
    }

    #[cfg(feature = "local")]
    #[test]
    fn a_directory_is_taken_as_it_stands() {
        for (url, dir) in [
            ("file:/a b/c", "/a b/c"),
            ("file:/x%20y", "/x%20y"),
            ("file:///x", "/x"),
            ("file://localhost/x", "/x"),
            ("file:/x?", "/x"),
        ] {
            assert_eq!(dir_of(url).unwrap(), std::path::Path::new(dir));
        }
        for url in ["file://host/x", "file://x", "file://", "file:/a\0b"] {
            assert_eq!(
                dir_of(url).unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{url:?}"
            );
        }
    }

    #[cfg(feature = "local")]
    #[test]
    fn a_directory_is_shared_if_the_url_says_so() {
        for (url, shared) in [
            ("file:/x", false),
            ("file:?shared=true", true),
            ("file:/x?shared=true", true),
            ("file:///x?shared=true&", true),
            ("file:/x?shared=false", false),
        ] {
            let (_, config) = file_options(url).unwrap().unwrap();
            let expected = leasehold_local::FileConfig::new().with_shared(shared);
            assert_eq!(format!("{config:?}"), format!("{expected:?}"), "{url}");
        }
        for url in [
            "file:/x?shared",
            "file:/x?shared=1",
            "file:/x?y",
            "file:/x?shared=true&shared=false",
            "file:/x??",
        ] {
            let error = file_options(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url:?}");
            assert!(error.to_string().contains("shared=true"), "{error}");
        }
    }
}
