//! Properties of the parsers, for any input. The package `leasehold-fuzz` searches for an input
//! that breaks one.

use leasehold_core::{ErrorKind, LockKey, Ttl};

use crate::{
    admin::{HolderId, PgLockRow},
    connection::{parse_session_name, session_name},
    hash::hash_text_extended,
    keys::{AdvisoryKey, KeyScheme},
    server::unsupported_reason,
};

/// Checks the names of locks and of sessions, the payloads of notifications, and the ids of
/// holders.
pub fn name(data: &[u8]) {
    check_schemes(data);
    let text = String::from_utf8_lossy(data);
    if let Some(key) = AdvisoryKey::of_payload(&text) {
        assert_eq!(
            key.payload(),
            text,
            "another program's payload is taken for ours"
        );
    }
    if let Ok(id) = text.parse::<HolderId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Some((ttl, label)) = parse_session_name(&text) {
        let ttl = Ttl::new(ttl).unwrap_or_else(|error| panic!("{text}: {error}"));
        let written = format!("leasehold {}ms {label}", ttl.as_millis());
        assert_eq!(written, text, "another program's session is taken for ours");
    }
    let named = session_name(Ttl::DEFAULT, &text);
    let (ttl, label) = parse_session_name(&named).expect("it is ours");
    assert_eq!(ttl, Ttl::DEFAULT.as_duration());
    assert!(label.chars().count() <= 63 && !label.contains(char::is_control));

    let version = data
        .iter()
        .fold(0_u32, |sum, byte| sum.rotate_left(8) ^ u32::from(*byte));
    assert_eq!(
        unsupported_reason(version, &text).is_some(),
        version < 120_000 || text != "UTF8"
    );
    check_row(data, &text);
}

fn check_schemes(data: &[u8]) {
    let hash = hash_text_extended(data, 0);
    for scheme in [
        KeyScheme::Hash,
        KeyScheme::Int64,
        KeyScheme::Int32Pair,
        KeyScheme::Sqlx,
        KeyScheme::Rails,
        KeyScheme::DotNet,
    ] {
        match scheme.key_of(data) {
            Ok(key) => {
                assert!(scheme.has_pairs() || !key.is_pair());
                if scheme == KeyScheme::Hash {
                    assert_eq!(key, AdvisoryKey::Int64(hash));
                }
                if matches!(scheme, KeyScheme::Int64 | KeyScheme::Int32Pair) {
                    assert_eq!(key.to_string().as_bytes(), data);
                }
                let bits = key.bits();
                let (class, object) = (bits >> 32 & 0xffff_ffff, bits & 0xffff_ffff);
                let sub = if key.is_pair() { 2 } else { 1 };
                assert_eq!(AdvisoryKey::of_pg_locks(class, object, sub), key);
                assert_eq!(AdvisoryKey::of_payload(&key.payload()), Some(key));
                let markers = [
                    key.waiter_marker(),
                    key.writer_marker(),
                    key.revocation_marker(7),
                ];
                assert!(markers[0] != markers[1] && markers[1] != markers[2]);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                let shown = error.message().to_owned();
                assert!(shown.contains(&*data.escape_ascii().to_string()), "{shown}");
            }
        }
    }
}

/// A row of `pg_locks` with any numbers and names.
fn check_row(data: &[u8], text: &str) {
    let mut numbers = data.chunks(8).map(|chunk| {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        i64::from_le_bytes(bytes)
    });
    let mut next = || numbers.next().unwrap_or_default();
    let row = PgLockRow {
        key: AdvisoryKey::of_pg_locks(next(), next(), 1),
        exclusive: true,
        granted: true,
        pid: next() as i32,
        name: text.to_owned(),
        address: Some(text.to_owned()),
        started: next(),
        silent: u64::try_from(next())
            .ok()
            .map(std::time::Duration::from_millis),
        connected: u64::try_from(next())
            .ok()
            .map(std::time::Duration::from_secs),
    };
    let key = LockKey::new("k").expect("a valid name");
    let holder = row.holder(&key, leasehold_core::Mode::Exclusive);
    let id: HolderId = std::str::from_utf8(&holder.id)
        .expect("text")
        .parse()
        .expect("ours");
    assert_eq!(
        (id.pid, id.started, id.key),
        (row.pid, row.started, row.key)
    );
    assert_eq!(
        holder.expires_in.is_some(),
        parse_session_name(text).is_some() && row.silent.is_some()
    );
}
