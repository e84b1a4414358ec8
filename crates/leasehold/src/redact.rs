//! [`RedactedUrl`]: a URL as errors may show it.

use std::fmt;

use leasehold_core::{text::Escaped, url::BackendUrl};

/// The most characters that are shown.
const LIMIT: usize = 80;

/// A URL whose `Display` shows nothing that may be secret, on one line.
///
/// The user, the password and the options become `***`. Of a URL that cannot be taken apart only the scheme is shown,
/// since any of its parts may belong to a password.
pub(crate) struct RedactedUrl<'a>(pub(crate) &'a str);

impl fmt::Display for RedactedUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_scheme = |scheme: &str| scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        match self.0.split_once(':') {
            Some((scheme, _)) if ["file", "memory"].contains(&scheme.to_ascii_lowercase().as_str()) => {
                shorten(self.0, f)
            }
            Some((scheme, rest)) if rest.starts_with("//") && is_scheme(scheme) => match BackendUrl::parse(self.0) {
                Ok(url) => show(&url, self.0.contains('?'), f),
                Err(_) => write!(f, "{}://***", Escaped(scheme)),
            },
            Some((_, port)) if port.is_empty() || port.parse::<u16>().is_ok() => shorten(self.0, f),
            None if !self.0.contains('@') => shorten(self.0, f),
            Some(_) | None => f.write_str("***"),
        }
    }
}

fn show(url: &BackendUrl, has_options: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let hidden = if url.user().is_some() || url.password().is_some() { "***@" } else { "" };
    let hosts: Vec<_> = url.hosts().iter().map(ToString::to_string).collect();
    let options = if has_options { "?***" } else { "" };
    let shown = format!("{}://{hidden}{}{}{options}", url.scheme(), hosts.join(","), url.path());
    shorten(&shown, f)
}

/// Shows at most [`LIMIT`] characters on one line.
fn shorten(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let end = text.char_indices().nth(LIMIT).map_or(text.len(), |(at, _)| at);
    let more = if end < text.len() { "…" } else { "" };
    write!(f, "{}{more}", Escaped(&text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for (url, shown) in [
            ("redis://ann:secret@host/0", "redis://***@host/0"),
            ("redis://:secret@host/0", "redis://***@host/0"),
            ("redis://:se@cr/et?@host/0", "redis://***"),
            ("redis://:secret", "redis://***"),
            ("redis://host/?pass=a@secret", "redis://***"),
            ("etcd://ann:top?secret@host/", "etcd://***"),
            ("etcd://h1,h2:7000/?prefix=secret", "etcd://h1,h2:7000/?***"),
            ("redis+unix:///run/r.sock?pass=secret", "redis+unix:///run/r.sock?***"),
            ("ann:secret@host", "***"),
            ("ann:secret", "***"),
            ("secret@host", "***"),
            ("localhost:6379", "localhost:6379"),
            ("file:/a@b", "file:/a@b"),
            ("fi\nle", "fi\\nle"),
            ("file:\u{202e}\u{9b}", "file:\\u{202e}\\u{9b}"),
        ] {
            assert_eq!(RedactedUrl(url).to_string(), shown);
        }
        assert!(RedactedUrl(&"x".repeat(70_000)).to_string().len() < 100);
    }
}
