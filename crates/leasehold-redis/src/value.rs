//! How a holder or waiter is written: `<owner in hex>:<label>`, and for permits `<of>|` before it.

use std::borrow::Cow;

use leasehold_core::{AcquisitionId, HolderRef, LockKey, Mode, backend::Request};

use crate::keys::Parts;

/// Long enough for host, process and program; short, because it travels with every request.
const MAX_LABEL: usize = 32;

/// The value under which one acquisition holds or waits.
pub(crate) struct Holder<'a> {
    of: Option<String>,
    hex: [u8; 32],
    label: Cow<'a, str>,
}

impl<'a> Holder<'a> {
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

    /// As whom it waits.
    pub(crate) fn waiting(request: &'a Request) -> Self {
        Self {
            hex: request.waiter().to_hex(),
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

/// The label as other programs can show it: printable ASCII of bounded length.
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

/// What a value that was read says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The acquisition, if Leasehold wrote it.
    pub(crate) owner: Option<AcquisitionId>,
    /// The label; empty if another program wrote it.
    pub(crate) label: String,
    /// The number of permits, if it is a permit's.
    pub(crate) of: Option<u32>,
}

/// Reads a value back.
pub(crate) fn read(value: &[u8]) -> Seen {
    let foreign = Seen {
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
            Ok(owner) => Seen {
                owner: Some(owner),
                label: rest[1..].to_owned(),
                of,
            },
            Err(_) => foreign,
        },
        _ => foreign,
    }
}

/// A holder whose value was read.
pub(crate) fn shown(
    key: &LockKey,
    value: Vec<u8>,
    mode: impl FnOnce(&Seen) -> Option<Mode>,
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
        let value = Holder::of(&request).parts().to_vec();
        assert_eq!(
            String::from_utf8(value.clone()).unwrap(),
            format!("{:032x}:host/7 p?", 0xab)
        );
        assert_eq!(
            read(&value),
            Seen {
                owner: Some(0xab.into()),
                label: "host/7 p?".into(),
                of: None
            }
        );

        let request = request.with_permit_of(4.try_into().unwrap());
        let value = Holder::of(&request).parts().to_vec();
        assert_eq!(
            String::from_utf8(value.clone()).unwrap(),
            format!("4|{:032x}:host/7 p?", 0xab)
        );
        assert_eq!(
            read(&value),
            Seen {
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
        assert_eq!(Holder::of(&request).parts().to_vec().len(), 33 + MAX_LABEL);
    }
}
