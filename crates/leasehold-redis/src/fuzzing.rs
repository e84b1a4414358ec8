//! Properties of the parsers, for any input. The package `leasehold-fuzz` searches for an input
//! that breaks one.

use std::collections::HashSet;

use leasehold_core::{
    ErrorKind, FencingToken, LockKey, Mode, Ttl, backend::Request, quorum::EpochRecord,
};
use redis::Value;

use crate::{
    admin,
    commands::{AcquireReply, TOKEN_LIMIT},
    handshake,
    keys::{KINDS, Keys, LockValue, ParsedValue, of_node, slot_of},
    quorum::marker::NodeMarker,
    record::{Answer, written},
    shared_call,
};

/// Checks the values of holders and waiters, and the markers of nodes.
pub fn value(data: &[u8]) {
    let parsed = ParsedValue::read(data);
    if let Some(owner) = parsed.owner {
        let of = parsed.of.map(|of| format!("{of}|")).unwrap_or_default();
        let written = format!("{of}{owner}:{}", parsed.label);
        let read = data.strip_prefix(b"revoked:").unwrap_or(data);
        assert_eq!(
            read,
            written.as_bytes(),
            "another program's value is taken for ours"
        );
    } else {
        assert!(parsed.label.is_empty() && parsed.of.is_none());
    }

    let text = String::from_utf8_lossy(data);
    let request = Request::new(LockKey::new("k").expect("a valid name")).with_label(&*text);
    let permit = request
        .clone()
        .with_permit_of(7.try_into().expect("not zero"));
    for (request, of) in [(&request, None), (&permit, Some(7))] {
        let written = LockValue::of(request).parts().to_vec();
        let read = ParsedValue::read(&written);
        assert_eq!((read.owner, read.of), (Some(request.owner()), of));
        assert!(read.label.len() <= 32 && !read.label.contains(char::is_control));
    }

    let marker = NodeMarker::parse(text.to_string());
    assert_eq!(marker.as_str(), text);
    if let Some(run) = marker.run().filter(|run| marker.is_of_run(run)) {
        let record = EpochRecord {
            incarnation: run.to_owned(),
            version: String::new(),
            durable: marker.is_durable(),
            largest_ttl: marker.largest_ttl.unwrap_or(Ttl::DEFAULT),
            above: FencingToken::new(marker.above),
        };
        assert_eq!(
            NodeMarker::new(&record),
            marker,
            "another program's text is a marker"
        );
    }
}

/// Checks the keys of two locks: a byte that is the length of the prefix, and two names that the
/// byte 0xff separates.
pub fn key(data: &[u8]) {
    let Some((length, rest)) = data.split_first() else {
        return;
    };
    let (prefix, names) = rest.split_at(usize::from(length % 16).min(rest.len()));
    let mut names = names.splitn(2, |byte| *byte == 0xff);
    let names = [names.next(), names.next()].map(|name| LockKey::new(name.unwrap_or_default()));
    let mut locks: Vec<(LockKey, HashSet<Vec<u8>>)> = Vec::new();
    for name in names.into_iter().flatten() {
        if let Err(error) = Keys::check(prefix, &name) {
            assert!(error.to_string().contains(&*name.to_string()), "{error}");
            continue;
        }
        let keys = Keys::new(prefix, &name);
        let (lock, token) = (keys.lock().to_vec(), keys.token().to_vec());
        assert_eq!(lock, [prefix, name.as_bytes()].concat());
        assert_eq!(slot_of(&token), keys.slot());
        let mut all: HashSet<_> = KINDS.map(|kind| keys.derived(kind).to_vec()).into();
        assert!(all.insert(lock) && all.len() == KINDS.len() + 1);
        for key in &all {
            assert_eq!(slot_of(key), keys.slot(), "{}", key.escape_ascii());
            assert_ne!(*key, token);
            assert!(
                of_node(prefix)
                    .iter()
                    .all(|of_node| of_node.to_vec() != *key)
            );
        }
        locks.push((name, all));
    }
    if let [(one, ones), (other, others)] = &locks[..]
        && one != other
    {
        let shared = ones.intersection(others).next();
        assert!(shared.is_none(), "{one:?} and {other:?} share {shared:?}");
    }
}

/// Checks replies of the server: a byte that chooses the mode, and a reply as the server sends it.
pub fn reply(data: &[u8]) {
    let Some((mode, reply)) = data.split_first() else {
        return;
    };
    let info = String::from_utf8_lossy(reply);
    for first in [true, false] {
        if let Err(error) = handshake::judge(&info, first, "h:1") {
            let shown = error.to_string();
            assert!(
                shown.contains("h:1") && !shown.contains(char::is_control),
                "{shown}"
            );
        }
    }
    handshake::restart(&info, Some(""));
    for name in ["redis_version", "run_id", "role"] {
        let field = handshake::field(&info, name);
        assert!(field == field.trim() && !field.contains('\n'), "{field:?}");
    }

    let Ok(reply) = redis::parse_redis_value(reply) else {
        return;
    };
    for count in [1, 2, 32] {
        let results = shared_call::read(reply.clone(), count);
        assert_eq!(results.len(), count, "{reply:?}");
        if let Value::BulkString(text) = &reply
            && let Ok(tokens) = results.into_iter().collect::<Result<Vec<_>, _>>()
        {
            let tokens = tokens.iter().map(|token| match token {
                Value::Int(token) => token.to_string(),
                other => panic!("{reply:?} has {other:?}"),
            });
            assert_eq!(tokens.collect::<Vec<_>>().join(" ").as_bytes(), text);
        }
    }
    let mode = match mode % 3 {
        0 => Mode::Exclusive,
        1 => Mode::Shared,
        _ => Mode::Permit {
            of: 2.try_into().expect("not zero"),
        },
    };
    match AcquireReply::read(&reply, mode) {
        Ok(AcquireReply::Granted(token)) => {
            assert_eq!(token.is_none(), mode.is_permit(), "{reply:?}");
            if let Some(token) = token {
                assert!(token.get() < TOKEN_LIMIT, "{reply:?}: {token}");
                let number = match &reply {
                    Value::Int(number) => number.to_string().into_bytes(),
                    Value::BulkString(number) => number.clone(),
                    _ => panic!("{reply:?} grants"),
                };
                assert_eq!(number, token.to_string().as_bytes(), "{reply:?}");
            }
        }
        Ok(AcquireReply::Refused(..) | AcquireReply::Mismatch { .. }) => {
            assert!(matches!(reply, Value::Array(_)), "{reply:?}");
        }
        Ok(AcquireReply::RefusedNoInfo) => assert_eq!(reply, Value::Nil),
        Err(error) => assert!(!error.is_retryable(), "{reply:?}: {error}"),
    }
    let key = LockKey::new("k").expect("a valid name");
    if let Ok(inspection) = admin::read(&key, reply) {
        for holder in inspection.holders {
            assert_eq!(
                holder.owner.is_some(),
                ParsedValue::read(&holder.id).owner.is_some()
            );
        }
    }
}

/// Checks replies of the scripts that read and write the record beside a lock, as the server sends
/// them.
pub fn record(data: &[u8]) {
    let Ok(reply) = redis::parse_redis_value(data) else {
        return;
    };
    let key = LockKey::new("item/42").expect("a valid name");
    match written(&key, &reply) {
        Ok(version) => {
            let number = version.unwrap_or_default().to_string().parse().ok();
            assert_eq!(Some(reply.clone()), number.map(Value::Int));
        }
        // It is another program's value, which stays.
        Err(error) if error.kind() != ErrorKind::UnexpectedResponse => {
            assert!(matches!(reply, Value::BulkString(_)), "{reply:?}: {error}");
            assert!(error.to_string().contains("`item/42`"), "{error}");
        }
        Err(_) => {}
    }
    let answer = Answer::parse(reply.clone());
    if let Value::Array(parts) = &reply
        && let [
            Value::Int(now @ 0..),
            stored @ (Value::Nil | Value::BulkString(_)),
            Value::Int(matters),
            Value::Int(left),
        ] = &parts[..]
    {
        let answer = answer.expect("the script answers so");
        let since = answer.now.duration_since(std::time::UNIX_EPOCH);
        let micros = since.expect("it is not negative").as_micros();
        assert_eq!(Ok(micros), u128::try_from(*now));
        let bytes = answer.stored.map_or(Value::Nil, Value::BulkString);
        assert_eq!(bytes, *stored);
        assert_eq!(answer.matters, *matters == 1, "{reply:?}");
        assert_eq!(answer.left.is_some(), *left >= 0, "{reply:?}");
    }
}
