//! The names of nodes on the server.
//!
//! | node | what |
//! |---|---|
//! | `<root>/<name>/_c_<uuid>-lock-N` | an exclusive holder or waiter, as Curator's `InterProcessMutex` writes it |
//! | `<root>/<name>/_c_<uuid>-__WRIT__N` | the same in the profile of Curator's read-write lock |
//! | `<root>/<name>/_c_<uuid>-latch-N` | a candidate of an election, as Curator's `LeaderLatch` writes it |
//! | `<root>/<name>/_c_<uuid>-__READ__N` | a shared one |
//! | `<root>/<name>%permits/_c_<uuid>-<of>-lease-N` | one of a semaphore |
//! | `<root>/%sessions/<id>` | a session |
//! | `<root>/%records/<name>` | the record beside a lock, a persistent node |
//!
//! `N` is the sequence number that the server appends, ten digits. A waiter that becomes a holder
//! may have two nodes one after the other, with one `N` and two uuids.
//!
//! Names are written as they are, so that Curator's path `<root>/<name>` is shared. A byte that a
//! path segment cannot contain is written as `%` and two hexadecimal digits. `%permits`,
//! `%sessions` and `%records` are not such an encoding, so no lock's name collides with them.

use std::{
    fmt,
    hash::{Hash, Hasher},
    num::NonZeroU32,
    sync::Arc,
};

use leasehold_core::{AcquisitionId, LockKey, Mode, backend::Request, text::parse_exact};

use crate::config::{ElectionNodes, ExclusiveNodes};

const PERMITS: &str = "%permits";
const SESSIONS: &str = "%sessions";
const RECORDS: &str = "%records";
/// The prefix that Curator puts before the uuid of a protected node.
const PROTECTED: &str = "_c_";
const UUID_LEN: usize = 36;

/// The marks before the sequence number, and the part of a node that has them. The longest match
/// counts.
const MARKS: [(&str, Part); 7] = [
    ("-lease-", Part::Permit),
    ("__rlock__", Part::Reader),
    ("__READ__", Part::Reader),
    ("__WRIT__", Part::Writer),
    ("__lock__", Part::Writer),
    ("lock-", Part::Mutex),
    ("latch-", Part::Latch),
];

/// The part that a node takes in a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A writer whose name is that of a mutex. It may be a candidate of an election.
    Mutex,
    /// A writer that is a candidate of an election.
    Latch,
    /// A writer of a read-write lock, or of another program's lock.
    Writer,
    Reader,
    Permit,
}

/// A node that an acquisition has, or may have, on the server. Two nodes with one uuid are equal.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) uuid: Uuid,
    /// The path without the sequence number. For a node that the server listed, the whole path.
    pub(crate) path: Arc<str>,
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.uuid == other.uuid
    }
}

impl Eq for Node {}

impl Hash for Node {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.uuid.hash(state);
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

/// The identifier of one acquisition, for protected creation: 32 bits of its session, and the rest
/// of its owner.
///
/// It has version 8 of RFC 9562, which other programs do not generate. So the nodes of Leasehold
/// can be distinguished from those of a program that shares the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Uuid(u128);

const VERSION: u128 = 0xf << 76;
const VARIANT: u128 = 0b11 << 62;

impl Uuid {
    pub(crate) fn new(session: u32, owner: AcquisitionId) -> Self {
        let random = owner.as_u128() & (u128::MAX >> 32) & !VERSION & !VARIANT;
        Self(u128::from(session) << 96 | 0x8 << 76 | 0b10 << 62 | random)
    }

    /// Returns the session that generated it, or `None` if another program did.
    pub(crate) fn session(self) -> Option<u32> {
        let ours = self.0 & VERSION == 0x8 << 76 && self.0 & VARIANT == 0b10 << 62;
        ours.then_some((self.0 >> 96) as u32)
    }

    /// Returns the acquisition that it identifies, as far as the uuid contains its id.
    pub(crate) fn owner(self) -> AcquisitionId {
        AcquisitionId::from(self.0)
    }

    /// Returns whether it identifies this acquisition, in any session.
    pub(crate) fn is_of(self, owner: AcquisitionId) -> bool {
        self.session()
            .is_some_and(|session| self == Self::new(session, owner))
    }

    /// Reads the uuid in the name of a protected node.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let text = name.strip_prefix(PROTECTED)?.get(..UUID_LEN)?;
        let mut bits = 0_u128;
        for (at, byte) in text.bytes().enumerate() {
            if matches!(at, 8 | 13 | 18 | 23) {
                if byte != b'-' {
                    return None;
                }
                continue;
            }
            // Every program writes it in lower case.
            let digit = char::from(byte).to_digit(16);
            bits = bits << 4 | u128::from(digit.filter(|_| !byte.is_ascii_uppercase())?);
        }
        Some(Self(bits))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = AcquisitionId::from(self.0).to_hex();
        let hex = std::str::from_utf8(&hex).unwrap_or_default();
        write!(
            f,
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
    }
}

/// The directory of one lock: the nodes of its holders and waiters are in it. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Directory(Arc<str>);

impl Directory {
    pub(crate) fn path(&self) -> &str {
        &self.0
    }

    /// Returns the path of this child.
    pub(crate) fn child(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }

    /// Returns the node of one acquisition, without its sequence number. `part` is that of an
    /// exclusive one.
    pub(crate) fn node(&self, mode: Mode, part: Part, uuid: Uuid) -> Node {
        let start = format!("{}/{PROTECTED}{uuid}-", self.0);
        let path = match (mode, part) {
            (Mode::Permit { of }, _) => format!("{start}{of}-lease-"),
            (Mode::Shared, _) => start + "__READ__",
            (_, Part::Latch) => start + "latch-",
            (_, Part::Writer) => start + "__WRIT__",
            _ => start + "lock-",
        };
        Node {
            uuid,
            path: path.into(),
        }
    }

    /// Returns a hash of the path. Requests for different locks have different lanes, save for
    /// collisions.
    pub(crate) fn lane(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        self.0.hash(&mut hasher);
        hasher.finish()
    }
}

/// The parsed name of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) part: Part,
    pub(crate) sequence: Sequence,
    pub(crate) uuid: Option<Uuid>,
    /// The number of permits of the semaphore.
    pub(crate) of: Option<u32>,
}

impl Member {
    /// Parses the name of a node. Returns `None` for a node that takes no part.
    pub(crate) fn read(name: &str) -> Option<Self> {
        // The last mark counts, as in Curator.
        let marked = MARKS
            .iter()
            .filter_map(|(mark, part)| Some((name.rfind(mark)?, *mark, *part)));
        let (at, mark, part) = marked.max_by_key(|(at, mark, _)| (at + mark.len(), mark.len()))?;
        let sequence = Sequence::of(name[at + mark.len()..].parse().ok()?);
        let of = match part {
            Part::Permit => Some(name[..at].rsplit('-').next()?.parse().ok()?),
            _ => None,
        };
        // A name that another program made up has no uuid of ours.
        let uuid = Uuid::of_name(name)
            .filter(|uuid| uuid.session().is_none() || is_written_by_us(name, at, mark, of));
        Some(Self {
            part,
            sequence,
            uuid,
            of,
        })
    }

    /// Returns whether Leasehold created it.
    pub(crate) fn is_ours(&self) -> bool {
        self.uuid.is_some_and(|uuid| uuid.session().is_some())
    }
}

/// Returns whether Leasehold and the server write a name so whose mark is at `at`.
fn is_written_by_us(name: &str, at: usize, mark: &str, of: Option<u32>) -> bool {
    let number = &name[at + mark.len()..];
    // Ten digits, or more with a sign.
    let is_padded = match number.strip_prefix('-') {
        Some(digits) => {
            number.len() == 10 && digits != "000000000"
                || number.len() == 11 && !digits.starts_with('0')
        }
        None => number.len() == 10 && !number.starts_with('+'),
    };
    let between = name.get(PROTECTED.len() + UUID_LEN..at);
    let is_ours = match (mark, of) {
        ("-lease-", Some(of)) => between
            .and_then(|between| between.strip_prefix('-'))
            .is_some_and(|between| {
                parse_exact::<NonZeroU32>(between).is_some_and(|number| number.get() == of)
            }),
        ("lock-" | "latch-" | "__READ__" | "__WRIT__", None) => between == Some("-"),
        _ => false,
    };
    is_padded && is_ours
}

/// The number that the server appends to a node: the count of children that the parent has had.
///
/// The server counts to 2147483647 and stays there, or continues with negative numbers for a while.
/// Nodes that are created later have the same number as others, or a number that Curator sorts
/// first. Numbers near the end therefore order nothing. A client that gets such a number takes no
/// part: it waits until the directory is empty, and removes it. The server starts at 0 in the next
/// directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sequence(pub(crate) u32);

impl Sequence {
    /// The first number that is not used. Other programs do not stop here: the rest is the time in
    /// which an operator can react to the warning.
    const END: Self = Self(i32::MAX as u32 - 1_000_000);

    /// Converts the number that the server wrote. Negative numbers come after all non-negative
    /// ones.
    pub(crate) fn of(number: i32) -> Self {
        Self(number.cast_unsigned())
    }

    /// Returns whether this number orders a node among those of its directory.
    pub(crate) fn is_ordered(self) -> bool {
        self < Self::END
    }
}

/// The layout of paths below the root.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// Without a `/` at its end: empty for the server's root.
    pub(crate) root: Arc<str>,
    pub(crate) exclusive: ExclusiveNodes,
    pub(crate) election: ElectionNodes,
}

impl Names {
    /// Returns the part of the node of an exclusive request.
    pub(crate) fn exclusive_part(&self, request: &Request) -> Part {
        match (request.proposal(), self.election, self.exclusive) {
            (Some(_), ElectionNodes::Latch, _) => Part::Latch,
            (Some(_), ElectionNodes::Selector, _) | (None, _, ExclusiveNodes::Mutex) => Part::Mutex,
            (None, _, ExclusiveNodes::ReadWrite) => Part::Writer,
        }
    }

    pub(crate) fn directory(&self, key: &LockKey, permits: bool) -> Directory {
        let mut path = String::with_capacity(self.root.len() + key.as_bytes().len() + 16);
        path.push_str(&self.root);
        path.push('/');
        // The server has a directory of its own at `/zookeeper`.
        let reserved = self.root.is_empty() && key.as_bytes() == b"zookeeper";
        encode(key.as_bytes(), reserved, &mut path);
        if permits {
            path.push_str(PERMITS);
        }
        Directory(path.into())
    }

    /// Returns the directory of the sessions' nodes.
    pub(crate) fn sessions(&self) -> Directory {
        Directory(format!("{}/{SESSIONS}", self.root).into())
    }

    /// Returns the path below which the records are.
    pub(crate) fn records(&self) -> String {
        format!("{}/{RECORDS}", self.root)
    }

    /// Returns the path of the record beside a lock.
    pub(crate) fn record(&self, key: &LockKey) -> String {
        let mut path = self.records();
        path.push('/');
        encode(key.as_bytes(), false, &mut path);
        path
    }

    /// Returns the path of the node that a connection reads the leader's clock by.
    pub(crate) fn clock(&self, session: i64) -> String {
        self.sessions().child(&format!("{session:x}-clock"))
    }

    /// Returns the path below which all nodes are.
    pub(crate) fn ephemerals(&self) -> &str {
        if self.root.is_empty() {
            "/"
        } else {
            &self.root
        }
    }

    /// Returns the path of a session's node.
    pub(crate) fn session(&self, session: i64, tag: u32) -> String {
        self.sessions().child(&format!("{session:x}-{tag:08x}"))
    }
}

/// Encodes a lock's name as a path segment, injectively. Characters that the server refuses, `/`
/// and `%` are written byte by byte. So is the first character of a name that has a meaning of its
/// own.
fn encode(name: &[u8], reserved: bool, into: &mut String) {
    let mut first = reserved || name == b"." || name == b"..";
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if first || is_refused(c) {
                let mut bytes = [0; 4];
                hex(c.encode_utf8(&mut bytes).as_bytes(), into);
            } else {
                into.push(c);
            }
            first = false;
        }
        hex(chunk.invalid(), into);
    }
}

fn hex(bytes: &[u8], into: &mut String) {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    for byte in bytes {
        into.extend([
            '%',
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ]);
    }
}

/// Returns whether the server or the driver refuses this character, or it has a meaning in this
/// encoding. The server refuses both halves of a UTF-16 pair (`PathUtils.validatePath`).
fn is_refused(c: char) -> bool {
    matches!(c, '/' | '%' | '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{d7ff}'..='\u{f8ff}' | '\u{fff0}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(root: &str) -> Names {
        Names {
            root: root.into(),
            exclusive: ExclusiveNodes::Mutex,
            election: ElectionNodes::Latch,
        }
    }

    fn path_of(root: &str, name: impl AsRef<[u8]>) -> String {
        names(root)
            .directory(&LockKey::new(name).unwrap(), false)
            .path()
            .to_owned()
    }

    #[test]
    fn golden_paths_of_records() {
        let record = |root: &str, name: &str| names(root).record(&LockKey::new(name).unwrap());
        for (name, path) in [
            ("item", "/shop/%records/item"),
            ("a/b", "/shop/%records/a%2Fb"),
            ("..", "/shop/%records/%2E."),
            ("%records", "/shop/%records/%25records"),
        ] {
            assert_eq!(record("/shop", name), path);
        }
        assert_eq!(record("", "zookeeper"), "/%records/zookeeper");
        // No lock has its nodes there.
        assert_eq!(path_of("/shop", "%records"), "/shop/%25records");
        assert_eq!(names("").clock(0x1f), "/%sessions/1f-clock");
    }

    #[test]
    fn an_acquisition_is_known_in_every_session() {
        let owner = AcquisitionId::random();
        for session in [0, 7, u32::MAX] {
            assert!(Uuid::new(session, owner).is_of(owner));
            assert!(!Uuid::new(session, AcquisitionId::random()).is_of(owner));
        }
        // Another program wrote this one.
        let other = Uuid::of_name("_c_123e4567-e89b-12d3-a456-426614174000-lock-0000000001");
        assert!(!other.unwrap().is_of(owner));
    }

    #[test]
    fn golden_paths() {
        for (name, path) in [
            ("item", "/shop/item"),
            ("a/b", "/shop/a%2Fb"),
            ("100%", "/shop/100%25"),
            (".", "/shop/%2E"),
            ("..", "/shop/%2E."),
            ("...", "/shop/..."),
            ("a\0\n", "/shop/a%00%0A"),
            ("ä b", "/shop/ä b"),
            ("🔒", "/shop/%F0%9F%94%92"),
            ("\u{ffff}", "/shop/%EF%BF%BF"),
        ] {
            assert_eq!(path_of("/shop", name), path);
        }
        assert_eq!(path_of("/shop", b"\xff"), "/shop/%FF");
        assert_eq!(path_of("", "zookeeper"), "/%7Aookeeper");
        assert_eq!(path_of("/shop", "zookeeper"), "/shop/zookeeper");
        let key = LockKey::new("item").unwrap();
        assert_eq!(
            names("/shop").directory(&key, true).path(),
            "/shop/item%permits"
        );
        assert_eq!(names("").session(0x1f, 0xab), "/%sessions/1f-000000ab");
    }

    #[test]
    fn golden_nodes() {
        let directory = names("").directory(&LockKey::new("item").unwrap(), false);
        let uuid = Uuid::new(0x0102_0304, AcquisitionId::from(0xabcd));
        let permit = Mode::Permit {
            of: 14.try_into().unwrap(),
        };
        for (mode, part, end) in [
            (Mode::Exclusive, Part::Mutex, "lock-"),
            (Mode::Exclusive, Part::Latch, "latch-"),
            (Mode::Exclusive, Part::Writer, "__WRIT__"),
            (Mode::Shared, Part::Reader, "__READ__"),
            (permit, Part::Permit, "14-lease-"),
        ] {
            let node = directory.node(mode, part, uuid);
            assert_eq!(
                &*node.path,
                format!("/item/_c_01020304-0000-8000-8000-00000000abcd-{end}")
            );
            let member = Member::read(
                format!("{}0000000007", node.path)
                    .rsplit('/')
                    .next()
                    .unwrap(),
            )
            .unwrap();
            assert_eq!(
                (member.uuid, member.sequence, member.is_ours()),
                (Some(uuid), Sequence::of(7), true)
            );
            assert_eq!(member.part, part);
            assert_eq!(member.of, mode.is_permit().then_some(14));
        }
    }

    #[test]
    fn only_a_proposal_makes_a_candidate() {
        let mutex = Request::new(LockKey::new("item").unwrap());
        let candidate = mutex.clone().with_proposal(*b"node-3");
        for (exclusive, election, of_mutex, of_candidate) in [
            (
                ExclusiveNodes::Mutex,
                ElectionNodes::Latch,
                Part::Mutex,
                Part::Latch,
            ),
            (
                ExclusiveNodes::Mutex,
                ElectionNodes::Selector,
                Part::Mutex,
                Part::Mutex,
            ),
            (
                ExclusiveNodes::ReadWrite,
                ElectionNodes::Latch,
                Part::Writer,
                Part::Latch,
            ),
            (
                ExclusiveNodes::ReadWrite,
                ElectionNodes::Selector,
                Part::Writer,
                Part::Mutex,
            ),
        ] {
            let names = Names {
                root: "".into(),
                exclusive,
                election,
            };
            assert_eq!(names.exclusive_part(&mutex), of_mutex);
            assert_eq!(names.exclusive_part(&candidate), of_candidate);
        }
    }

    #[test]
    fn a_uuid_tells_its_session_and_that_of_another_program_none() {
        let uuid = Uuid::new(u32::MAX, AcquisitionId::from(u128::MAX));
        assert_eq!(uuid.session(), Some(u32::MAX));
        assert_eq!(
            Uuid::of_name(&format!("_c_{uuid}-lock-0000000001")),
            Some(uuid)
        );
        let curators =
            Uuid::of_name("_c_0f8fad5b-d9cb-469f-a165-70867728950e-lock-0000000001").unwrap();
        assert_eq!(curators.session(), None);
        for name in [
            "_c_",
            "_c_0f8fad5b",
            "lock-0000000001",
            "_c_0f8fad5bxd9cb-469f-a165-70867728950e-",
        ] {
            assert_eq!(Uuid::of_name(name), None);
        }
    }

    #[test]
    fn names_that_resemble_ours_are_of_another_program() {
        let start = "_c_01020304-0000-8000-8000-00000000abcd";
        let is_ours =
            |end: &str| Member::read(&format!("{start}{end}")).map(|member| member.is_ours());
        for end in [
            "-lock-0000000007",
            "-latch-0000000007",
            "-lock--000000007",
            "-lock--2147483648",
            "-__WRIT__2147483647",
            "-__READ__0000000007",
            "-14-lease-0000000007",
        ] {
            assert_eq!(is_ours(end), Some(true), "{end}");
        }
        for end in [
            "-lock-7",
            "-latch-7",
            "-x-latch-0000000007",
            "-lock-+000000007",
            "-lock--000000000",
            "-x-lock-0000000007",
            "lock-0000000007",
            "-__lock__0000000007",
            "-__rlock__0000000007",
            "-014-lease-0000000007",
            "-0-lease-0000000007",
            "-x-14-lease-0000000007",
        ] {
            assert_eq!(is_ours(end), Some(false), "{end}");
        }
        let capital = format!("{}-lock-0000000007", start.replace("abcd", "ABCD"));
        assert!(!Member::read(&capital).unwrap().is_ours());
    }

    #[test]
    fn nodes_of_other_programs_take_part() {
        for (name, part, sequence) in [
            (
                "_c_0f8fad5b-d9cb-469f-a165-70867728950e-lock-0000000012",
                Part::Mutex,
                12,
            ),
            (
                "_c_0f8fad5b-d9cb-469f-a165-70867728950e-latch-0000000013",
                Part::Latch,
                13,
            ),
            ("latch-0000000014", Part::Latch, 14),
            ("latch-lock-0000000015", Part::Mutex, 15),
            ("lock-latch-0000000016", Part::Latch, 16),
            (
                "_c_0f8fad5b-d9cb-469f-a165-70867728950e-__WRIT__0000000003",
                Part::Writer,
                3,
            ),
            (
                "_c_0f8fad5b-d9cb-469f-a165-70867728950e-__READ__0000000004",
                Part::Reader,
                4,
            ),
            (
                "6a204bd89f3c8348afd5c77c717a097a__lock__0000000005",
                Part::Writer,
                5,
            ),
            (
                "6a204bd89f3c8348afd5c77c717a097a__rlock__0000000006",
                Part::Reader,
                6,
            ),
            ("lock--2147483648", Part::Mutex, i32::MIN),
        ] {
            let member = Member::read(name).unwrap();
            assert_eq!(
                (member.part, member.sequence),
                (part, Sequence::of(sequence)),
                "{name}"
            );
            assert!(!member.is_ours(), "{name}");
        }
        for name in [
            "",
            "lock",
            "lock-x",
            "latch",
            "latch-x",
            "other",
            "%sessions",
            "__READ__",
        ] {
            assert_eq!(Member::read(name), None, "{name}");
        }
    }

    #[test]
    fn numbers_that_may_be_given_twice_order_nothing() {
        for number in [0, 1, i32::MAX - 1_000_001] {
            assert!(Sequence::of(number).is_ordered(), "{number}");
        }
        for number in [i32::MAX - 1_000_000, i32::MAX, i32::MIN, -1] {
            assert!(!Sequence::of(number).is_ordered(), "{number}");
            assert!(Sequence::of(0) < Sequence::of(number));
        }
    }
}
