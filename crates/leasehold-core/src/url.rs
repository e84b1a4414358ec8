//! The URL of a backend: one syntax for all backends, for implementors.
//!
//! [`BackendUrl`] parses a URL and returns its options. All errors are [`ErrorKind::InvalidInput`].
//! A message says what is wrong, but never shows a part of the URL that may be secret, even if the
//! URL is malformed. It does not name a backend; see [`Error::with_backend`].

use std::{fmt, path::PathBuf, time::Duration};

use percent_encoding::percent_decode_str;

use crate::error::{Error, ErrorKind, Result};

/// An unknown option within this edit distance of a known one is shown as a typing error.
const MAX_TYPING_ERRORS: usize = 2;

/// A parsed URL: `SCHEME://[USER[:PASSWORD]@][HOST[:PORT],…][/PATH][?OPTION=VALUE&…]`.
///
/// A user, password, host, path or value that contains a reserved character must be
/// percent-encoded. An `@` after the host is an error, because it is most likely the end of a
/// password with an unencoded `/` or `?`. [`Debug`] shows no user, password or value.
///
/// ```
/// use leasehold_core::url::BackendUrl;
///
/// let mut url = BackendUrl::parse("etcd://ann:p%40ss@h1,h2:7000/?prefix=shop%3A&timeout=2s")?;
/// assert_eq!((url.scheme(), url.user(), url.password()), ("etcd", Some("ann"), Some("p@ss")));
/// assert_eq!(url.hosts()[0].to_string(), "h1");
/// assert_eq!(url.hosts()[1].port(), Some(7000));
/// assert_eq!(url.take("prefix")?.as_deref(), Some("shop:"));
/// assert_eq!(url.take_duration("timeout")?, Some(std::time::Duration::from_secs(2)));
/// url.finish()?; // fails if an option is left
///
/// let error = BackendUrl::parse("etcd://ann:Top?Secret@h/").unwrap_err();
/// assert!(error.to_string().contains("%3F") && !error.to_string().contains("Secret"));
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone)]
pub struct BackendUrl {
    scheme: String,
    user: Option<String>,
    password: Option<String>,
    hosts: Vec<Host>,
    path: String,
    options: Vec<(String, String)>,
    requested: Vec<&'static str>,
}

/// A host of a [`BackendUrl`]: a name or an address, with an optional port.
///
/// ```
/// use leasehold_core::url::BackendUrl;
///
/// let url = BackendUrl::parse("etcd://[::1]:7000,db")?;
/// let hosts = url.hosts();
/// assert_eq!((hosts[0].name(), hosts[0].port()), ("::1", Some(7000)));
/// assert_eq!((hosts[1].name(), hosts[1].port()), ("db", None));
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    name: String,
    port: Option<u16>,
}

impl Host {
    /// Returns the name or address, without the brackets of an IPv6 address.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the port, if the URL has one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    fn parse(text: &str) -> Result<Self> {
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (name, port) = match bracketed {
            Some((address, port)) => {
                let address: std::net::Ipv6Addr = address
                    .parse()
                    .map_err(|_| invalid("the host in brackets is not an IPv6 address"))?;
                (
                    address.to_string(),
                    port.strip_prefix(':')
                        .map(Some)
                        .or(port.is_empty().then_some(None)),
                )
            }
            None => match text.split_once(':') {
                Some((name, port)) => (decode("host", name)?, Some(Some(port))),
                None => (decode("host", text)?, Some(None)),
            },
        };
        let bad_port = || invalid("the port of a host is not a number from 1 to 65535");
        let port = match port.ok_or_else(bad_port)? {
            Some(port) => Some(number(port).filter(|port| *port > 0).ok_or_else(bad_port)?),
            None => None,
        };
        // A colon that is encoded is part of no name, and the host would be shown as another one.
        let known = |c: char| {
            c.is_alphanumeric() || matches!(c, '.' | '-' | '_') || c == ':' && bracketed.is_some()
        };
        if name.is_empty() || !name.chars().all(known) {
            return Err(invalid(
                "one of the hosts is empty or has a character that no host name has",
            ));
        }
        Ok(Self { name, port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]", self.name)?;
        } else {
            f.write_str(&self.name)?;
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl BackendUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// Returns [`ErrorKind::InvalidInput`] if the URL is malformed. The message says what is wrong
    /// and how to write it.
    pub fn parse(url: &str) -> Result<Self> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(invalid(
                "the URL has no `://` after a scheme; write SCHEME://HOST",
            ));
        };
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if scheme.is_empty() || !scheme.chars().all(is_scheme) {
            return Err(invalid(
                "the URL does not begin with a scheme; write SCHEME://HOST",
            ));
        }
        if rest.contains('#') {
            return Err(invalid(
                "the URL has a `#`; write %23 for one in a user, password, path or option",
            ));
        }
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if rest.contains('@') {
            return Err(invalid(
                "the URL has an `@` after the host; in a user, password, path or option write %40 for `@`, %2F for `/` \
                 and %3F for `?`",
            ));
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        // Split at the last `@`, because a password that should have been encoded may contain
        // others.
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, authority),
        };
        let (user, password) = match user {
            Some(user) => match user.split_once(':') {
                Some((user, password)) => (Some(user), Some(decode("password", password)?)),
                None => (Some(user), None),
            },
            None => (None, None),
        };
        let user = user
            .filter(|user| !user.is_empty())
            .map(|user| decode("user", user))
            .transpose()?;
        let hosts = match hosts {
            "" => Vec::new(),
            hosts => hosts.split(',').map(Host::parse).collect::<Result<_>>()?,
        };
        let options = query
            .split('&')
            .filter(|option| !option.is_empty())
            .map(|option| {
                let (name, value) = option.split_once('=').unwrap_or((option, ""));
                let decode_form =
                    |text: &str| decode("text of an option", &text.replace('+', "%20"));
                Ok((decode_form(name)?, decode_form(value)?))
            });
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            user,
            password,
            hosts,
            path: decode("path", path)?,
            options: options.collect::<Result<_>>()?,
            requested: Vec::new(),
        })
    }

    /// Returns the scheme in lower case.
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Returns the user, if there is one.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Returns the password, if there is one.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Returns the hosts in the order of the URL. The slice is empty if there is no host.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Returns the decoded path with its leading `/`, or an empty string.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Removes an option and returns its value, or `None` if it is not given.
    ///
    /// # Errors
    /// Returns [`ErrorKind::InvalidInput`] if the option is given more than once.
    pub fn take(&mut self, option: &'static str) -> Result<Option<String>> {
        self.requested.push(option);
        let Some(at) = self.options.iter().position(|(name, _)| name == option) else {
            return Ok(None);
        };
        let (_, value) = self.options.remove(at);
        if self.options.iter().any(|(name, _)| name == option) {
            return Err(invalid(format!(
                "the option `{option}` is given more than once"
            )));
        }
        Ok(Some(value))
    }

    /// Removes an option and parses its value with [`duration`].
    ///
    /// # Errors
    /// Returns the errors of [`take`](Self::take) and [`duration`].
    pub fn take_duration(&mut self, option: &'static str) -> Result<Option<Duration>> {
        self.take(option)?
            .map(|value| duration(option, &value))
            .transpose()
    }

    /// Removes the options `ca`, `cert` and `key`, which name files in PEM format. `schemes` are
    /// those with TLS. An error names the one that corresponds to that of the URL, or the first.
    ///
    /// # Errors
    /// Returns the errors of [`take`](Self::take), and [`ErrorKind::InvalidInput`] if an option is
    /// given and the URL has another scheme.
    pub fn take_tls_files(&mut self, schemes: &[&str]) -> Result<TlsFiles> {
        let is_tls = schemes.contains(&self.scheme());
        let with_tls = format!("{}s", self.scheme());
        let with_tls = schemes.iter().find(|scheme| **scheme == with_tls);
        let mut path = |option| match self.take(option)? {
            Some(_) if !is_tls => {
                let scheme = with_tls.or(schemes.first()).unwrap_or(&"TLS");
                Err(invalid(format!("the option `{option}` needs {scheme}:")))
            }
            path => Ok(path.map(PathBuf::from)),
        };
        Ok(TlsFiles {
            ca: path("ca")?,
            cert: path("cert")?,
            key: path("key")?,
        })
    }

    /// Checks that no option is left.
    ///
    /// # Errors
    /// Returns [`ErrorKind::InvalidInput`] if one is left. The message lists the options that were
    /// requested. It shows the unknown option only if its name resembles one of them, because it
    /// may be part of a password.
    pub fn finish(self) -> Result<()> {
        let Some((name, _)) = self.options.first() else {
            return Ok(());
        };
        let resembles =
            |option: &&&str| strsim::levenshtein(option, &name.to_lowercase()) <= MAX_TYPING_ERRORS;
        let known = self.requested.join(", ");
        Err(invalid(match self.requested.iter().find(resembles) {
            Some(option) => {
                format!(
                    "`{}` is not an option; did you mean `{option}`? The options are: {known}",
                    name.escape_debug()
                )
            }
            None => format!("one of the options is unknown; the options are: {known}"),
        }))
    }
}

impl fmt::Debug for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendUrl")
            .field("scheme", &self.scheme)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

/// The files that the options `ca`, `cert` and `key` of a [`BackendUrl`] name. None is read yet.
///
/// [`Display`](fmt::Display) lists the options that are given, with their paths.
///
/// ```
/// use leasehold_core::url::BackendUrl;
///
/// let files = BackendUrl::parse("etcds://h/?ca=/no/ca.pem")?.take_tls_files(&["etcds"])?;
/// assert_eq!(files.to_string(), "`ca` /no/ca.pem");
/// assert!(files.read_ca().unwrap_err().to_string().contains("cannot read /no/ca.pem"));
/// assert!(files.read_identity()?.is_none());
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl TlsFiles {
    /// Reads the file of `ca`, with the authorities that sign the servers' certificates. Returns
    /// `None` if the option is not given.
    ///
    /// # Errors
    /// Returns [`ErrorKind::InvalidInput`] if the file cannot be read.
    pub fn read_ca(&self) -> Result<Option<Vec<u8>>> {
        self.ca.as_ref().map(read).transpose()
    }

    /// Reads the files of `cert` and `key`: the client's certificate and its key. Returns `None` if
    /// neither option is given.
    ///
    /// # Errors
    /// Returns [`ErrorKind::InvalidInput`] if only one option is given, or a file cannot be read.
    pub fn read_identity(&self) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Ok(Some((read(cert)?, read(key)?))),
            (None, None) => Ok(None),
            _ => Err(invalid("the options `cert` and `key` belong together")),
        }
    }
}

impl fmt::Display for TlsFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = [("ca", &self.ca), ("cert", &self.cert), ("key", &self.key)];
        let given = options.iter().filter_map(|(option, path)| {
            let path = path.as_ref()?.display();
            Some(format!("`{option}` {path}"))
        });
        f.write_str(&given.collect::<Vec<_>>().join(", "))
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| invalid(format!("cannot read {}: {error}", path.display())))
}

/// Decodes the percent-encoding of `text`. `part` names the part of the URL in errors, such as
/// `host`, `user` or `password`.
///
/// # Errors
/// Returns [`ErrorKind::InvalidInput`] if the decoded bytes are not UTF-8.
///
/// ```
/// use leasehold_core::url::decode;
///
/// assert_eq!(decode("password", "p%23ss")?, "p#ss");
/// assert!(decode("password", "%ff").is_err());
/// # Ok::<(), leasehold_core::Error>(())
/// ```
pub fn decode(part: &str, text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded
        .map(Into::into)
        .map_err(|_| invalid(format!("the {part} in the URL is not UTF-8 when decoded")))
}

/// Parses the value of an option that is a duration: a positive whole number of seconds (`2s`) or
/// milliseconds (`500ms`).
///
/// # Errors
/// Returns [`ErrorKind::InvalidInput`], naming the option, for any other value.
///
/// ```
/// use std::time::Duration;
///
/// use leasehold_core::url::duration;
///
/// assert_eq!(duration("connect-timeout", "500ms")?, Duration::from_millis(500));
/// let error = duration("connect-timeout", "5").unwrap_err();
/// assert!(error.to_string().contains("connect-timeout"));
/// # Ok::<(), leasehold_core::Error>(())
/// ```
pub fn duration(option: &str, text: &str) -> Result<Duration> {
    let parsed = match text.strip_suffix("ms") {
        Some(millis) => number(millis).map(Duration::from_millis),
        None => number(text.strip_suffix('s').unwrap_or_default()).map(Duration::from_secs),
    };
    parsed
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| {
            invalid(format!(
                "the option `{option}` is not a time such as 500ms or 2s"
            ))
        })
}

/// Parses a number without a sign.
fn number<N: std::str::FromStr>(text: &str) -> Option<N> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_time_has_a_unit_and_is_above_zero() {
        assert_eq!(duration("x", "2s").unwrap(), Duration::from_secs(2));
        assert_eq!(duration("x", "2000ms").unwrap(), Duration::from_secs(2));
        for text in [
            "",
            "s",
            "ms",
            "5",
            "0s",
            "0ms",
            "-1s",
            "+1s",
            "+1ms",
            "1.5s",
            "1 s",
            "1m",
            "1us",
            "99999999999999999999s",
        ] {
            assert_eq!(
                duration("x", text).unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{text}"
            );
        }
    }

    #[test]
    fn part_that_cannot_be_decoded_is_named_but_not_shown() {
        let error = decode("password", "secret%ff").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(
            error.to_string().contains("password") && !format!("{error:?}").contains("secret"),
            "{error:?}"
        );
    }

    fn refused(url: &str) -> String {
        let url = BackendUrl::parse(url).and_then(|mut url| {
            url.take("prefix")?;
            url.take_duration("timeout")?;
            url.finish()
        });
        let error = url.expect_err("it is malformed");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        format!("{error} {error:?}")
    }

    #[test]
    fn a_url_is_parsed_into_its_parts() {
        let url = BackendUrl::parse(
            "Redis://al%40ice:p%23ss%2F@h1,h2:7000,[::1]:80/my%20path?a=%20&b=x+y",
        )
        .unwrap();
        assert_eq!(
            (url.scheme(), url.user(), url.password()),
            ("redis", Some("al@ice"), Some("p#ss/"))
        );
        let hosts: Vec<_> = url.hosts().iter().map(ToString::to_string).collect();
        assert_eq!(
            (hosts, url.path()),
            (
                vec!["h1".into(), "h2:7000".into(), "[::1]:80".to_owned()],
                "/my path"
            )
        );
        assert_eq!(
            url.options,
            [("a".into(), " ".into()), ("b".into(), "x y".into())]
        );
        let socket = BackendUrl::parse("redis+unix:///run/x").unwrap();
        assert_eq!((socket.hosts(), socket.path()), (&[][..], "/run/x"));
        assert_eq!(
            BackendUrl::parse("redis://:secret@h").unwrap().password(),
            Some("secret")
        );
    }

    #[test]
    fn malformed_urls_say_what_is_wrong() {
        for (url, named) in [
            ("h:6379", "scheme"),
            ("re dis://h", "scheme"),
            ("redis://h/#x", "%23"),
            ("redis://u:a/b@h", "%2F"),
            ("redis://u:a?b@h", "%3F"),
            ("redis://h/?prefix=a@b", "%40"),
            ("redis://h:99999", "port"),
            ("redis://h:0", "port"),
            ("redis://h:+1", "port"),
            ("redis://h%3A1", "host"),
            ("redis://:secret", "port"),
            ("redis://[::1", "host"),
            ("redis://[::1]x", "port"),
            ("redis://[zz]", "IPv6"),
            ("redis://h1,,h2", "host"),
            ("redis://a b", "host"),
            ("redis://h/?prefix=%ff", "UTF-8"),
            (
                "redis://h/?prefix=a&prefix=b",
                "`prefix` is given more than once",
            ),
            ("redis://h/?prefx=a", "did you mean `prefix`"),
            ("redis://h/?Secret", "prefix, timeout"),
            ("redis://h/?timeout=5", "timeout"),
        ] {
            let text = refused(url);
            assert!(text.contains(named), "{url}: {text}");
            assert!(!text.contains("ecret"), "{url}: {text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        /// No error shows a part of a password, wherever it stands in the URL and whatever it
        /// contains.
        #[test]
        fn no_error_shows_a_part_of_a_password(
            before in "(redis|rediss|etcd|x y)?(:|://|:/)(u|)(:|)",
            between in "[?/@:#&=%,\\[\\] ]{0,3}",
            after in "(@|)(h|h:1|h:x|,|\\[)?(/|)(\\?|)(a|prefix=1|timeout=x|&)?",
        ) {
            let url = format!("{before}Zq7xWv{between}Kw9vTy{after}");
            let outcome = BackendUrl::parse(&url).and_then(|mut url| {
                url.take("prefix")?;
                url.take_duration("timeout")?;
                url.finish()
            });
            if let Err(error) = outcome {
                let text = format!("{error} {error:?}");
                prop_assert!(!text.contains("Zq7x") && !text.contains("Kw9v"), "{url}: {text}");
            }
        }
    }
}
