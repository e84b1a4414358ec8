//! The keys of locks on the server: [`AdvisoryKey`], [`KeyScheme`], and the keys beside the locks.
//!
//! | what | advisory key |
//! |---|---|
//! | an exclusive or shared lock | that of the [`KeyScheme`]; by default `hashtextextended(name, 0)` |
//! | permit `i` of a semaphore, from 1 | `hashtextextended(name, i)` |
//! | the count of a semaphore, held shared with each of its permits | the upper 44 bits of `hashtextextended(name, -1)`, then the count |
//! | the marker of a waiter, held shared | `hashtextextended('leasehold waits ' || key, 0)` |
//! | the marker of a waiting writer, held shared | `hashtextextended('leasehold writer waits ' || key, 0)` |
//! | the revocation marker, held shared by the revoking session and then by the holder | `hashtextextended('leasehold revokes ' || pid || ' ' || key, 0)` |
//! | the marker of a record, held shared by its writer | the upper 44 bits of `hashtextextended('leasehold record ' || key, 0)`, then the lower 20 bits of the acquisition's id |
//!
//! `name` is the configured prefix followed by the name of the lock. In the markers, `key` is the
//! key in decimal, `42` or `4,2`; the key of a semaphore is `hashtextextended(name, -1)`. `pid` is
//! the holder's pid, as `pg_locks` shows it.

use std::{
    fmt,
    io::{Cursor, Write as _},
    sync::Arc,
};

use leasehold_core::{AcquisitionId, ErrorKind, LockKey, Result, text::parse_exact};
use sqlx::postgres::{PgAdvisoryLock, PgAdvisoryLockKey};

use crate::{error::ERRORS, hash::hash_text_extended};

/// The seed of the key of a semaphore.
const SEMAPHORE: u64 = u64::MAX;
/// The bits of the marker of a record that contain the end of the writer's id.
pub(crate) const RECORD_WRITER: i64 = (1 << 20) - 1;
/// The maximum number of permits of one semaphore. An attempt passes over the permits that are
/// held.
const MAX_PERMITS: u32 = 10_000;

/// The key of an advisory lock, in one of the two key spaces of the server. The spaces are
/// disjoint.
///
/// ```
/// use leasehold_postgres::{AdvisoryKey, KeyScheme};
///
/// let key = KeyScheme::Int32Pair.key_of(b"4,2")?;
/// assert_eq!(key, AdvisoryKey::Int32Pair(4, 2));
/// assert_eq!(key.to_string(), "4,2");
/// # Ok::<(), leasehold_postgres::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AdvisoryKey {
    /// A key of `pg_advisory_lock(bigint)`.
    Int64(i64),
    /// A key of `pg_advisory_lock(int, int)`.
    Int32Pair(i32, i32),
}

impl AdvisoryKey {
    /// Returns the key as one number. The first number of a pair is the upper half.
    pub(crate) fn bits(self) -> i64 {
        match self {
            Self::Int64(key) => key,
            Self::Int32Pair(first, second) => {
                i64::from(first) << 32 | i64::from(second.cast_unsigned())
            }
        }
    }

    fn of_bits(bits: i64, pair: bool) -> Self {
        if pair {
            Self::Int32Pair((bits >> 32) as i32, bits as i32)
        } else {
            Self::Int64(bits)
        }
    }

    /// Returns the key that `pg_locks` shows in `classid`, `objid` and `objsubid`.
    pub(crate) fn of_pg_locks(class: i64, object: i64, sub: i16) -> Self {
        Self::of_bits(class << 32 | object, sub == 2)
    }

    /// Returns the `objsubid` that `pg_locks` shows.
    pub(crate) fn objsubid(self) -> i16 {
        if self.is_pair() { 2 } else { 1 }
    }

    /// Returns the marker of a waiter for this key.
    pub(crate) fn waiter_marker(self) -> i64 {
        hash_of(format_args!("leasehold waits {self}"))
    }

    /// Returns the second marker of a writer that waits for this key.
    pub(crate) fn writer_marker(self) -> i64 {
        hash_of(format_args!("leasehold writer waits {self}"))
    }

    pub(crate) fn is_pair(self) -> bool {
        matches!(self, Self::Int32Pair(..))
    }

    /// Returns the marker of a graceful revocation of this key in the session `pid`. The revoking
    /// session holds it, and then the session `pid` as well.
    pub(crate) fn revocation_marker(self, pid: i32) -> i64 {
        hash_of(format_args!("leasehold revokes {pid} {self}"))
    }

    /// Returns the key under which watchers of the record beside this lock are notified. Its lower
    /// 20 bits are 0.
    pub(crate) fn record_key(self) -> Self {
        Self::Int64(hash_of(format_args!("leasehold record {self}")) & !RECORD_WRITER)
    }

    /// Returns the marker of the record that the acquisition `owner` has written beside this lock.
    /// Its session holds it until the release, so that readers see whether the writer of a record
    /// still holds the lock.
    pub(crate) fn record_marker(self, owner: AcquisitionId) -> i64 {
        self.record_key().bits() | (owner.as_u128() as i64 & RECORD_WRITER)
    }

    /// Returns the payload of a notification: a letter for the key space, and the bits.
    pub(crate) fn payload(self) -> String {
        format!("{}{}", if self.is_pair() { 'p' } else { 'b' }, self.bits())
    }

    /// Parses the payload of a notification.
    pub(crate) fn of_payload(payload: &str) -> Option<Self> {
        let (space, bits) = payload.split_at_checked(1)?;
        let bits = parse_exact(bits)?;
        match space {
            "b" => Some(Self::of_bits(bits, false)),
            "p" => Some(Self::of_bits(bits, true)),
            _ => None,
        }
    }
}

/// Returns the hash of a short text with at most two numbers. It does not allocate, because every
/// release computes one.
fn hash_of(text: fmt::Arguments<'_>) -> i64 {
    let mut buffer = [0; 96];
    let mut cursor = Cursor::new(&mut buffer[..]);
    let fits = cursor.write_fmt(text).is_ok();
    debug_assert!(fits, "{text}");
    let length = usize::try_from(cursor.position()).unwrap_or_default();
    hash_text_extended(&buffer[..length], 0)
}

/// Writes the key as in SQL: `42`, or `4,2`.
impl fmt::Display for AdvisoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int64(key) => key.fmt(f),
            Self::Int32Pair(first, second) => write!(f, "{first},{second}"),
        }
    }
}

/// A mapping from the names of locks to advisory keys. All programs that share locks must use the
/// same one.
///
/// ```
/// use leasehold_postgres::{AdvisoryKey, KeyScheme, PostgresConfig};
///
/// assert_eq!(KeyScheme::Int64.key_of(b"42")?, AdvisoryKey::Int64(42));
/// let config = PostgresConfig::default().with_keys(KeyScheme::Int64);
/// # Ok::<(), leasehold_postgres::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyScheme {
    /// `hashtextextended(name, 0)`, so that any SQL client can take the same lock by its name. The
    /// default. A name may consist of any bytes. SQL cannot express names that are not UTF-8 or
    /// that contain a NUL byte.
    #[default]
    Hash,
    /// The name is the key: an integer of 64 bits in decimal, such as `42`.
    Int64,
    /// The name is the key: two integers of 32 bits in decimal, such as `4,2`.
    Int32Pair,
    /// The key of `sqlx::postgres::PgAdvisoryLock::new(name)`: HKDF with SHA-256. The name must be
    /// UTF-8.
    Sqlx,
    /// The key of the Ruby gem *with_advisory_lock*: the pair of the name's CRC-32 without its top
    /// bit, and 0.
    Rails,
    /// The key of .NET's *DistributedLock* with `allowHashing`: up to 9 ASCII characters as a pair,
    /// 16 hexadecimal digits as one number and `8,8` as a pair, and otherwise the first 8 bytes of
    /// SHA-1. The name must be UTF-8.
    DotNet,
}

impl KeyScheme {
    /// Returns the advisory key of a name.
    ///
    /// ```
    /// use leasehold_postgres::{AdvisoryKey, KeyScheme};
    ///
    /// assert_eq!(KeyScheme::Hash.key_of(b"item/42")?, AdvisoryKey::Int64(-8097702976211214439));
    /// assert_eq!(KeyScheme::Int32Pair.key_of(b"4,2")?, AdvisoryKey::Int32Pair(4, 2));
    /// assert!(KeyScheme::Int64.key_of(b"item/42").is_err());
    /// # Ok::<(), leasehold_postgres::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the scheme has no key for this name.
    pub fn key_of(self, name: &[u8]) -> Result<AdvisoryKey> {
        match self {
            Self::Hash => Ok(AdvisoryKey::Int64(hash_text_extended(name, 0))),
            Self::Int64 => number(name)
                .map(AdvisoryKey::Int64)
                .ok_or_else(|| unfit(name, "a number such as 42")),
            Self::Int32Pair => {
                pair(name).ok_or_else(|| unfit(name, "a pair of numbers such as 4,2"))
            }
            Self::Sqlx => match PgAdvisoryLock::new(text(name)?).key() {
                PgAdvisoryLockKey::BigInt(key) => Ok(AdvisoryKey::Int64(*key)),
                PgAdvisoryLockKey::IntPair(first, second) => {
                    Ok(AdvisoryKey::Int32Pair(*first, *second))
                }
                _ => Err(unfit(name, "a name that the driver makes a known key of")),
            },
            Self::Rails => Ok(AdvisoryKey::Int32Pair(
                (crc32fast::hash(name) & 0x7fff_ffff) as i32,
                0,
            )),
            Self::DotNet => Ok(dot_net(text(name)?)),
        }
    }

    /// Returns whether some keys of the scheme are pairs.
    pub(crate) fn has_pairs(self) -> bool {
        matches!(self, Self::Int32Pair | Self::Rails | Self::DotNet)
    }
}

fn text(name: &[u8]) -> Result<&str> {
    std::str::from_utf8(name).map_err(|_| unfit(name, "UTF-8"))
}

/// Parses a decimal number in its canonical form, so that no two names have the same key.
fn number<N: std::str::FromStr + fmt::Display>(name: &[u8]) -> Option<N> {
    parse_exact(std::str::from_utf8(name).ok()?)
}

fn pair(name: &[u8]) -> Option<AdvisoryKey> {
    let comma = name.iter().position(|byte| *byte == b',')?;
    Some(AdvisoryKey::Int32Pair(
        number(&name[..comma])?,
        number(&name[comma + 1..])?,
    ))
}

fn dot_net(name: &str) -> AdvisoryKey {
    let hex = |part: &str| {
        (part.len() == 8)
            .then(|| u32::from_str_radix(part, 16).ok())
            .flatten()
    };
    let digits = name
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit() || byte == b',');
    if name.len() <= 9 && name.is_ascii() {
        // Seven bits each, then a zero, then ones.
        let packed = name
            .bytes()
            .fold(0_u64, |packed, byte| packed << 7 | u64::from(byte))
            << 1;
        let key = (name.len()..9).fold(packed, |packed, _| packed << 7 | 0x7f);
        return AdvisoryKey::of_bits(key.cast_signed(), true);
    }
    match (name.len(), digits) {
        (16, true) => {
            if let (Some(first), Some(second)) = (hex(&name[..8]), hex(&name[8..])) {
                return AdvisoryKey::Int64(
                    (u64::from(first) << 32 | u64::from(second)).cast_signed(),
                );
            }
        }
        (17, true) => {
            if let (Some(first), b',', Some(second)) =
                (hex(&name[..8]), name.as_bytes()[8], hex(&name[9..]))
            {
                return AdvisoryKey::Int32Pair(first.cast_signed(), second.cast_signed());
            }
        }
        _ => {}
    }
    let digest = sha1_smol::Sha1::from(name).digest().bytes();
    AdvisoryKey::Int64(
        digest[..8]
            .iter()
            .rev()
            .fold(0, |key, byte| key << 8 | i64::from(*byte)),
    )
}

fn unfit(name: &[u8], wanted: &str) -> leasehold_core::Error {
    ERRORS.error(
        ErrorKind::InvalidInput,
        "acquire",
        format!(
            "the key scheme needs {wanted}, and the lock is named `{}`",
            name.escape_ascii()
        ),
    )
}

/// The configured mapping from names to keys.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) scheme: KeyScheme,
    pub(crate) prefix: Arc<[u8]>,
}

impl Names {
    /// Returns the key of an exclusive or shared lock.
    pub(crate) fn lock(&self, key: &LockKey) -> Result<AdvisoryKey> {
        if self.prefix.is_empty() {
            self.scheme.key_of(key.as_bytes())
        } else {
            self.scheme.key_of(&self.name(key))
        }
    }

    /// Returns the keys of the semaphore with this name.
    pub(crate) fn semaphore(&self, key: &LockKey, of: u32) -> Result<PermitKeys> {
        if of > MAX_PERMITS {
            return Err(ERRORS.error(
                ErrorKind::InvalidInput,
                "acquire",
                format!(
                    "a semaphore has at most {MAX_PERMITS} permits, and {of} were requested for `{key}`"
                ),
            ));
        }
        Ok(PermitKeys {
            name: self.name(key).into(),
            of,
        })
    }

    /// Returns the name of a lock with the prefix.
    pub(crate) fn name(&self, key: &LockKey) -> Vec<u8> {
        [&*self.prefix, key.as_bytes()].concat()
    }
}

/// The keys of one semaphore.
#[derive(Clone, Debug)]
pub(crate) struct PermitKeys {
    name: Arc<[u8]>,
    pub(crate) of: u32,
}

impl PermitKeys {
    /// The bits of a count's key that contain the count.
    pub(crate) const COUNT: i64 = (1 << 20) - 1;

    /// Returns the key of the semaphore, for which its waiters wait.
    pub(crate) fn key(&self) -> AdvisoryKey {
        AdvisoryKey::Int64(hash_text_extended(&self.name, SEMAPHORE))
    }

    /// Returns the key of permit `number`, from 1.
    pub(crate) fn permit(&self, number: u32) -> i64 {
        hash_text_extended(&self.name, u64::from(number))
    }

    /// Returns the key of this count, which holders of a permit hold as well.
    pub(crate) fn count(&self) -> i64 {
        self.any_count() | i64::from(self.of)
    }

    /// Returns the bits that the keys of all counts have in common.
    pub(crate) fn any_count(&self) -> i64 {
        self.key().bits() & !Self::COUNT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(scheme: KeyScheme, name: &str) -> AdvisoryKey {
        scheme.key_of(name.as_bytes()).unwrap()
    }

    /// They must never change: programs that are running use the same.
    #[test]
    fn keys_are_those_of_the_others() {
        use AdvisoryKey::{Int32Pair, Int64};
        for (scheme, name, golden) in [
            (
                KeyScheme::Hash,
                "item/42",
                Int64(-8_097_702_976_211_214_439),
            ),
            (KeyScheme::Int64, "-42", Int64(-42)),
            (KeyScheme::Int64, "9223372036854775807", Int64(i64::MAX)),
            (KeyScheme::Int32Pair, "4,-2", Int32Pair(4, -2)),
            // From the documentation of the driver.
            (
                KeyScheme::Sqlx,
                "my first Postgres advisory lock!",
                Int64(-5_560_419_505_042_474_287),
            ),
            // `Zlib.crc32("123456789")` is 0xcbf43926, as every CRC-32 of it.
            (KeyScheme::Rails, "123456789", Int32Pair(0x4bf4_3926, 0)),
            // 7 bits each of "a", a zero, 56 ones.
            (
                KeyScheme::DotNet,
                "a",
                Int32Pair(((0x61_u64 << 57 | ((1 << 56) - 1)) >> 32) as u32 as i32, -1),
            ),
            (KeyScheme::DotNet, "", Int32Pair(i32::MAX, -1)),
            (KeyScheme::DotNet, "00000000000000ff", Int64(255)),
            (KeyScheme::DotNet, "00000001,ffffffff", Int32Pair(1, -1)),
            // SHA-1 of "The quick brown fox…" begins with 2fd4e1c6 7a2d28fc.
            (
                KeyScheme::DotNet,
                "The quick brown fox jumps over the lazy dog",
                Int64(i64::from_le_bytes([
                    0x2f, 0xd4, 0xe1, 0xc6, 0x7a, 0x2d, 0x28, 0xfc,
                ])),
            ),
        ] {
            assert_eq!(key(scheme, name), golden, "{scheme:?}, {name:?}");
        }
    }

    #[test]
    fn names_that_are_no_key_are_refused() {
        for (scheme, name) in [
            (KeyScheme::Int64, b"042".as_slice()),
            (KeyScheme::Int64, b"+1"),
            (KeyScheme::Int64, b"-0"),
            (KeyScheme::Int64, b"9223372036854775808"),
            (KeyScheme::Int32Pair, b"1"),
            (KeyScheme::Int32Pair, b"1, 2"),
            (KeyScheme::Int32Pair, b"1,2,3"),
            (KeyScheme::Sqlx, b"\xff"),
            (KeyScheme::DotNet, b"\xff"),
        ] {
            assert_eq!(
                scheme.key_of(name).unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{scheme:?}, {name:?}"
            );
        }
    }

    #[test]
    fn bits_and_pg_locks_and_payloads_go_both_ways() {
        for key in [
            AdvisoryKey::Int64(-5),
            AdvisoryKey::Int64(7 << 40),
            AdvisoryKey::Int32Pair(-1, 7),
            AdvisoryKey::Int32Pair(3, -2),
        ] {
            let (class, object) = (key.bits() >> 32 & 0xffff_ffff, key.bits() & 0xffff_ffff);
            assert_eq!(
                AdvisoryKey::of_pg_locks(class, object, if key.is_pair() { 2 } else { 1 }),
                key
            );
            assert_eq!(AdvisoryKey::of_payload(&key.payload()), Some(key));
        }
        // As the statements write them.
        assert_eq!(
            (
                AdvisoryKey::Int64(-5).payload(),
                AdvisoryKey::Int32Pair(0, 7).payload()
            ),
            ("b-5".into(), "p7".into())
        );
        for other in ["🔒1", "", "b", "b+5", "b05", "b-0", "p 1", "x1"] {
            assert_eq!(AdvisoryKey::of_payload(other), None, "{other}");
        }
    }

    /// They must never change: programs that are running use the same.
    #[test]
    fn markers_of_a_record_differ_in_their_lower_bits_alone() {
        let key = AdvisoryKey::Int64(42);
        let of = |owner: u128| key.record_marker(AcquisitionId::from(owner));
        assert_eq!(
            key.record_key().bits(),
            hash_text_extended(b"leasehold record 42", 0) & !0xf_ffff
        );
        assert_eq!(of(0xabc_def1_2345) & RECORD_WRITER, 0x1_2345);
        assert_eq!(of(1) & !RECORD_WRITER, key.record_key().bits());
        assert_ne!(key.record_key(), AdvisoryKey::Int32Pair(0, 42).record_key());
    }

    #[test]
    fn counts_of_one_semaphore_differ_in_their_lower_bits_alone() {
        let names = Names {
            scheme: KeyScheme::Hash,
            prefix: Arc::from(b"".as_slice()),
        };
        let of = |of| names.semaphore(&LockKey::new("gpu").unwrap(), of).unwrap();
        assert_eq!(of(2).any_count(), of(3).any_count());
        assert_eq!(
            (
                of(2).count() & PermitKeys::COUNT,
                of(3).count() & PermitKeys::COUNT
            ),
            (2, 3)
        );
        assert_eq!(of(2).permit(1), of(3).permit(1));
        assert!(
            names
                .semaphore(&LockKey::new("gpu").unwrap(), MAX_PERMITS + 1)
                .is_err()
        );
    }
}
