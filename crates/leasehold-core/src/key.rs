//! [`LockKey`]: the name of a lock.

use std::{fmt, sync::Arc};

use crate::{
    error::{Error, ErrorKind},
    text,
};

/// The name of a lock: 1 to 1 024 arbitrary bytes.
///
/// Two keys name the same lock if and only if their bytes are equal. Every backend maps keys
/// injectively to what it stores, or rejects the key with [`ErrorKind::InvalidInput`].
///
/// Cloning is cheap. [`Display`](fmt::Display) shows the key on one line. It escapes unprintable
/// characters (as [`text::Escaped`] does), backslashes, and bytes that are not UTF-8.
///
/// ```
/// use leasehold_core::LockKey;
///
/// let key = LockKey::new("item/42")?;
/// assert_eq!(key.as_bytes(), b"item/42");
/// assert_eq!(LockKey::new(b"a\n\xff".as_slice())?.to_string(), r"a\n\xff");
/// assert!(LockKey::new("").is_err());
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockKey(Arc<[u8]>);

impl LockKey {
    /// The maximum length in bytes. It is long enough for a URL and short enough for the index of
    /// every backend.
    pub const MAX_LEN: usize = 1024;

    /// Creates a key from its bytes.
    ///
    /// # Errors
    /// Returns [`ErrorKind::InvalidInput`] if `name` is empty or longer than
    /// [`MAX_LEN`](Self::MAX_LEN).
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, Error> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "the lock name is empty; give it at least one byte",
            ));
        }
        if name.len() > Self::MAX_LEN {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the lock name that starts with `{}` has {} bytes and the limit is {}; use a shorter name or a hash of it",
                    Escaped(&name[..32]),
                    name.len(),
                    Self::MAX_LEN
                ),
            ));
        }
        Ok(Self(name.into()))
    }

    /// Returns the bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the key as text, or `None` if it is not UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl AsRef<[u8]> for LockKey {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&self.0).fmt(f)
    }
}

impl fmt::Debug for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockKey(\"{self}\")")
    }
}

macro_rules! parse_from {
    ($($from:ty),*) => {$(
        impl TryFrom<$from> for LockKey {
            type Error = Error;
            fn try_from(name: $from) -> Result<Self, Error> {
                Self::new(name)
            }
        }
    )*};
}
parse_from!(&str, String, &String, &[u8], Vec<u8>);

impl From<&LockKey> for LockKey {
    fn from(key: &LockKey) -> Self {
        key.clone()
    }
}

/// Bytes shown as one line of text.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for (at, part) in chunk.valid().split('\\').enumerate() {
                if at > 0 {
                    f.write_str("\\\\")?;
                }
                write!(f, "{}", text::Escaped(part))?;
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn awkward_names_are_keys_and_show_on_one_line() {
        for (name, shown) in [
            ("a/b", "a/b"),
            ("..", ".."),
            ("{}", "{}"),
            ("\0", "\\0"),
            ("a\u{1b}\u{9b}\u{202e}b", "a\\u{1b}\\u{9b}\\u{202e}b"),
            ("a\nb", "a\\nb"),
            ("\\", "\\\\"),
            ("🔒", "🔒"),
        ] {
            assert_eq!(LockKey::new(name).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn empty_and_oversized_names_are_refused_with_the_remedy() {
        assert_eq!(
            LockKey::new("").unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        let error = LockKey::new(vec![b'x'; 65_536]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("65536 bytes"), "{error}");
        assert!(LockKey::new(vec![b'x'; LockKey::MAX_LEN]).is_ok());
    }
}
