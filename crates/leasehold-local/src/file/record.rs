//! [`Record`]: the fencing tokens of a lock, in a file beside it.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::Path,
};

use leasehold_core::{OwnerId, Request};

use super::access;

/// More than a record with the longest label has.
const MAX_LEN: u64 = 512;
const MAX_LABEL: usize = 200;

/// The token of the last exclusive grant, and its holder. Only exclusive holders write it, to `<key>.token`. The
/// lock file itself is never written: it may belong to another program or user. A record is
/// `leasehold1 <token, 20 digits> <its checksum>\n<pid> <label>\n`. What follows the second line is left over from longer
/// labels.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) last_token: u64,
    pub(super) pid: u32,
    pub(super) label: String,
}

impl Record {
    pub(super) fn of(request: &Request, last_token: u64) -> Self {
        let mut label: String = request.label().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        label.truncate(label.floor_char_boundary_compat(MAX_LABEL));
        Self { last_token, pid: std::process::id(), label }
    }

    /// Reads the record. Returns `None` if there is no file, or if it contains no record: it is torn, or was
    /// written by another program.
    pub(super) fn at(path: &Path) -> io::Result<Option<Self>> {
        match access::open_existing(path) {
            Ok(file) => Self::read(&file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(mut file: &File) -> io::Result<Option<Self>> {
        let mut bytes = Vec::with_capacity(128);
        file.rewind()?;
        file.take(MAX_LEN).read_to_end(&mut bytes)?;
        Ok(Self::parse(&bytes))
    }

    /// Writes the record. To be called by the exclusive holder of the lock.
    pub(super) fn keep_at(&self, path: &Path) -> io::Result<()> {
        match access::open_writable(path) {
            Ok(file) => self.write(&file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.write(&access::create(path)?),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.replace(path).map_err(|_| error),
            Err(error) => Err(error),
        }
    }

    /// Replaces a file of another user's that we cannot write, in a directory that we can.
    fn replace(&self, path: &Path) -> io::Result<()> {
        // No name of a lock's begins with a dot.
        let new = path.with_file_name(format!(".token-{}", OwnerId::random()));
        let replaced = access::create(&new).and_then(|file| self.write(&file)).and_then(|()| fs::rename(&new, path));
        if replaced.is_err() {
            drop(fs::remove_file(&new));
        }
        replaced
    }

    /// One write, so that a process killed in it leaves the old or the new.
    fn write(&self, mut file: &File) -> io::Result<()> {
        let Self { last_token, pid, label } = self;
        let text = format!("leasehold1 {last_token:020} {:016x}\n{pid} {label}\n", checksum(*last_token));
        file.rewind()?;
        file.write_all(text.as_bytes())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let head = std::str::from_utf8(lines.next()?).ok()?;
        let mut words = head.strip_prefix("leasehold1 ")?.split(' ');
        let last_token = words.next().filter(|digits| digits.len() == 20)?.parse().ok()?;
        let sum = u64::from_str_radix(words.next()?, 16).ok()?;
        if sum != checksum(last_token) || words.next().is_some() {
            return None;
        }
        let who = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
        let (pid, label) = who.split_once(' ').unwrap_or_default();
        Some(Self { last_token, pid: pid.parse().unwrap_or(0), label: String::from(label) })
    }
}

/// `str::floor_char_boundary` is younger than our oldest compiler.
trait FloorCharBoundary {
    fn floor_char_boundary_compat(&self, at: usize) -> usize;
}

impl FloorCharBoundary for str {
    fn floor_char_boundary_compat(&self, at: usize) -> usize {
        (0..=at.min(self.len())).rev().find(|at| self.is_char_boundary(*at)).unwrap_or(0)
    }
}

/// Tells a torn number from a whole one (the finalizer of MurmurHash3, a bijection).
fn checksum(token: u64) -> u64 {
    let mut sum = token ^ 0x6c65_6173_6568_6f6c;
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        sum = (sum ^ (sum >> 33)).wrapping_mul(factor);
    }
    sum ^ (sum >> 33)
}

#[cfg(test)]
mod tests {
    use leasehold_core::LockKey;

    use super::*;

    #[test]
    fn a_record_reads_back_and_anything_else_is_none() {
        let request = Request::new(LockKey::new("k").unwrap());
        for label in [String::new(), String::from("anna (7) on host"), "ä".repeat(300), String::from("a\nb")] {
            let record = Record::of(&request.clone().with_label(label), 42);
            let file = tempfile::tempfile().unwrap();
            assert_eq!(Record::read(&file).unwrap(), None);
            Record { label: "x".repeat(200), ..Record::of(&request, 7) }.write(&file).unwrap();
            record.write(&file).unwrap();
            assert_eq!(Record::read(&file).unwrap().unwrap(), record);
        }
        let whole = format!("leasehold1 {:020} {:016x}\n1 x\n", 42, checksum(42));
        assert!(Record::parse(whole.as_bytes()).is_some());
        assert!(Record::parse(whole.replace("42 ", "43 ").as_bytes()).is_none());
        for torn in 0..47 {
            assert!(Record::parse(&whole.as_bytes()[..torn]).is_none(), "{torn}");
        }
        assert!(Record::parse(&[0; 64]).is_none());
    }
}
