//! How locks are named on the server.
//!
//! | key | what |
//! |---|---|
//! | `<prefix><name>/<lease>-<owner>` | an exclusive holder or waiter |
//! | `<prefix><name>/r-<lease>-<owner>` | a shared one |
//! | `<prefix><name>%permits/<lease>-<owner>-<of>` | one of a semaphore |
//! | `<prefix>%session/<lease>` | a session |
//! | `<prefix>%broken/<rest of a key>` | the mark of a lock that was broken gently |
//!
//! `<lease>` is the lease id in hexadecimal as Go's `concurrency` writes it, `<owner>` 32 hexadecimal digits. In `<name>`
//! the bytes `/` and `%` are written `%2F` and `%25`, so that `a` never sees `a/b`; the exact profile writes names as they are.

use std::{fmt, sync::Arc};

use leasehold_core::{ErrorKind, LockKey, Mode, OwnerId, Request, Result};

use crate::error;

const PERMITS: &[u8] = b"%permits/";
const SESSION: &[u8] = b"%session/";
const BROKEN: &[u8] = b"%broken/";
/// Above every hexadecimal digit, so that readers have a range of their own.
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

/// Where all that contend for one lock have their keys: `<prefix><name>/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Directory(EtcdKey);

impl Directory {
    pub(crate) fn start(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    pub(crate) fn end(&self) -> Vec<u8> {
        after(self.start())
    }

    /// Where readers' keys begin, and where they end.
    pub(crate) fn readers(&self) -> (Vec<u8>, Vec<u8>) {
        let start = [self.0.as_bytes(), READER].concat();
        (start.clone(), after(start))
    }

    /// The key of one acquisition in the session with this lease.
    pub(crate) fn key(&self, request: &Request, lease: i64) -> EtcdKey {
        let mut key = self.start();
        if request.mode() == Mode::Shared {
            key.extend_from_slice(READER);
        }
        key.extend_from_slice(format!("{lease:x}-").as_bytes());
        key.extend_from_slice(&request.owner().to_hex());
        if let Mode::Permit { of } = request.mode() {
            key.extend_from_slice(format!("-{of}").as_bytes());
        }
        EtcdKey::from(key)
    }

    /// What a key under this directory says.
    pub(crate) fn read(&self, key: &[u8]) -> Member {
        let rest = key.strip_prefix(self.0.as_bytes()).unwrap_or_default();
        let (shared, rest) = match rest.strip_prefix(READER) {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let foreign = Member { owner: None, shared: false, of: None };
        let Ok(rest) = std::str::from_utf8(rest) else { return foreign };
        let mut parts = rest.split('-');
        let owner = parts.nth(1).and_then(|owner| owner.parse().ok());
        let of = parts.next().and_then(|of| of.parse().ok());
        if owner.is_some() { Member { owner, shared, of } } else { foreign }
    }

    /// So that jobs on one lock can be told from those on others.
    pub(crate) fn lane(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        hasher.finish()
    }
}

/// What a key says about who wrote it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// `None` for another program's.
    pub(crate) owner: Option<OwnerId>,
    pub(crate) shared: bool,
    pub(crate) of: Option<u32>,
}

/// The prefix and the profile.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) prefix: Arc<[u8]>,
    pub(crate) exact: bool,
}

impl Names {
    pub(crate) fn directory(&self, key: &LockKey, permits: bool) -> Result<Directory> {
        let name = key.as_bytes();
        let mut directory = Vec::with_capacity(self.prefix.len() + name.len() + 16);
        directory.extend_from_slice(&self.prefix);
        if self.exact {
            if [PERMITS, SESSION, BROKEN].iter().any(|ours| contains(name, &ours[..ours.len() - 1])) {
                return Err(error::plain(
                    ErrorKind::InvalidInput,
                    "acquire",
                    format!("`{key}` contains what this backend reserves for itself under exact names"),
                ));
            }
            directory.extend_from_slice(name);
        } else {
            for byte in name {
                match byte {
                    b'/' => directory.extend_from_slice(b"%2F"),
                    b'%' => directory.extend_from_slice(b"%25"),
                    byte => directory.push(*byte),
                }
            }
        }
        directory.extend_from_slice(if permits { PERMITS } else { b"/" });
        Ok(Directory(EtcdKey::from(directory)))
    }

    pub(crate) fn session(&self, lease: i64) -> EtcdKey {
        let mut key = [&*self.prefix, SESSION].concat();
        key.extend_from_slice(format!("{lease:x}").as_bytes());
        EtcdKey::from(key)
    }

    /// The mark of a gently broken lock whose holder has this key.
    pub(crate) fn mark(&self, key: &[u8]) -> Option<EtcdKey> {
        let rest = key.strip_prefix(&*self.prefix)?;
        Some(EtcdKey::from([&*self.prefix, BROKEN, rest].concat()))
    }

    /// The key that a mark is about.
    pub(crate) fn marked(&self, mark: &[u8]) -> Option<EtcdKey> {
        let rest = mark.strip_prefix(&*self.prefix)?.strip_prefix(BROKEN)?;
        Some(EtcdKey::from([&*self.prefix, rest].concat()))
    }
}

/// The first key after all that start with these bytes.
fn after(mut start: Vec<u8>) -> Vec<u8> {
    // Directories end in `/` and `-`: the last byte is never 0xff.
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

    fn names(exact: bool) -> Names {
        Names { prefix: b"shop:".as_slice().into(), exact }
    }

    fn request(name: &[u8]) -> Request {
        Request::new(LockKey::new(name).unwrap()).with_owner(0xab.into())
    }

    fn key_of(request: &Request, exact: bool) -> String {
        let directory = names(exact).directory(request.key(), request.mode().is_permit()).unwrap();
        let key = directory.key(request, 0x694d_1234);
        let member = directory.read(key.as_bytes());
        assert_eq!(member.owner, Some(request.owner()));
        assert_eq!(member.shared, request.mode() == Mode::Shared);
        String::from_utf8(key.to_vec()).unwrap()
    }

    #[test]
    fn golden_keys() {
        let owner = format!("{:032x}", 0xab);
        assert_eq!(key_of(&request(b"item"), false), format!("shop:item/694d1234-{owner}"));
        assert_eq!(key_of(&request(b"a/b%"), false), format!("shop:a%2Fb%25/694d1234-{owner}"));
        assert_eq!(key_of(&request(b"a/b"), true), format!("shop:a/b/694d1234-{owner}"));
        let shared = request(b"item").with_mode(Mode::Shared);
        assert_eq!(key_of(&shared, false), format!("shop:item/r-694d1234-{owner}"));
        let permit = request(b"item").with_permit_of(4.try_into().unwrap());
        assert_eq!(key_of(&permit, false), format!("shop:item%permits/694d1234-{owner}-4"));
        assert_eq!(names(false).session(0x1f).as_bytes(), b"shop:%session/1f");
    }

    #[test]
    fn no_lock_sees_another() {
        let starts: Vec<Vec<u8>> = ["a", "a/b", "a%2Fb", "a/", "%permits", "a%permits", "%session", "b"]
            .iter()
            .flat_map(|name| {
                let key = LockKey::new(name).unwrap();
                [false, true].map(|permits| names(false).directory(&key, permits).unwrap().start())
            })
            .collect();
        for (at, one) in starts.iter().enumerate() {
            for (other_at, other) in starts.iter().enumerate() {
                assert!(at == other_at || !other.starts_with(one), "{one:?} sees {other:?}");
            }
        }
    }

    #[test]
    fn keys_of_other_programs_are_foreign() {
        let directory = names(false).directory(&LockKey::new("a").unwrap(), false).unwrap();
        for key in ["694d1234", "r-1", "", "x-y-z"] {
            assert_eq!(directory.read(format!("shop:a/{key}").as_bytes()).owner, None);
        }
    }

    #[test]
    fn a_mark_names_its_key() {
        let mark = names(false).mark(b"shop:item/1-2").unwrap();
        assert_eq!(mark.as_bytes(), b"shop:%broken/item/1-2");
        assert_eq!(names(false).marked(mark.as_bytes()).unwrap().as_bytes(), b"shop:item/1-2");
        assert_eq!(names(false).marked(b"shop:item/1-2"), None);
    }

    #[test]
    fn exact_names_that_look_like_ours_are_refused() {
        assert!(names(true).directory(&LockKey::new("a%permits").unwrap(), false).is_err());
    }
}
