use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

pub(super) use leasehold_testkit::history::{RegisterLine, Write};

/// No line is longer.
const TAIL: u64 = 1024;

/// The resource that a lock protects: a number in a file. Where it is *fenced* it refuses reads and
/// writes that show a smaller token than it has seen.
///
/// Each access is atomic by itself (a lock of the operating system on the file, one appended line),
/// as any store's is. A read and a later write are not: that is what the distributed lock is for.
#[derive(Debug, Clone)]
pub struct Register(PathBuf);

impl Register {
    /// The register at `path`; zero if there is no such file yet.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Reads with `token`. `None`: refused.
    ///
    /// # Errors
    /// The file cannot be used.
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

    /// Writes with `token`. `false`: refused.
    ///
    /// # Errors
    /// The file cannot be used.
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

    /// Writes and looks at no token, as most stores do.
    ///
    /// # Errors
    /// The file cannot be used.
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

    /// The value, whatever the token.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn value(&self) -> std::io::Result<u64> {
        Ok(self.open()?.1.value)
    }

    /// All that it has taken.
    ///
    /// # Errors
    /// The file cannot be used.
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
