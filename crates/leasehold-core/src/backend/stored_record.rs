//! [`StoredRecord`]: a record as a backend stores it, and its encoding.

use std::time::{Duration, SystemTime};

use crate::{
    backend::{
        acquisition_id::AcquisitionId,
        record::{Record, RecordWrite},
        request::Request,
    },
    error::{Error, ErrorKind, Result},
    fencing::FencingToken,
    key::LockKey,
    text::parse_exact,
};

/// The first bytes of every record, of this and of later formats.
const MAGIC: &[u8] = b"leasehold-record";
/// The format that this version reads and writes.
const FORMAT: &[u8] = b"1 ";

/// A record as a backend stores it. Unlike a [`Record`] it may be cleared, because the version of a
/// cleared record must not be forgotten.
///
/// [`encode`](Self::encode) and [`decode`](Self::decode) are the encoding of the backends that
/// store a record as one string of bytes:
///
/// ```text
/// leasehold-record1 VERSION SEQUENCE OWNER TOKEN WRITTEN LABEL_LEN VALUE_LEN\n LABEL VALUE
/// ```
///
/// All fields up to the line feed are ASCII text, separated by single spaces. The label and the
/// value follow the line feed immediately and one another. `OWNER` has 32 hexadecimal digits,
/// `WRITTEN` is in microseconds since 1970, and both lengths are in bytes. `TOKEN` is `-` without a
/// token. `VALUE_LEN` is `-` after the record was cleared. The format is stable: clients of
/// different versions share a record.
///
/// ```
/// use std::time::SystemTime;
/// use leasehold_core::{ErrorKind, LockKey};
/// use leasehold_core::backend::{RecordWrite, Request, support::StoredRecord};
///
/// let key = LockKey::new("nightly-report")?;
/// let request = Request::new(key.clone()).with_label("web-3");
/// let write = RecordWrite::new(1, "done")?;
/// let now = SystemTime::UNIX_EPOCH;
/// let stored = StoredRecord::after(None, &request, None, &write, now);
/// assert!(stored.supersedes(request.owner(), write.sequence()), "a repetition has no effect");
///
/// let bytes = stored.encode();
/// assert_eq!(StoredRecord::decode(&key, &bytes)?, stored);
/// let other = StoredRecord::decode(&key, b"another program's").unwrap_err();
/// assert_eq!(other.kind(), ErrorKind::Conflict);
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredRecord {
    /// The value. `None` after the record was cleared.
    pub value: Option<Vec<u8>>,
    /// As [`Record::version`].
    pub version: u64,
    /// As [`Record::owner`].
    pub owner: AcquisitionId,
    /// As [`Record::sequence`].
    pub sequence: u64,
    /// As [`Record::token`].
    pub token: Option<FencingToken>,
    /// As [`Record::label`].
    pub label: String,
    /// As [`Record::written`], to the microsecond.
    pub written: SystemTime,
}

impl StoredRecord {
    /// Returns the record that `write`, by the grant of `request` with this token, makes of
    /// `previous`. `now` is the time of the write.
    #[must_use]
    pub fn after(
        previous: Option<&Self>,
        request: &Request,
        token: Option<FencingToken>,
        write: &RecordWrite,
        now: SystemTime,
    ) -> Self {
        Self {
            value: write.value().map(<[u8]>::to_vec),
            version: previous.map_or(1, |previous| previous.version.saturating_add(1)),
            owner: request.owner(),
            sequence: write.sequence(),
            token,
            label: record_label(request.label()).to_owned(),
            written: SystemTime::UNIX_EPOCH + Duration::from_micros(micros(now)),
        }
    }

    /// Returns whether the write `sequence` of `owner` must change nothing, because this write or a
    /// later one of the same owner has taken effect. The result of that write is then
    /// [`version`](Self::version).
    #[must_use]
    pub fn supersedes(&self, owner: AcquisitionId, sequence: u64) -> bool {
        self.owner == owner && self.sequence >= sequence
    }

    /// Returns the record for readers. `None` if it was cleared.
    #[must_use]
    pub fn into_record(self) -> Option<Record> {
        Some(Record {
            value: self.value?,
            version: self.version,
            owner: self.owner,
            sequence: self.sequence,
            token: self.token,
            label: self.label,
            written: self.written,
        })
    }

    /// Returns the encoding of this record.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let or_dash = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(FORMAT);
        let header = format!(
            "{} {} {} {} {} {} {}\n",
            self.version,
            self.sequence,
            self.owner,
            or_dash(self.token.map(FencingToken::get)),
            micros(self.written),
            self.label.len(),
            or_dash(self.value.as_ref().map(|value| value.len() as u64)),
        );
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(self.label.as_bytes());
        bytes.extend_from_slice(self.value.as_deref().unwrap_or_default());
        bytes
    }

    /// Reads the encoding of the record of `key`.
    ///
    /// # Errors
    /// - [`ErrorKind::Unsupported`] if a later version of Leasehold has written it in another
    ///   format.
    /// - [`ErrorKind::Conflict`] if the bytes are not a record, because another program has written
    ///   them. The backend does not overwrite them.
    pub fn decode(key: &LockKey, bytes: &[u8]) -> Result<Self> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return Err(not_a_record(key));
        };
        let Some(rest) = rest.strip_prefix(FORMAT) else {
            return Err(if is_later_format(rest) {
                Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "a later version of Leasehold has written the record of `{key}`; upgrade this program"
                    ),
                )
            } else {
                not_a_record(key)
            });
        };
        parse(rest).ok_or_else(|| not_a_record(key))
    }
}

/// Returns the label that is stored in a record: at most [`Record::MAX_LABEL_LEN`] bytes of
/// `label`.
///
/// ```
/// use leasehold_core::backend::support::record_label;
///
/// assert_eq!(record_label("web-3"), "web-3");
/// assert_eq!(record_label(&"ä".repeat(200)), "ä".repeat(128));
/// ```
#[must_use]
pub fn record_label(label: &str) -> &str {
    let end = (0..=Record::MAX_LABEL_LEN.min(label.len()))
        .rev()
        .find(|end| label.is_char_boundary(*end));
    &label[..end.unwrap_or_default()]
}

/// Reads what follows the magic bytes and the format.
fn parse(bytes: &[u8]) -> Option<StoredRecord> {
    let line = bytes.iter().position(|byte| *byte == b'\n')?;
    let (header, body) = (&bytes[..line], &bytes[line + 1..]);
    let mut fields = std::str::from_utf8(header).ok()?.split(' ');
    let version = parse_exact(fields.next()?)?;
    let sequence = parse_exact(fields.next()?)?;
    let owner = parse_exact(fields.next()?)?;
    let token = optional(fields.next()?)?.map(FencingToken::new);
    let written = parse_exact(fields.next()?)?;
    let label_len = parse_exact(fields.next()?)?;
    let value_len = optional(fields.next()?)?;
    if fields.next().is_some() {
        return None;
    }
    let (label, value) = body.split_at_checked(label_len)?;
    if value.len() as u64 != value_len.unwrap_or(0) {
        return None;
    }
    Some(StoredRecord {
        value: value_len.map(|_| value.to_vec()),
        version,
        owner,
        sequence,
        token,
        label: String::from_utf8(label.to_vec()).ok()?,
        written: SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(written))?,
    })
}

/// Reads a number, or `-` for none.
#[expect(clippy::option_option, reason = "`None` is a field that is neither")]
fn optional(field: &str) -> Option<Option<u64>> {
    if field == "-" {
        Some(None)
    } else {
        parse_exact(field).map(Some)
    }
}

/// Returns whether `rest`, which follows the magic bytes, begins with the number of another format.
fn is_later_format(rest: &[u8]) -> bool {
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    digits > 0 && rest.get(digits) == Some(&b' ')
}

/// Returns the microseconds since 1970; 0 for an earlier time.
fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}

fn not_a_record(key: &LockKey) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!(
            "the value at the place of the record of `{key}` is not a record of Leasehold; remove it, or choose another name"
        ),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> LockKey {
        LockKey::new("item/42").unwrap()
    }

    fn stored(value: Option<&[u8]>) -> StoredRecord {
        StoredRecord {
            value: value.map(<[u8]>::to_vec),
            version: 12,
            owner: AcquisitionId::from(0xab),
            sequence: 3,
            token: Some(FencingToken::new(41)),
            label: String::from("wéb 3\n"),
            written: SystemTime::UNIX_EPOCH + Duration::from_micros(1_764_381_600_123_456),
        }
    }

    #[test]
    fn the_encoding_is_stable() {
        let bytes = stored(Some(b"a\nb\0\xff")).encode();
        assert_eq!(
            bytes,
            b"leasehold-record1 12 3 000000000000000000000000000000ab 41 1764381600123456 7 5\n\
              w\xc3\xa9b 3\na\nb\0\xff"
        );
        let mut cleared = stored(None);
        (cleared.token, cleared.label) = (None, String::new());
        assert_eq!(
            cleared.encode(),
            b"leasehold-record1 12 3 000000000000000000000000000000ab - 1764381600123456 0 -\n"
        );
    }

    #[test]
    fn bytes_of_another_program_are_a_conflict() {
        let good = stored(Some(b"abc")).encode();
        let text = |change: &dyn Fn(String) -> String| {
            change(String::from_utf8(good.clone()).unwrap()).into_bytes()
        };
        let bad = [
            Vec::new(),
            b"done".to_vec(),
            MAGIC.to_vec(),
            b"leasehold-record 1".to_vec(),
            b"leasehold-record1".to_vec(),
            b"leasehold-record1 \n".to_vec(),
            good[..good.len() - 1].to_vec(),
            [&good[..], b"d"].concat(),
            text(&|good| good.replacen(" 3 ", "  3 ", 1)),
            text(&|good| good.replacen(" 3 ", " +3 ", 1)),
            text(&|good| good.replacen(" 3 ", " -3 ", 1)),
            text(&|good| good.replacen(" 3 ", " 3.0 ", 1)),
            text(&|good| good.replacen(" 12 ", " 18446744073709551616 ", 1)),
            text(&|good| good.replacen("ab ", "ag ", 1)),
            text(&|good| good.replacen("00ab ", "0ab ", 1)),
            text(&|good| good.replacen("00ab ", "00AB ", 1)),
            text(&|good| good.replacen(" 3 ", " 03 ", 1)),
            text(&|good| good.replacen(" 7 3\n", " 7 03\n", 1)),
            text(&|good| good.replacen(" 7 3\n", " 07 3\n", 1)),
            text(&|good| good.replacen(" 7 3\n", " 7 3 0\n", 1)),
            text(&|good| good.replacen(" 7 3\n", " 7 -\n", 1)),
            text(&|good| good.replacen(" 7 3\n", " 7\n", 1)),
            // The label would end within a character.
            text(&|good| good.replacen(" 7 3\n", " 2 8\n", 1)),
            text(&|good| good.replacen(" 7 3\n", " 18446744073709551615 3\n", 1)),
        ];
        for bytes in bad {
            let error = StoredRecord::decode(&key(), &bytes).unwrap_err();
            let shown = String::from_utf8_lossy(&bytes);
            assert_eq!(error.kind(), ErrorKind::Conflict, "{shown}");
            assert!(error.message().contains("`item/42`"), "{error}");
        }
    }

    #[test]
    fn a_later_format_asks_for_an_upgrade() {
        let error = StoredRecord::decode(&key(), b"leasehold-record2 anything").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("upgrade"), "{error}");
    }

    #[test]
    fn versions_grow_over_owners_and_clearing() {
        let request = |owner: u128| Request::new(key()).with_owner(AcquisitionId::from(owner));
        let (first, second) = (request(1), request(2));
        let now = SystemTime::UNIX_EPOCH;
        let mut stored = None;
        for (request, write, version) in [
            (&first, RecordWrite::new(1, "a").unwrap(), 1),
            (&first, RecordWrite::clear(2), 2),
            (&second, RecordWrite::new(1, "b").unwrap(), 3),
        ] {
            let after = StoredRecord::after(stored.as_ref(), request, None, &write, now);
            assert_eq!(after.version, version);
            assert!(after.supersedes(request.owner(), write.sequence()));
            assert!(!after.supersedes(request.owner(), write.sequence() + 1));
            assert!(!after.supersedes(AcquisitionId::from(9), 1));
            stored = Some(after);
        }
    }

    #[test]
    fn times_before_1970_are_stored_as_1970() {
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        let write = RecordWrite::clear(1);
        let stored = StoredRecord::after(None, &Request::new(key()), None, &write, before);
        assert_eq!(stored.written, SystemTime::UNIX_EPOCH);
    }

    proptest! {
        #[test]
        fn every_record_is_read_back(
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..64)),
            numbers in any::<(u64, u64, u128, Option<u64>)>(),
            micros in 0..u64::MAX / 2,
            label in ".{0,40}",
        ) {
            let (version, sequence, owner, token) = numbers;
            let stored = StoredRecord {
                value,
                version,
                owner: AcquisitionId::from(owner),
                sequence,
                token: token.map(FencingToken::new),
                label,
                written: SystemTime::UNIX_EPOCH + Duration::from_micros(micros),
            };
            prop_assert_eq!(StoredRecord::decode(&key(), &stored.encode()).unwrap(), stored);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..96)) {
            drop(StoredRecord::decode(&key(), &bytes));
            drop(StoredRecord::decode(&key(), &[MAGIC, FORMAT, &bytes].concat()));
        }
    }
}
