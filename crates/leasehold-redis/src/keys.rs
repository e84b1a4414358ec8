//! The Redis keys of a lock, and the values that holders and waiters write.
//!
//! The key of the lock itself is the prefix and the raw name, as other programs expect it. The
//! lock's other keys are derived from it. They must be in the same cluster slot and must never
//! equal a key of another lock, whatever bytes the name has:
//!
//! | the name | derived key | why the slot is the same |
//! |---|---|---|
//! | has a hash tag `{…}` | `NAME:lh1:KIND` | the name's tag remains the first one |
//! | has no `}` | `{NAME}:lh2:KIND` | the name is the tag |
//! | other names (`{}`, `a}b`) | `{N}NAME:lh3:KIND` | the number `N` hashes to the name's slot |
//!
//! All locks in one slot share a token counter, `{N}PREFIX:lh4:token`. The tokens of one lock
//! therefore have gaps. In return there are at most 16 384 counters, and a connection can remember
//! which of them it has raised above the clock.
//!
//! A server that is a node of a quorum has three more keys, which may be in any slot:
//! `PREFIX:lh4:mark`, `…:since` and `…:top`.
//!
//! A name that ends like one of these keys is refused, so that no key belongs to two locks.
//!
//! The value of a holder or waiter is `<owner in hex>:<label>`. The value of a permit starts with
//! `<of>|`.

use std::{borrow::Cow, fmt, io::Write, num::NonZeroU32, sync::LazyLock};

use leasehold_core::{
    AcquisitionId, Error, ErrorKind, LockKey, Mode, Result, backend::Request, text::parse_exact,
};
use redis::{RedisWrite, ToRedisArgs};

/// The number of cluster slots.
pub(crate) const SLOTS: usize = 16_384;
pub(crate) const KINDS: [Kind; 8] = [
    Kind::Readers,
    Kind::Writers,
    Kind::Order,
    Kind::Waiters,
    Kind::Permits,
    Kind::Queue,
    Kind::Fence,
    Kind::Record,
];
const MARKS: [&str; 3] = [":lh1:", ":lh2:", ":lh3:"];
const TOKEN: &str = ":lh4:token";
const OF_NODE: [&str; 3] = [":lh4:mark", ":lh4:since", ":lh4:top"];

/// The kind of a derived key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The readers that hold the lock, ordered by expiry.
    Readers,
    /// The waiting writers, ordered by the expiry of their registrations.
    Writers,
    /// All waiters, ordered by the time at which they began to wait.
    Order,
    /// The waiting readers, ordered by the expiry of their registrations.
    Waiters,
    /// The held permits, ordered by expiry.
    Permits,
    /// The waiters for a permit.
    Queue,
    /// The last token and its owner, on a node of a quorum. This key never expires.
    Fence,
    /// The record beside the lock. This key never expires.
    Record,
}

impl Kind {
    /// Returns the lists in which a waiter for this mode registers.
    pub(crate) fn registrations(mode: Mode) -> &'static [Self] {
        match mode {
            Mode::Shared => &[Self::Waiters, Self::Order],
            Mode::Permit { .. } => &[Self::Queue],
            _ => &[Self::Writers, Self::Order],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Readers => "readers",
            Self::Writers => "writers",
            Self::Order => "order",
            Self::Waiters => "waiters",
            Self::Permits => "permits",
            Self::Queue => "queue",
            Self::Fence => "fence",
            Self::Record => "record",
        }
    }
}

/// The keys of one lock.
#[derive(Debug)]
pub(crate) struct Keys<'a> {
    prefix: &'a [u8],
    name: &'a [u8],
    form: Form,
}

#[derive(Debug)]
enum Form {
    Tagged,
    Plain,
    Odd,
}

/// The cluster slot of a lock's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(u16);

impl Slot {
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The smallest number that, written in decimal, hashes to this slot.
    fn number(self) -> &'static [u8] {
        &NUMBERS[self.index()]
    }
}

impl<'a> Keys<'a> {
    /// Returns the keys of a lock. Its name must have passed [`check`](Self::check).
    pub(crate) fn new(prefix: &'a [u8], key: &'a LockKey) -> Self {
        let name = key.as_bytes();
        let form = match Braces::of(prefix.iter().chain(name)) {
            Braces::Tag => Form::Tagged,
            Braces::None => Form::Plain,
            Braces::Odd => Form::Odd,
        };
        Self { prefix, name, form }
    }

    /// Returns an error for a name that may make the lock's key equal a derived key.
    pub(crate) fn check(prefix: &[u8], key: &LockKey) -> Result<()> {
        let name = key.as_bytes();
        // `:lh1:permits` is the longest reserved ending. Most names have no colon that close to
        // their end.
        let (mut tail, mut from) = ([0; 12], 12);
        for byte in prefix.iter().chain(name).rev().take(12) {
            from -= 1;
            tail[from] = *byte;
        }
        let tail = &tail[from..];
        let reserved = tail.contains(&b':')
            && (tail.ends_with(TOKEN.as_bytes())
                || OF_NODE.iter().any(|key| tail.ends_with(key.as_bytes()))
                || MARKS.iter().any(|mark| {
                    KINDS.iter().any(|kind| {
                        tail.strip_suffix(kind.name().as_bytes())
                            .is_some_and(|rest| rest.ends_with(mark.as_bytes()))
                    })
                }));
        if reserved {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the name `{key}` ends as a key of another lock's bookkeeping does; choose another ending"
                ),
            ));
        }
        Ok(())
    }

    /// Returns the key of the lock itself.
    pub(crate) fn lock(&self) -> Parts<'_> {
        Parts([self.prefix, self.name, b"", b"", b"", b"", b""])
    }

    /// Returns a derived key.
    pub(crate) fn derived(&self, kind: Kind) -> Parts<'_> {
        let kind = kind.name().as_bytes();
        match self.form {
            Form::Tagged => Parts([
                self.prefix,
                self.name,
                MARKS[0].as_bytes(),
                kind,
                b"",
                b"",
                b"",
            ]),
            Form::Plain => Parts([
                b"{",
                self.prefix,
                self.name,
                b"}",
                MARKS[1].as_bytes(),
                kind,
                b"",
            ]),
            Form::Odd => {
                let number = self.slot().number();
                Parts([
                    b"{",
                    number,
                    b"}",
                    self.prefix,
                    self.name,
                    MARKS[2].as_bytes(),
                    kind,
                ])
            }
        }
    }

    /// Returns the slot of all keys of the lock.
    pub(crate) fn slot(&self) -> Slot {
        match self.form {
            // Without a hash tag, the whole key is hashed.
            Form::Plain | Form::Odd => {
                let mut crc = crc16::State::<crc16::XMODEM>::new();
                crc.update(self.prefix);
                crc.update(self.name);
                Slot(crc.get() % SLOTS as u16)
            }
            Form::Tagged => slot_of(&[self.prefix, self.name].concat()),
        }
    }

    /// Returns the key of the token counter of the slot.
    pub(crate) fn token(&self) -> Parts<'_> {
        self.token_in(self.slot())
    }

    /// Returns the key of the token counter of a known slot.
    pub(crate) fn token_in(&self, slot: Slot) -> Parts<'_> {
        Parts([
            b"{",
            slot.number(),
            b"}",
            self.prefix,
            TOKEN.as_bytes(),
            b"",
            b"",
        ])
    }
}

/// Returns the keys `mark`, `since` and `top` of a node of a quorum.
pub(crate) fn of_node(prefix: &[u8]) -> [Parts<'_>; 3] {
    OF_NODE.map(|key| Parts([prefix, key.as_bytes(), b"", b"", b"", b"", b""]))
}

/// The effect of the braces in a name on its slot.
enum Braces {
    /// The name has a hash tag: at least one byte between the first `{` and the first `}` after it.
    Tag,
    /// The name has no `}`.
    None,
    /// The name has a `}`, but no hash tag.
    Odd,
}

impl Braces {
    fn of<'b>(bytes: impl Iterator<Item = &'b u8>) -> Self {
        let (mut opened, mut between, mut closed) = (false, 0, false);
        for byte in bytes {
            match byte {
                b'}' if opened => return if between > 0 { Self::Tag } else { Self::Odd },
                b'}' => closed = true,
                _ if opened => between += 1,
                b'{' => opened = true,
                _ => {}
            }
        }
        if closed { Self::Odd } else { Self::None }
    }
}

/// One argument of a command, in pieces that are joined only in the output buffer.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a>(pub(crate) [&'a [u8]; 7]);

impl Parts<'_> {
    pub(crate) fn to_vec(self) -> Vec<u8> {
        self.0.concat()
    }
}

impl fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.to_vec().escape_ascii())
    }
}

impl ToRedisArgs for Parts<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut writer = out.writer_for_next_arg();
        for part in self.0 {
            // The output is a buffer in memory, so writing never fails.
            drop(writer.write_all(part));
        }
    }
}

/// Returns the cluster slot of a key as the Redis Cluster specification defines it.
pub(crate) fn slot_of(key: &[u8]) -> Slot {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter()
            .position(|byte| *byte == b'}')
            .filter(|close| *close > 0)
            .map(|close| &rest[..close])
    });
    Slot(crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) % SLOTS as u16)
}

/// The smallest number that hashes to each slot. The table is built on first use, in about a
/// millisecond.
static NUMBERS: LazyLock<Vec<Box<[u8]>>> = LazyLock::new(|| {
    use crc16::{CrcType, XMODEM};
    let mut numbers: Vec<Box<[u8]>> = vec![Box::default(); SLOTS];
    let (mut missing, mut number) = (SLOTS, 0_usize);
    // A number's checksum continues from that of the number without its last digit.
    let mut sums: Vec<u16> = Vec::new();
    while missing > 0 {
        let before = if number < 10 {
            XMODEM::init()
        } else {
            sums[number / 10]
        };
        let sum = XMODEM::update(before, &[b"0123456789"[number % 10]]);
        sums.push(sum);
        let place = &mut numbers[usize::from(XMODEM::get(sum)) % SLOTS];
        if place.is_empty() {
            *place = number.to_string().into_bytes().into();
            missing -= 1;
        }
        number += 1;
    }
    numbers
});

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

impl ParsedValue {
    /// Parses a value.
    pub(crate) fn read(value: &[u8]) -> Self {
        let foreign = Self {
            owner: None,
            label: String::new(),
            of: None,
        };
        let Ok(value) = std::str::from_utf8(value) else {
            return foreign;
        };
        let value = value.strip_prefix("revoked:").unwrap_or(value);
        let permit = value
            .split_once('|')
            .and_then(|(of, rest)| Some((parse_exact::<NonZeroU32>(of)?, rest)));
        let (of, value) = match permit {
            Some((of, rest)) => (Some(of.get()), rest),
            None => (None, value),
        };
        let ours = value.split_at_checked(32).and_then(|(hex, rest)| {
            let owner = parse_exact(hex)?;
            Some((owner, rest.strip_prefix(':')?))
        });
        match ours {
            Some((owner, label)) => Self {
                owner: Some(owner),
                label: label.to_owned(),
                of,
            },
            None => foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    fn derived(prefix: &str, name: &[u8], kind: Kind) -> String {
        let key = LockKey::new(name).unwrap();
        Keys::new(prefix.as_bytes(), &key)
            .derived(kind)
            .to_vec()
            .escape_ascii()
            .to_string()
    }

    fn token(prefix: &str, name: &[u8]) -> String {
        let key = LockKey::new(name).unwrap();
        Keys::new(prefix.as_bytes(), &key)
            .token()
            .to_vec()
            .escape_ascii()
            .to_string()
    }

    #[test]
    fn golden_values() {
        assert_eq!(token("", b"item/42"), "{7827}:lh4:token");
        assert_eq!(token("shop:", b"item/42"), "{2764}shop::lh4:token");
        assert_eq!(token("", b"a}b"), "{20658}:lh4:token");
        assert_eq!(token("{shop}", b"a"), "{512}{shop}:lh4:token");
        assert_eq!(derived("", b"item/42", Kind::Queue), "{item/42}:lh2:queue");
        assert_eq!(
            derived("shop:", b"item/42", Kind::Readers),
            "{shop:item/42}:lh2:readers"
        );
        assert_eq!(
            derived("", b"{user}:a", Kind::Writers),
            "{user}:a:lh1:writers"
        );
        assert_eq!(
            derived("{shop}", b"a", Kind::Waiters),
            "{shop}a:lh1:waiters"
        );
        assert_eq!(derived("", b"{}", Kind::Permits), "{42430}{}:lh3:permits");
        assert_eq!(derived("", b"a}b", Kind::Queue), "{20658}a}b:lh3:queue");
        assert_eq!(derived("", b"a{b", Kind::Queue), "{a{b}:lh2:queue");
        assert_eq!(
            derived("", b"item/42", Kind::Record),
            "{item/42}:lh2:record"
        );
        assert_eq!(
            derived("", b"{user}:a", Kind::Record),
            "{user}:a:lh1:record"
        );
        assert_eq!(derived("", b"a}b", Kind::Record), "{20658}a}b:lh3:record");
    }

    #[test]
    fn the_slot_is_the_one_of_the_specification() {
        assert_eq!(slot_of(b"123456789"), Slot(0x31c3));
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
        assert_eq!(slot_of(b"foo{bar}{zap}"), slot_of(b"bar"));
        assert_ne!(slot_of(b"foo{}{bar}"), slot_of(b"bar"));
    }

    /// Tries every name of up to six of the bytes that matter, under several prefixes.
    #[test]
    fn keys_of_one_lock_share_a_slot_and_no_key_is_shared() {
        let mut names: Vec<Vec<u8>> = vec![vec![]];
        let mut all = names.clone();
        for _ in 0..6 {
            names = names
                .iter()
                .flat_map(|name| {
                    b"{}a0"
                        .iter()
                        .map(|byte| [name.as_slice(), &[*byte]].concat())
                })
                .collect();
            all.extend(names.iter().cloned());
        }
        all.extend([
            b"{42}:lh4:token".to_vec(),
            b"a:lh4:token".to_vec(),
            b"lh4:token".to_vec(),
        ]);
        for mark in MARKS {
            for kind in KINDS {
                for name in ["a", "{", "}", "{}", "{a}", "a}b", ""] {
                    all.push(format!("{name}{mark}{}", kind.name()).into_bytes());
                    all.push(format!("{{{name}}}{mark}{}", kind.name()).into_bytes());
                }
            }
        }
        for prefix in ["", "p", "{", "}", "{}", "{t}", "a{"] {
            let mut owners: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
            let mut tokens: HashSet<Vec<u8>> = HashSet::new();
            for name in all.iter().filter(|name| !name.is_empty()) {
                let key = LockKey::new(name).unwrap();
                if Keys::check(prefix.as_bytes(), &key).is_err() {
                    continue;
                }
                let keys = Keys::new(prefix.as_bytes(), &key);
                let lock = keys.lock().to_vec();
                let slot = slot_of(&lock);
                assert_eq!(keys.slot(), slot);
                let token = keys.token().to_vec();
                assert_eq!(
                    slot_of(&token),
                    slot,
                    "{} of {}",
                    token.escape_ascii(),
                    name.escape_ascii()
                );
                assert!(!owners.contains_key(&token));
                tokens.insert(token);
                let derived = KINDS.map(|kind| keys.derived(kind).to_vec());
                for used in derived.into_iter().chain([lock]) {
                    assert_eq!(
                        slot_of(&used),
                        slot,
                        "{} of {}",
                        used.escape_ascii(),
                        name.escape_ascii()
                    );
                    let other = owners.insert(used.clone(), name.clone());
                    assert!(
                        other.is_none_or(|other| other == *name),
                        "{} is shared",
                        used.escape_ascii()
                    );
                    assert!(!tokens.contains(&used));
                }
            }
        }
    }

    #[test]
    fn a_name_that_ends_as_a_derived_key_is_refused() {
        for (prefix, name) in [
            ("", "{42}:lh4:token"),
            ("", "x:lh1:queue"),
            ("", "{x}:lh2:record"),
            ("p:lh", "3:readers"),
        ] {
            let error = Keys::check(prefix.as_bytes(), &LockKey::new(name).unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        for name in ["a:b", "token", ":lh4:token2", ":lh2:token", ":lh4:queue"] {
            assert!(Keys::check(b"", &LockKey::new(name).unwrap()).is_ok());
        }
    }

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
            ParsedValue::read(&value),
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
            ParsedValue::read(&value),
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
            assert!(
                ParsedValue::read(value.as_bytes()).owner.is_none(),
                "{value}"
            );
        }
        assert!(ParsedValue::read(b"\xff\xfe").owner.is_none());
        let hex = format!("{:032x}", 0xab);
        for value in [
            format!("{}:x", hex.to_uppercase()),
            format!("|{hex}:x"),
            format!("+4|{hex}:x"),
            format!("04|{hex}:x"),
            format!("0|{hex}:x"),
            format!("4294967296|{hex}:x"),
        ] {
            assert!(
                ParsedValue::read(value.as_bytes()).owner.is_none(),
                "{value}"
            );
        }
        // The mark of a revoked holder is ignored.
        assert!(
            ParsedValue::read(format!("revoked:{:032x}:", 1).as_bytes())
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
