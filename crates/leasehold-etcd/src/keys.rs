//! The keys on the server.
//!
//! | key | what |
//! |---|---|
//! | `<prefix><name>/<lease>-<slot>` | an exclusive holder or waiter |
//! | `<prefix><name>/<lease>-<owner>` | a candidate of an election |
//! | `<prefix><name>/r-<lease>-<slot>` | a shared holder or waiter |
//! | `<prefix><name>%permits/<lease>-<slot>-<of>` | a holder or waiter of a permit |
//! | `<prefix>%session/<lease>` | a session |
//! | `<prefix>%revoked/<create revision>/<rest of a key>` | the mark of a graceful revocation |
//! | `<prefix>%record/<name>` | the record beside a lock, without a lease |
//!
//! `<lease>` is the lease id in hexadecimal, as Go's `concurrency` writes it. `<slot>`
//! distinguishes the acquisitions of one session that hold or want the lock at the same time. Slots
//! are reused, because every range over a prefix also visits its deleted keys until the next
//! compaction: after 20 000 acquisitions with a key each, one took 3 ms. The value is
//! `<owner in hex>:<label>`.
//!
//! The value of a candidate is its proposal without any addition, as other programs write it. It
//! therefore does not distinguish acquisitions that reuse a slot, and the key has the id of the
//! acquisition instead, in 32 hexadecimal digits. The key of another program's candidate is
//! `<prefix><name>/<lease>`.
//!
//! In `<name>`, the bytes `/` and `%` are written as `%2F` and `%25`, so that `a` never sees `a/b`.
//! With exact names, names are written unchanged.

use std::{fmt, num::NonZeroU32, sync::Arc};

use leasehold_core::{
    AcquisitionId, ErrorKind, LockKey, Mode, Result, backend::Request, text::parse_exact,
};

use crate::error::ERRORS;

const PERMITS: &[u8] = b"%permits/";
const SESSION: &[u8] = b"%session/";
const REVOKED: &[u8] = b"%revoked/";
const RECORD: &[u8] = b"%record/";
/// Greater than every hexadecimal digit, so that readers have a range of their own.
const READER: &[u8] = b"r-";

/// A key on the server. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct EtcdKey(Arc<[u8]>);

impl EtcdKey {
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for EtcdKey {
    fn from(key: &[u8]) -> Self {
        Self(key.into())
    }
}

impl From<Vec<u8>> for EtcdKey {
    fn from(key: Vec<u8>) -> Self {
        Self(key.into())
    }
}

impl fmt::Debug for EtcdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// The prefix of the keys of one lock: `<prefix><name>/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LockPrefix(EtcdKey);

impl LockPrefix {
    pub(crate) fn start(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    pub(crate) fn end(&self) -> Vec<u8> {
        after(self.start())
    }

    /// Returns the start and the end of the range of readers.
    pub(crate) fn readers(&self) -> (Vec<u8>, Vec<u8>) {
        let start = [self.0.as_bytes(), READER].concat();
        (start.clone(), after(start))
    }

    /// Returns the key of one acquisition in the session with this lease.
    pub(crate) fn key(&self, mode: Mode, lease: i64, slot: u32) -> EtcdKey {
        let mut key = self.start();
        if mode == Mode::Shared {
            key.extend_from_slice(READER);
        }
        key.extend_from_slice(format!("{lease:x}-{slot:x}").as_bytes());
        if let Mode::Permit { of } = mode {
            key.extend_from_slice(format!("-{of}").as_bytes());
        }
        EtcdKey::from(key)
    }

    /// Returns the key of one candidate of an election, in the session with this lease.
    pub(crate) fn candidate(&self, lease: i64, owner: AcquisitionId) -> EtcdKey {
        let mut key = self.start();
        key.extend_from_slice(format!("{lease:x}-{owner}").as_bytes());
        EtcdKey::from(key)
    }

    /// Parses a key under this prefix.
    pub(crate) fn read(&self, key: &[u8]) -> KeyOwner {
        let rest = key.strip_prefix(self.0.as_bytes()).unwrap_or_default();
        let (shared, rest) = match rest.strip_prefix(READER) {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let foreign = KeyOwner {
            is_leasehold: false,
            shared: false,
            of: None,
            candidate: None,
        };
        let Ok(rest) = std::str::from_utf8(rest) else {
            return foreign;
        };
        let Some((lease, numbers)) = rest.split_once('-') else {
            // The key of Go's `Election`, or of its `Mutex`.
            let candidate = parse_lease(rest).map(|lease| Candidate { lease, owner: None });
            return KeyOwner {
                candidate: candidate.filter(|_| !shared),
                ..foreign
            };
        };
        if let Some(owner) = parse_exact(numbers).filter(|_| !shared) {
            let candidate = parse_lease(lease).map(|lease| Candidate {
                lease,
                owner: Some(owner),
            });
            return KeyOwner {
                is_leasehold: candidate.is_some(),
                candidate,
                ..foreign
            };
        }
        let (slot, of) = match numbers.split_once('-') {
            Some((slot, of)) => (slot, parse_exact::<NonZeroU32>(of).filter(|_| !shared)),
            None => (numbers, None),
        };
        let is_permit = slot.len() < numbers.len();
        if !is_hex(lease, 16) || !is_hex(slot, 8) || is_permit && of.is_none() {
            return foreign;
        }
        KeyOwner {
            is_leasehold: true,
            shared,
            of: of.map(NonZeroU32::get),
            candidate: None,
        }
    }

    /// Returns a hash that distinguishes the jobs of different locks.
    pub(crate) fn lane(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        hasher.finish()
    }
}

/// The owner of a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KeyOwner {
    /// Whether Leasehold wrote the key.
    pub(crate) is_leasehold: bool,
    pub(crate) shared: bool,
    pub(crate) of: Option<u32>,
    /// The candidate of an election, if this may be the key of one.
    pub(crate) candidate: Option<Candidate>,
}

/// The key of a candidate of an election, whose value is its proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The lease of its session.
    pub(crate) lease: i64,
    /// `None` for a key of another program. Go's `Mutex` has the same keys as its `Election`.
    pub(crate) owner: Option<AcquisitionId>,
}

/// The layout of keys: the prefix and the encoding of names.
#[derive(Clone, Debug)]
pub(crate) struct KeyLayout {
    pub(crate) prefix: Arc<[u8]>,
    pub(crate) exact: bool,
}

impl KeyLayout {
    pub(crate) fn lock_prefix(&self, key: &LockKey, permits: bool) -> Result<LockPrefix> {
        let mut lock_prefix = Vec::with_capacity(self.prefix.len() + key.as_bytes().len() + 16);
        lock_prefix.extend_from_slice(&self.prefix);
        self.add_name(key, "acquire", &mut lock_prefix)?;
        lock_prefix.extend_from_slice(if permits { PERMITS } else { b"/" });
        Ok(LockPrefix(EtcdKey::from(lock_prefix)))
    }

    /// Returns the key of the record beside a lock. `operation` is for the error.
    pub(crate) fn record(&self, key: &LockKey, operation: &'static str) -> Result<EtcdKey> {
        let mut record = [&*self.prefix, RECORD].concat();
        self.add_name(key, operation, &mut record)?;
        Ok(EtcdKey::from(record))
    }

    /// Adds the name of a lock to a key.
    fn add_name(&self, key: &LockKey, operation: &'static str, into: &mut Vec<u8>) -> Result<()> {
        let name = key.as_bytes();
        if self.exact {
            if [PERMITS, SESSION, REVOKED, RECORD]
                .iter()
                .any(|reserved| contains(name, &reserved[..reserved.len() - 1]))
            {
                return Err(ERRORS.error(
                    ErrorKind::InvalidInput,
                    operation,
                    format!("`{key}` contains a part that this backend reserves with exact names"),
                ));
            }
            into.extend_from_slice(name);
        } else {
            for byte in name {
                match byte {
                    b'/' => into.extend_from_slice(b"%2F"),
                    b'%' => into.extend_from_slice(b"%25"),
                    byte => into.push(*byte),
                }
            }
        }
        Ok(())
    }

    /// Returns a key that never exists. A user who may use the prefix may read it.
    pub(crate) fn probe(&self) -> EtcdKey {
        EtcdKey::from([&*self.prefix, b"%".as_slice()].concat())
    }

    pub(crate) fn session(&self, lease: i64) -> EtcdKey {
        let mut key = [&*self.prefix, SESSION].concat();
        key.extend_from_slice(format!("{lease:x}").as_bytes());
        EtcdKey::from(key)
    }

    /// Returns the mark of a graceful revocation. The holder has this key with this create
    /// revision.
    pub(crate) fn mark(&self, key: &[u8], revision: i64) -> Option<EtcdKey> {
        let rest = key.strip_prefix(&*self.prefix)?;
        Some(EtcdKey::from(
            [
                &*self.prefix,
                REVOKED,
                format!("{revision}/").as_bytes(),
                rest,
            ]
            .concat(),
        ))
    }

    /// Returns the key of the holder that a mark is for, and its create revision.
    pub(crate) fn marked(&self, mark: &[u8]) -> Option<(EtcdKey, i64)> {
        let rest = mark.strip_prefix(&*self.prefix)?.strip_prefix(REVOKED)?;
        let slash = rest.iter().position(|byte| *byte == b'/')?;
        let revision = parse_exact(std::str::from_utf8(&rest[..slash]).ok()?)?;
        Some((
            EtcdKey::from([&*self.prefix, &rest[slash + 1..]].concat()),
            revision,
        ))
    }
}

/// Returns the value of the key of one acquisition.
pub(crate) fn value_of(request: &Request) -> Vec<u8> {
    if let Some(proposal) = request.proposal() {
        return proposal.to_vec();
    }
    [
        &request.owner().to_hex(),
        b":".as_slice(),
        request.label().as_bytes(),
    ]
    .concat()
}

/// Returns the label in a value.
pub(crate) fn label_of(value: &[u8]) -> String {
    String::from_utf8_lossy(value.get(33..).unwrap_or_default()).into_owned()
}

/// Parses the id of a lease.
fn parse_lease(text: &str) -> Option<i64> {
    let id = u64::from_str_radix(text, 16).ok()?;
    is_hex(text, 16).then_some(id.cast_signed())
}

/// Returns whether the text is a number of at most this many digits, as `{:x}` writes it.
fn is_hex(text: &str, digits: usize) -> bool {
    (1..=digits).contains(&text.len())
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && (text == "0" || !text.starts_with('0'))
}

/// Returns the first key after all keys with this prefix.
fn after(mut start: Vec<u8>) -> Vec<u8> {
    // Prefixes end in `/` and `-`: the last byte is never 0xff.
    if let Some(last) = start.last_mut() {
        *last += 1;
    }
    start
}

fn contains(name: &[u8], part: &[u8]) -> bool {
    name.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(exact: bool) -> KeyLayout {
        KeyLayout {
            prefix: b"shop:".as_slice().into(),
            exact,
        }
    }

    fn key_of(name: &str, mode: Mode, exact: bool) -> String {
        let lock_prefix = layout(exact)
            .lock_prefix(&LockKey::new(name).unwrap(), mode.is_permit())
            .unwrap();
        let key = lock_prefix.key(mode, 0x694d_1234, 0x1f);
        let owner = lock_prefix.read(key.as_bytes());
        let of = match mode {
            Mode::Permit { of } => Some(of.get()),
            _ => None,
        };
        assert_eq!(
            owner,
            KeyOwner {
                is_leasehold: true,
                shared: mode == Mode::Shared,
                of,
                candidate: None,
            }
        );
        String::from_utf8(key.to_vec()).unwrap()
    }

    #[test]
    fn golden_keys() {
        assert_eq!(
            key_of("item", Mode::Exclusive, false),
            "shop:item/694d1234-1f"
        );
        assert_eq!(
            key_of("a/b%", Mode::Exclusive, false),
            "shop:a%2Fb%25/694d1234-1f"
        );
        assert_eq!(key_of("a/b", Mode::Exclusive, true), "shop:a/b/694d1234-1f");
        assert_eq!(
            key_of("item", Mode::Shared, false),
            "shop:item/r-694d1234-1f"
        );
        let permit = Mode::Permit {
            of: 14.try_into().unwrap(),
        };
        assert_eq!(
            key_of("item", permit, false),
            "shop:item%permits/694d1234-1f-14"
        );
        assert_eq!(layout(false).session(0x1f).as_bytes(), b"shop:%session/1f");
        let request = Request::new(LockKey::new("a").unwrap())
            .with_owner(0xab.into())
            .with_label("host");
        assert_eq!(value_of(&request), format!("{:032x}:host", 0xab).as_bytes());
        assert_eq!(label_of(&value_of(&request)), "host");
    }

    #[test]
    fn golden_keys_of_candidates() {
        let lock_prefix = layout(false)
            .lock_prefix(&LockKey::new("a/b").unwrap(), false)
            .unwrap();
        let key = lock_prefix.candidate(0x694d_1234, 0xab.into());
        assert_eq!(
            key.as_bytes(),
            b"shop:a%2Fb/694d1234-000000000000000000000000000000ab"
        );
        let ours = Candidate {
            lease: 0x694d_1234,
            owner: Some(0xab.into()),
        };
        let read = lock_prefix.read(key.as_bytes());
        assert!(read.is_leasehold && !read.shared && read.of.is_none());
        assert_eq!(read.candidate, Some(ours));

        let theirs = lock_prefix.read(b"shop:a%2Fb/694d1234");
        assert!(!theirs.is_leasehold);
        let candidate = Candidate {
            owner: None,
            ..ours
        };
        assert_eq!(theirs.candidate, Some(candidate));

        let request = Request::new(LockKey::new("a").unwrap()).with_label("host");
        for proposal in [&b""[..], b"\xff", b"000000000000000000000000000000ab:host"] {
            assert_eq!(value_of(&request.clone().with_proposal(proposal)), proposal);
        }
    }

    #[test]
    fn other_keys_are_no_candidates() {
        let lock_prefix = layout(false)
            .lock_prefix(&LockKey::new("a").unwrap(), false)
            .unwrap();
        let owner = "000000000000000000000000000000ab";
        for key in [
            "".to_owned(),
            "r-1".to_owned(),
            "r-".to_owned(),
            "01".to_owned(),
            "A".to_owned(),
            "+1".to_owned(),
            "12345678901234567".to_owned(),
            "x".to_owned(),
            "1/2".to_owned(),
            "1-2".to_owned(),
            "r-1-2".to_owned(),
            format!("r-1-{owner}"),
            format!("01-{owner}"),
            format!("-{owner}"),
            format!("1-{owner}-3"),
            format!("1-0{owner}"),
            format!("1-{}", &owner[1..]),
            format!("1-{}", owner.to_uppercase()),
        ] {
            let read = lock_prefix.read(format!("shop:a/{key}").as_bytes());
            assert_eq!(read.candidate, None, "{key}");
        }
    }

    #[test]
    fn golden_keys_of_records() {
        let record = |name: &str, exact| {
            let key = LockKey::new(name).unwrap();
            let record = layout(exact).record(&key, "read_record").unwrap();
            String::from_utf8(record.to_vec()).unwrap()
        };
        assert_eq!(record("item", false), "shop:%record/item");
        assert_eq!(record("a/b%", false), "shop:%record/a%2Fb%25");
        assert_eq!(record("a/b", true), "shop:%record/a/b");
    }

    const AWKWARD: [&str; 10] = [
        "a",
        "a/b",
        "a%2Fb",
        "a/",
        "%permits",
        "a%permits",
        "%session",
        "%record",
        "%record/a",
        "b",
    ];

    #[test]
    fn no_lock_sees_a_record() {
        let keys = || AWKWARD.iter().map(|name| LockKey::new(name).unwrap());
        let record = |key: LockKey| layout(false).record(&key, "read_record").unwrap();
        let records: Vec<_> = keys().map(record).collect();
        for (at, record) in records.iter().enumerate() {
            assert!(!records[..at].contains(record), "{record:?} twice");
            for key in keys() {
                for permits in [false, true] {
                    let lock_prefix = layout(false).lock_prefix(&key, permits).unwrap();
                    let start = lock_prefix.start();
                    assert!(
                        !record.as_bytes().starts_with(&start),
                        "{record:?} in `{key}`"
                    );
                }
            }
        }
    }

    #[test]
    fn no_lock_sees_another() {
        let starts: Vec<Vec<u8>> = AWKWARD
            .iter()
            .flat_map(|name| {
                let key = LockKey::new(name).unwrap();
                [false, true]
                    .map(|permits| layout(false).lock_prefix(&key, permits).unwrap().start())
            })
            .collect();
        for (at, one) in starts.iter().enumerate() {
            for (other_at, other) in starts.iter().enumerate() {
                assert!(
                    at == other_at || !other.starts_with(one),
                    "{one:?} contains {other:?}"
                );
            }
        }
    }

    #[test]
    fn keys_of_other_programs_are_foreign() {
        let lock_prefix = layout(false)
            .lock_prefix(&LockKey::new("a").unwrap(), false)
            .unwrap();
        for key in [
            "694d1234",
            "r-1",
            "",
            "x-y-z",
            "1-2-3-4",
            "1-x",
            "-",
            "r--",
            "1-",
            "-1",
            "A-1",
            "01-2",
            "1-02",
            "12345678901234567-1",
            "1-123456789",
            "1-2-ff",
            "1-2-0",
            "1-2-03",
            "1-2-",
            "r-1-2-3",
        ] {
            assert!(
                !lock_prefix
                    .read(format!("shop:a/{key}").as_bytes())
                    .is_leasehold
            );
        }
    }

    #[test]
    fn mark_contains_its_key() {
        let mark = layout(false).mark(b"shop:item/1-2", 77).unwrap();
        assert_eq!(mark.as_bytes(), b"shop:%revoked/77/item/1-2");
        assert_eq!(
            layout(false).marked(mark.as_bytes()),
            Some((b"shop:item/1-2".as_slice().into(), 77))
        );
        for key in [
            b"shop:item/1-2".as_slice(),
            b"shop:%revoked/+77/item/1-2",
            b"shop:%revoked/077/item/1-2",
        ] {
            assert_eq!(layout(false).marked(key), None);
        }
    }

    #[test]
    fn exact_names_with_reserved_parts_are_refused() {
        for name in ["a%permits", "%record/a"] {
            let key = LockKey::new(name).unwrap();
            let refused = layout(true).lock_prefix(&key, false).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{name}");
            let refused = layout(true).record(&key, "read_record").unwrap_err();
            assert_eq!(refused.operation(), Some("read_record"), "{name}");
        }
    }
}
