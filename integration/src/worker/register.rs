use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

pub(super) use leasehold_testkit::history::{RegisterLine, Write};

/// The maximum length of a line.
const TAIL: u64 = 1024;

/// The resource that a lock protects: a number in a file. A *fenced* access with a smaller token
/// than the largest seen is refused.
///
/// Each access is atomic (a lock of the operating system on the file, one appended line), as in any
/// store. A read followed by a write is not atomic, and needs the distributed lock.
#[derive(Debug, Clone)]
pub struct Register(PathBuf);

impl Register {
    /// Returns the register at `path`. Its value is zero if the file does not exist.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Reads the value with `token`. Returns `None` if the access is refused.
    ///
    /// # Errors
    /// The file cannot be accessed.
    pub fn read(&self, token: u64) -> std::io::Result<Option<u64>> {
        let (file, last) = self.open()?;
        if token < last.token {
            return Ok(None);
        }
        if token > last.token {
            append(
                &file,
                &RegisterLine {
                    token,
                    value: last.value,
                    write: None,
                },
            )?;
        }
        Ok(Some(last.value))
    }

    /// Writes the value with `token`. Returns `false` if the access is refused.
    ///
    /// # Errors
    /// The file cannot be accessed.
    pub fn write(&self, token: u64, value: u64, write: Write) -> std::io::Result<bool> {
        let (file, last) = self.open()?;
        if token < last.token {
            return Ok(false);
        }
        append(
            &file,
            &RegisterLine {
                token,
                value,
                write: Some(write),
            },
        )?;
        Ok(true)
    }

    /// Writes the value without checking the token, as most stores do.
    ///
    /// # Errors
    /// The file cannot be accessed.
    pub fn write_unfenced(&self, value: u64, write: Write) -> std::io::Result<()> {
        let (file, last) = self.open()?;
        append(
            &file,
            &RegisterLine {
                token: last.token,
                value,
                write: Some(write),
            },
        )
    }

    /// Returns the value without checking a token.
    ///
    /// # Errors
    /// The file cannot be accessed.
    pub fn value(&self) -> std::io::Result<u64> {
        Ok(self.open()?.1.value)
    }

    /// Returns all accepted writes.
    ///
    /// # Errors
    /// The file cannot be accessed.
    pub fn history(&self) -> std::io::Result<Vec<RegisterLine>> {
        let (mut file, _) = self.open()?;
        file.rewind()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        text.lines()
            .map(|line| serde_json::from_str(line).map_err(std::io::Error::other))
            .collect()
    }

    fn open(&self) -> std::io::Result<(File, RegisterLine)> {
        let mut file = File::options()
            .create(true)
            .read(true)
            .append(true)
            .open(&self.0)?;
        file.lock()?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut tail = String::new();
        file.read_to_string(&mut tail)?;
        let last = match tail.lines().next_back() {
            None => RegisterLine {
                token: 0,
                value: 0,
                write: None,
            },
            Some(line) => serde_json::from_str(line).map_err(std::io::Error::other)?,
        };
        Ok((file, last))
    }
}

fn append(mut file: &File, line: &RegisterLine) -> std::io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    file.write_all(&bytes)
}
