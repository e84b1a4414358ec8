//! [`LockValue`]: the value of a holder or waiter, `<owner in hex>:<label>`. The value of a permit
//! starts with `<of>|`.

use std::borrow::Cow;

use leasehold_core::{AcquisitionId, HolderRef, LockKey, Mode, backend::Request};

use crate::keys::Parts;

/// The longest label: enough for host, process and program, but short, because every request sends
/// it.
const MAX_LABEL: usize = 32;

/// The value under which one acquisition holds or waits.
pub(crate) struct LockValue<'a> {
    of: Option<String>,
    hex: [u8; 32],
    label: Cow<'a, str>,
}

impl<'a> LockValue<'a> {
    pub(crate) fn of(request: &'a Request) -> Self {
        let of = match request.mode() {
            Mode::Permit { of } => Some(of.to_string()),
            _ => None,
        };
        Self {
            of,
            hex: request.owner().to_hex(),
            label: printable(request.label()),
        }
    }

    /// Returns the value under which the request waits.
    pub(crate) fn waiting(request: &'a Request) -> Self {
        Self {
            hex: request.waiting().id.to_hex(),
            ..Self::of(request)
        }
    }

    pub(crate) fn parts(&self) -> Parts<'_> {
        let label = self.label.as_bytes();
        match &self.of {
            None => Parts([&self.hex, b":", label, b"", b"", b"", b""]),
            Some(of) => Parts([of.as_bytes(), b"|", &self.hex, b":", label, b"", b""]),
        }
    }
}

/// Returns the label as printable ASCII of bounded length.
fn printable(label: &str) -> Cow<'_, str> {
    if label.len() <= MAX_LABEL && label.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Cow::Borrowed(label);
    }
    Cow::Owned(
        label
            .chars()
            .take(MAX_LABEL)
            .map(|c| if (' '..='~').contains(&c) { c } else { '?' })
            .collect(),
    )
}

/// A value that was read from the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ParsedValue {
    /// The acquisition, if Leasehold wrote it.
    pub(crate) owner: Option<AcquisitionId>,
    /// The label; empty if another program wrote it.
    pub(crate) label: String,
    /// The number of permits, if it is a permit's.
    pub(crate) of: Option<u32>,
}

/// Parses a value.
pub(crate) fn read(value: &[u8]) -> ParsedValue {
    let foreign = ParsedValue {
        owner: None,
        label: String::new(),
        of: None,
    };
    let Ok(value) = std::str::from_utf8(value) else {
        return foreign;
    };
    let value = value.strip_prefix("broken:").unwrap_or(value);
    let (of, value) = match value.split_once('|') {
        Some((of, rest)) if of.bytes().all(|byte| byte.is_ascii_digit()) => (of.parse().ok(), rest),
        _ => (None, value),
    };
    match value.split_at_checked(32) {
        Some((hex, rest)) if rest.starts_with(':') => match hex.parse() {
            Ok(owner) => ParsedValue {
                owner: Some(owner),
                label: rest[1..].to_owned(),
                of,
            },
            Err(_) => foreign,
        },
        _ => foreign,
    }
}

/// Returns the holder with this value.
pub(crate) fn holder_ref(
    key: &LockKey,
    value: Vec<u8>,
    mode: impl FnOnce(&ParsedValue) -> Option<Mode>,
) -> HolderRef {
    let seen = read(&value);
    let mut holder = HolderRef::new(key.clone(), value);
    holder.mode = mode(&seen);
    holder.owner = seen.owner;
    holder.label = seen.label;
    holder
}

#[cfg(test)]
mod tests {
    use leasehold_core::LockKey;

    use super::*;

    #[test]
    fn golden_value() {
        let request = Request::new(LockKey::new("a").unwrap())
            .with_owner(0xab.into())
            .with_label("host/7 p\u{f6}");
        let value = LockValue::of(&request).parts().to_vec();
        assert_eq!(
            String::from_utf8(value.clone()).unwrap(),
            format!("{:032x}:host/7 p?", 0xab)
        );
        assert_eq!(
            read(&value),
            ParsedValue {
                owner: Some(0xab.into()),
                label: "host/7 p?".into(),
                of: None
            }
        );

        let request = request.with_permit_of(4.try_into().unwrap());
        let value = LockValue::of(&request).parts().to_vec();
        assert_eq!(
            String::from_utf8(value.clone()).unwrap(),
            format!("4|{:032x}:host/7 p?", 0xab)
        );
        assert_eq!(
            read(&value),
            ParsedValue {
                owner: Some(0xab.into()),
                label: "host/7 p?".into(),
                of: Some(4)
            }
        );
    }

    #[test]
    fn values_of_other_programs_are_foreign() {
        for value in [
            "",
            "5a1f",
            "0123456789abcdef0123456789abcdef",
            "\u{1f512}",
            "x|y",
            "7|",
            "a b",
        ] {
            assert!(read(value.as_bytes()).owner.is_none(), "{value}");
        }
        assert!(read(b"\xff\xfe").owner.is_none());
        // The broken mark is seen through.
        assert!(
            read(format!("broken:{:032x}:", 1).as_bytes())
                .owner
                .is_some()
        );
    }

    #[test]
    fn a_long_label_is_cut() {
        let request = Request::new(LockKey::new("a").unwrap()).with_label("x".repeat(1000));
        assert_eq!(
            LockValue::of(&request).parts().to_vec().len(),
            33 + MAX_LABEL
        );
    }
}
