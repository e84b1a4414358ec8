//! [`Escaped`]: untrusted text, made safe to print. [`parse_exact`]: what this program wrote, among
//! what others did.

use std::{
    fmt::{self, Write},
    str::FromStr,
};

/// Text shown on one line, for terminals and logs.
///
/// Labels, names and server messages come from other programs. `Display` escapes, in Rust's
/// notation, control characters and characters that reorder or hide text. Everything else is shown
/// unchanged.
///
/// ```
/// use leasehold_core::text::Escaped;
///
/// assert_eq!(Escaped("till 3 – café").to_string(), "till 3 – café");
/// assert_eq!(Escaped("a\u{1b}[2Jb\u{202e}c\n").to_string(), r"a\u{1b}[2Jb\u{202e}c\n");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            let escaped = c.escape_debug();
            // Quotes, backslashes and combining marks are printable.
            if escaped.len() == 1 || matches!(c, '"' | '\'' | '\\') || is_mark(c) {
                f.write_char(c)?;
            } else {
                write!(f, "{escaped}")?;
            }
        }
        Ok(())
    }
}

/// Parses `text` if it is exactly what the parsed value prints.
///
/// Use it to recognize what Leasehold wrote among what other programs wrote. The parsers of numbers
/// in Rust also accept a sign and leading zeros, and that of an id accepts capital letters, so that
/// they would take a text of another program for one of ours.
///
/// ```
/// use leasehold_core::text::parse_exact;
///
/// assert_eq!(parse_exact("42"), Some(42_u64));
/// assert_eq!(parse_exact::<u64>("+42"), None);
/// assert_eq!(parse_exact::<u64>("042"), None);
/// ```
#[must_use]
pub fn parse_exact<T: FromStr + fmt::Display>(text: &str) -> Option<T> {
    text.parse()
        .ok()
        .filter(|parsed: &T| parsed.to_string() == text)
}

/// Returns whether Rust escapes `c` only because it combines with the preceding character.
fn is_mark(c: char) -> bool {
    // Rust escapes such a mark only at the start of a string.
    let text: String = ['a', c].iter().collect();
    text.escape_debug().count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_reordering_characters_are_escaped() {
        for c in [
            '\0', '\u{7}', '\u{1b}', '\r', '\n', '\u{7f}', '\u{9b}', '\u{200b}', '\u{202e}',
            '\u{2066}', '\u{feff}',
        ] {
            let shown = Escaped(&format!("a{c}b")).to_string();
            assert!(
                shown.starts_with("a\\") && !shown.contains(c),
                "{c:?}: {shown:?}"
            );
        }
    }

    #[test]
    fn ordinary_text_is_unchanged() {
        for text in ["it's \"C:\\x\"", "cafe\u{301}", "日本語", "🔒", "a b"] {
            assert_eq!(Escaped(text).to_string(), text);
        }
    }
}
