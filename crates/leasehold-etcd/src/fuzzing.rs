//! Properties of the parsers, for any input. The package `leasehold-fuzz` searches for an input
//! that breaks one.

use leasehold_core::{LockKey, Mode};

use crate::{
    admin,
    keys::{EtcdKey, KeyLayout, label_of},
    versions::has_lease_revocation_bug,
};

/// Checks the keys under the prefix of a lock. The input is a byte of flags, and then three texts
/// that the byte 0xff separates: the prefix, the name, and the rest of a key.
pub fn key(data: &[u8]) {
    let Some((flags, rest)) = data.split_first() else {
        return;
    };
    let [exact, permits] = [flags & 1 != 0, flags & 2 != 0];
    let mut texts = rest.splitn(3, |byte| *byte == 0xff);
    let mut next = || texts.next().unwrap_or_default();
    let layout = KeyLayout {
        prefix: next().into(),
        exact,
    };
    let (name, rest) = (next(), next());
    if let Ok(name) = LockKey::new(name) {
        lock(&layout, &name, permits, rest);
    }

    if let Some((key, revision)) = layout.marked(rest) {
        let mark = layout.mark(key.as_bytes(), revision);
        assert_eq!(mark, Some(EtcdKey::from(rest)), "another key is a mark");
    }
    if let Some((revision, key)) = admin::read_id(rest) {
        assert_eq!(
            [format!("{revision}:").as_bytes(), key.as_bytes()].concat(),
            rest
        );
    }
    assert!(label_of(rest).len() <= 3 * rest.len());
    has_lease_revocation_bug(&String::from_utf8_lossy(rest));
}

fn lock(layout: &KeyLayout, name: &LockKey, permits: bool, rest: &[u8]) {
    let lock_prefix = match layout.lock_prefix(name, permits) {
        Ok(lock_prefix) => lock_prefix,
        Err(error) => {
            assert!(
                layout.exact && error.to_string().contains(&*name.to_string()),
                "{error}"
            );
            return;
        }
    };
    let (start, end) = (lock_prefix.start(), lock_prefix.end());
    let key = [&start, rest].concat();
    assert!(start <= key && (key < end || rest.first() == Some(&0xff)));
    let owner = lock_prefix.read(&key);
    if let Some(candidate) = owner.candidate {
        let written = match candidate.owner {
            Some(owner) => lock_prefix.candidate(candidate.lease, owner).to_vec(),
            None => [&start, format!("{:x}", candidate.lease).as_bytes()].concat(),
        };
        assert_eq!(written, key, "another key is taken for a candidate's");
        assert_eq!(owner.is_leasehold, candidate.owner.is_some());
        assert!(!owner.shared && owner.of.is_none());
    } else if owner.is_leasehold {
        let text = std::str::from_utf8(rest).expect("our keys are text");
        let numbers = text.strip_prefix("r-").unwrap_or(text);
        let (lease, slot) = numbers.split_once('-').expect("a lease and a slot");
        let slot = slot.split('-').next().unwrap_or_default();
        let mode = match (owner.shared, owner.of) {
            (true, _) => Mode::Shared,
            (false, Some(of)) => Mode::Permit {
                of: of.try_into().expect("a semaphore has permits"),
            },
            (false, None) => Mode::Exclusive,
        };
        let lease = u64::from_str_radix(lease, 16)
            .expect("the id of a lease")
            .cast_signed();
        let slot = u32::from_str_radix(slot, 16).expect("the number of a slot");
        let written = lock_prefix.key(mode, lease, slot);
        assert_eq!(
            written.as_bytes(),
            key,
            "another program's key is taken for ours"
        );
    }
    // No other lock sees these keys.
    if !layout.exact {
        let other = LockKey::new([name.as_bytes(), rest].concat());
        for (other, permits) in other.iter().flat_map(|key| [(key, true), (key, false)]) {
            let other = layout.lock_prefix(other, permits).expect("encoded").start();
            assert!(other == start || !(other.starts_with(&start) || start.starts_with(&other)));
        }
    }
}
