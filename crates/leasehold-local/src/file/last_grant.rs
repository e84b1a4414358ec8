//! [`LastGrant`]: the last fencing token of a lock, in a file beside the lock file.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use leasehold_core::{AcquisitionId, backend::Request};

use super::access;

/// The beginning of the file.
pub(super) const HEAD: &str = "leasehold1 ";
/// Larger than a file with the longest label.
pub(super) const MAX_LEN: u64 = 512;
const MAX_LABEL: usize = 200;

/// The token of the last exclusive grant, and its holder.
///
/// Only exclusive holders write it, to `<key>.token`. The lock file itself is never written,
/// because it may belong to another program or user. A `<key>.token` with any other content, or
/// with a second name, is not written either. The content is
/// `leasehold1 <token, 20 digits> <its checksum>\n<pid> <label>\n`. Text after the second line is
/// the rest of a longer label.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LastGrant {
    pub(super) token: u64,
    pub(super) pid: u32,
    pub(super) label: String,
}

impl LastGrant {
    pub(super) fn of(request: &Request, token: u64) -> Self {
        let mut label: String = request
            .label()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        label.truncate(label.floor_char_boundary_compat(MAX_LABEL));
        Self {
            token,
            pid: std::process::id(),
            label,
        }
    }

    /// Reads the file. Returns `None` if there is none, or if its content is torn.
    ///
    /// # Errors
    /// Returns an error if the file belongs to another program.
    pub(super) fn at(path: &Path) -> io::Result<Option<Self>> {
        TokenFile::open(path).map(|file| file.last)
    }

    fn read(mut file: &File) -> io::Result<Option<Self>> {
        let mut bytes = Vec::with_capacity(128);
        file.rewind()?;
        file.take(MAX_LEN).read_to_end(&mut bytes)?;
        match Self::parse(&bytes) {
            None if !is_torn(&bytes, HEAD, MAX_LEN) => Err(foreign()),
            last => Ok(last),
        }
    }

    /// Writes the file in one call, so that a process that is killed leaves either the old or the
    /// new content.
    fn write(&self, mut file: &File) -> io::Result<()> {
        file.rewind()?;
        file.write_all(self.to_string().as_bytes())
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let head = std::str::from_utf8(lines.next()?).ok()?;
        let token = head.strip_prefix(HEAD)?.get(..20)?.parse().ok()?;
        if head != head_of(token) {
            return None;
        }
        let who = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
        let (pid, label) = who.split_once(' ').unwrap_or_default();
        Some(Self {
            token,
            pid: pid.parse().unwrap_or(0),
            label: String::from(label),
        })
    }
}

impl fmt::Display for LastGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, pid, label } = self;
        writeln!(f, "{}\n{pid} {label}", head_of(*token))
    }
}

/// Returns the first line of the file.
fn head_of(token: u64) -> String {
    format!("{HEAD}{token:020} {:016x}", checksum(token))
}

/// The token file of a lock, with what was read from it.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
    /// `None` if there is no file.
    file: Option<File>,
    /// Whether the file may be written in place.
    in_place: bool,
    pub(super) last: Option<LastGrant>,
}

impl TokenFile {
    /// Opens and reads the file.
    ///
    /// # Errors
    /// Returns an error if the file belongs to another program.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let (file, in_place) = match access::open_writable(path) {
            Ok(file) => {
                let alone = access::check_one_name(&file).is_ok();
                (Some(file), alone)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, false),
            Err(_) => (Some(access::open_readable(path)?), false),
        };
        let last = file.as_ref().map_or(Ok(None), LastGrant::read)?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            in_place,
            last,
        })
    }

    /// Writes the file. Only the exclusive holder of the lock may call this.
    ///
    /// A file that cannot be written in place is replaced: it belongs to another user, or it has a
    /// second name.
    pub(super) fn keep(&self, last: &LastGrant) -> io::Result<()> {
        match &self.file {
            Some(file) if self.in_place => last.write(file),
            Some(_) => self.replace(last),
            None => last.write(&access::create(&self.path)?),
        }
    }

    fn replace(&self, last: &LastGrant) -> io::Result<()> {
        // The file of a key never begins with a dot.
        let new = self
            .path
            .with_file_name(format!(".token-{}", AcquisitionId::random()));
        let replaced = access::create(&new)
            .and_then(|file| last.write(&file))
            .and_then(|()| fs::rename(&new, &self.path));
        if replaced.is_err() {
            drop(fs::remove_file(&new));
        }
        replaced
    }
}

/// Returns whether `bytes` is an incomplete write: nothing, zeros, or a part of `head` and what
/// follows, in fewer than `limit` bytes. A process or a machine that stops during a write leaves
/// such a file.
pub(super) fn is_torn(bytes: &[u8], head: &str, limit: u64) -> bool {
    let short = u64::try_from(bytes.len()).is_ok_and(|len| len < limit);
    let begun = bytes
        .iter()
        .zip(head.as_bytes())
        .all(|(byte, head)| byte == head);
    short && (begun || bytes.iter().all(|byte| *byte == 0))
}

pub(super) fn foreign() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "the file belongs to another program: it has a content that Leasehold did not write",
    )
}

/// `str::floor_char_boundary` is more recent than the minimum supported compiler.
trait FloorCharBoundary {
    fn floor_char_boundary_compat(&self, at: usize) -> usize;
}

impl FloorCharBoundary for str {
    fn floor_char_boundary_compat(&self, at: usize) -> usize {
        (0..=at.min(self.len()))
            .rev()
            .find(|at| self.is_char_boundary(*at))
            .unwrap_or(0)
    }
}

/// Computes a checksum that detects an incomplete number: the finalizer of MurmurHash3, which is a
/// bijection.
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
    fn a_grant_reads_back_and_anything_else_is_none() {
        let request = Request::new(LockKey::new("k").unwrap());
        for label in [
            String::new(),
            String::from("anna (7) on host"),
            "ä".repeat(300),
            String::from("a\nb"),
        ] {
            let last = LastGrant::of(&request.clone().with_label(label), 42);
            let file = tempfile::tempfile().unwrap();
            assert_eq!(LastGrant::read(&file).unwrap(), None);
            LastGrant {
                label: "x".repeat(200),
                ..LastGrant::of(&request, 7)
            }
            .write(&file)
            .unwrap();
            last.write(&file).unwrap();
            assert_eq!(LastGrant::read(&file).unwrap().unwrap(), last);
        }
        let whole = format!("leasehold1 {:020} {:016x}\n1 x\n", 42, checksum(42));
        assert!(LastGrant::parse(whole.as_bytes()).is_some());
        assert!(LastGrant::parse(whole.replace("42 ", "43 ").as_bytes()).is_none());
        for torn in 0..47 {
            assert!(
                LastGrant::parse(&whole.as_bytes()[..torn]).is_none(),
                "{torn}"
            );
        }
        assert!(LastGrant::parse(&[0; 64]).is_none());
        let sum = format!("{:016x}", checksum(42));
        for (written, foreign) in [
            (sum.clone(), sum.to_uppercase()),
            (sum.clone(), format!("0{sum}")),
            (sum.clone(), format!("+{sum}")),
            (sum.clone(), format!("{sum} x")),
            (format!("{:020}", 42), format!("+{:019}", 42)),
        ] {
            let resembling = whole.replace(&written, &foreign);
            assert!(
                LastGrant::parse(resembling.as_bytes()).is_none(),
                "{resembling}"
            );
        }
        for (bytes, torn) in [
            (&b""[..], true),
            (&[0; 64], true),
            (b"lease", true),
            (b"leasehold1 42", true),
            (b"secret", false),
            (b"\0\0x", false),
            (&[0; 512], false),
        ] {
            assert_eq!(is_torn(bytes, HEAD, MAX_LEN), torn, "{bytes:?}");
        }
    }
}
