//! [`RedactedUrl`]: a URL without secrets, for errors.

use std::fmt;

use leasehold_core::{text::Escaped, url::BackendUrl};

/// The maximum number of characters that are shown.
const LIMIT: usize = 80;

/// A URL whose `Display` shows no secrets, on one line.
///
/// Options become `***`. If a URL has a user name or cannot be parsed, only its scheme is shown,
/// because any other part may belong to a password that contains reserved characters.
pub(crate) struct RedactedUrl<'a>(pub(crate) &'a str);

impl fmt::Display for RedactedUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_scheme = |scheme: &str| {
            scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        };
        match self.0.split_once(':') {
            Some((scheme, rest))
                if ["file", "memory"].contains(&scheme.to_ascii_lowercase().as_str()) =>
            {
                // These URLs have no host and no password, but a user may write both by mistake.
                let authority = rest
                    .strip_prefix("//")
                    .filter(|rest| !rest.starts_with('/'));
                if authority.is_some() {
                    write!(f, "{}://***", Escaped(scheme))
                } else {
                    shorten(self.0, f)
                }
            }
            Some((scheme, rest)) if rest.starts_with("//") && is_scheme(scheme) => {
                match BackendUrl::parse(self.0) {
                    Ok(url) if !rest.contains('@') => show(&url, rest.contains('?'), f),
                    Ok(_) | Err(_) => write!(f, "{}://***", Escaped(scheme)),
                }
            }
            Some((_, port)) if port.is_empty() || port.parse::<u16>().is_ok() => shorten(self.0, f),
            None if !self.0.contains('@') => shorten(self.0, f),
            Some(_) | None => f.write_str("***"),
        }
    }
}

fn show(url: &BackendUrl, has_options: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let hosts: Vec<_> = url.hosts().iter().map(ToString::to_string).collect();
    let options = if has_options { "?***" } else { "" };
    let shown = format!(
        "{}://{}{}{options}",
        url.scheme(),
        hosts.join(","),
        url.path()
    );
    shorten(&shown, f)
}

/// Shows at most [`LIMIT`] characters on one line.
fn shorten(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let end = text
        .char_indices()
        .nth(LIMIT)
        .map_or(text.len(), |(at, _)| at);
    let more = if end < text.len() { "…" } else { "" };
    write!(f, "{}{more}", Escaped(&text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for (url, shown) in [
            ("redis://ann:secret@host/0", "redis://***"),
            ("redis://:sec@ret", "redis://***"),
            ("redis://:se@cr/et?@host/0", "redis://***"),
            ("redis://:secret", "redis://***"),
            ("redis://host/?pass=a@secret", "redis://***"),
            ("etcd://ann:top?secret@host/", "etcd://***"),
            ("etcd://h1,h2:7000/?prefix=secret", "etcd://h1,h2:7000/?***"),
            (
                "redis+unix:///run/r.sock?pass=secret",
                "redis+unix:///run/r.sock?***",
            ),
            ("ann:secret@host", "***"),
            ("ann:secret", "***"),
            ("secret@host", "***"),
            ("localhost:6379", "localhost:6379"),
            ("file:/a@b", "file:/a@b"),
            ("file:///a@b", "file:///a@b"),
            ("file://ann:secret@host/x", "file://***"),
            ("fi\nle", "fi\\nle"),
            ("file:\u{202e}\u{9b}", "file:\\u{202e}\\u{9b}"),
        ] {
            assert_eq!(RedactedUrl(url).to_string(), shown);
        }
        assert!(RedactedUrl(&"x".repeat(70_000)).to_string().len() < 100);
    }
}
