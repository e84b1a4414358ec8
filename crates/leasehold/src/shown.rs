//! A URL as errors may show it.

use std::fmt::{self, Write};

/// The most characters that are shown.
const LIMIT: usize = 80;

/// Shows a URL on one line without what may be secret: what stands before the last `@` is `***`, and so are the options.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The last `@`: a password that should have been encoded may contain others, and `:`, `/` and `?` too.
        let place = match self.0.rsplit_once('@') {
            Some((before, place)) => {
                if let Some((scheme, _)) = before.split_once("://") {
                    write!(f, "{}://", Escaped(scheme))?;
                }
                f.write_str("***@")?;
                place
            }
            None => self.0,
        };
        match place.split_once('?') {
            Some((place, _)) => write!(f, "{}?***", Escaped(place)),
            None => Escaped(place).fmt(f),
        }
    }
}

struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars().take(LIMIT) {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        if self.0.chars().nth(LIMIT).is_some() { f.write_char('…') } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for (url, shown) in [
            ("redis://ann:secret@host/0", "redis://***@host/0"),
            ("redis://:se@cr/et?@host/0", "redis://***@host/0"),
            ("ann:secret@host", "***@host"),
            ("secret@host", "***@host"),
            ("redis+unix:///run/r.sock?pass=secret", "redis+unix:///run/r.sock?***"),
            ("redis://host/?pass=a@secret", "redis://***@secret"),
            ("fi\nle:/x", "fi\\nle:/x"),
        ] {
            assert_eq!(Shown(url).to_string(), shown);
        }
        assert!(Shown(&"x".repeat(70_000)).to_string().len() < 100);
    }
}
