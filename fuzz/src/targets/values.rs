//! The values that are written as text and read again: ids, tokens, names and escaped text.

use leasehold_core::{AcquisitionId, ErrorKind, FencingToken, LockKey, text::Escaped};

pub(super) fn check(data: &[u8]) {
    match LockKey::new(data) {
        Ok(key) => {
            assert_eq!(key.as_bytes(), data);
            let shown = key.to_string();
            assert!(
                !shown.is_empty() && !shown.contains(char::is_control),
                "{shown:?}"
            );
            // Different names look different.
            assert_eq!(unescape(&shown), data, "{shown}");
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(data.is_empty() || data.len() > LockKey::MAX_LEN);
            assert!(error.to_string().len() < 512, "{error}");
        }
    }
    let text = String::from_utf8_lossy(data);
    let shown = Escaped(&text).to_string();
    assert!(!shown.contains(char::is_control), "{shown:?}");
    match text.parse::<AcquisitionId>() {
        Ok(id) => {
            assert_eq!(id.to_string(), text.to_lowercase());
            assert_eq!(id.to_hex(), text.to_lowercase().as_bytes());
        }
        Err(error) => assert!(error.to_string().contains("hexadecimal"), "{error}"),
    }
    match text.parse::<FencingToken>() {
        Ok(token) => {
            assert!(text.bytes().all(|byte| byte.is_ascii_digit()), "{text:?}");
            assert_eq!(token.to_string().parse::<FencingToken>().unwrap(), token);
        }
        Err(error) => assert!(error.to_string().contains("decimal"), "{error}"),
    }
}

/// Reads the notation of [`LockKey`]'s `Display`.
fn unescape(shown: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = shown;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c != '\\' {
            bytes.extend(c.to_string().bytes());
            continue;
        }
        let (kind, after) = rest.split_at(1);
        rest = after;
        match kind {
            "x" => {
                bytes.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                rest = &rest[2..];
            }
            "u" => {
                let (hex, after) = rest[1..].split_once('}').unwrap();
                let c = char::from_u32(u32::from_str_radix(hex, 16).unwrap()).unwrap();
                bytes.extend(c.to_string().bytes());
                rest = after;
            }
            "n" => bytes.push(b'\n'),
            "r" => bytes.push(b'\r'),
            "t" => bytes.push(b'\t'),
            "0" => bytes.push(0),
            "\\" => bytes.push(b'\\'),
            other => panic!("`\\{other}` in {shown}"),
        }
    }
    bytes
}
