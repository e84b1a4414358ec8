//! Permits: `.permits` stores their number, and each permit is a lock on a file `.permit-<n>`.
//!
//! Holders and waiters lock `.permits` in shared mode, so its number changes only when there are
//! none.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    ops::ControlFlow,
};

use leasehold_core::{ErrorKind, Result, text::parse_exact};

use super::{
    access,
    error::{io_error, refused},
    last_grant,
    pending_lock::{Outcome, PendingLock, leads_to, try_lock, try_lock_patiently},
};

/// The text before the number in `.permits`.
const HEAD: &str = "leasehold1 permits ";
/// Larger than any content of `.permits`.
const MAX_LEN: u64 = 64;
/// The limit exists because an attempt tries one file after the other.
const MAX_PERMITS: u32 = 1024;

impl PendingLock {
    pub(super) fn attempt_permit(&mut self, file: File, of: u32) -> Result<Outcome> {
        if of > MAX_PERMITS {
            return Err(refused(
                ErrorKind::InvalidInput,
                format!(
                    "{of} permits were requested, but the file backend supports {MAX_PERMITS}; use another backend"
                ),
            ));
        }
        let file = match try_lock_patiently(file, true, self.path())? {
            Ok(file) => file,
            Err(file) => return self.keep_open(file, Outcome::Refused),
        };
        let number = read_number(file.file());
        let mut locked = match self.confirm(file, true)? {
            ControlFlow::Continue(locked) => locked,
            ControlFlow::Break(outcome) => return Ok(outcome),
        };
        let number = number.map_err(|error| io_error("read", self.path(), error))?;
        if number != Some(of) {
            let file = self.unlock(locked.into_file())?;
            return self.set_number(file, number, of);
        }
        for n in 0..of {
            let path = self.dir.file(self.request.key(), &format!(".permit-{n}"));
            let slot = self.dir.open_file(&path)?;
            let Ok(slot) = try_lock(slot, false, &path)? else {
                continue;
            };
            // Another process may hold the permit on a file that was removed.
            let Some(shadow) = self.shadow(&path, false)? else {
                continue;
            };
            if leads_to(&path, slot.file())? {
                (locked.slot, locked.slot_shadow) = (Some(slot), Some(shadow));
                return Ok(Outcome::Held(Box::new(locked)));
            }
        }
        self.unlock_and_keep_open(locked.into_file(), Outcome::Refused)
    }

    fn set_number(&mut self, file: File, number: Option<u32>, of: u32) -> Result<Outcome> {
        let file = match (try_lock_patiently(file, false, self.path())?, number) {
            (Ok(file), _) => file,
            // Another process is writing the number.
            (Err(file), None) => return self.keep_open(file, Outcome::Refused),
            (Err(_), Some(other)) => {
                return Err(refused(
                    ErrorKind::Conflict,
                    format!(
                        "`{}` is in use as a semaphore of {other} permits, but {of} were requested; \
                         use the same number for every semaphore of this name",
                        self.request.key()
                    ),
                ));
            }
        };
        if self.shadow(self.path(), false)?.is_none() {
            return self.unlock_and_keep_open(file, Outcome::Displaced);
        }
        write_number(file.file(), of).map_err(|error| io_error("write", self.path(), error))?;
        self.unlock_and_keep_open(file, Outcome::Again)
    }
}

/// Returns the number of permits, or `None` if none is stored yet.
///
/// # Errors
/// Returns an error if the file has any other content, because it belongs to another program.
pub(super) fn read_number(mut file: &File) -> io::Result<Option<u32>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MAX_LEN).read_to_end(&mut bytes)?;
    parse_number(&bytes)
}

/// Parses the content of `.permits`, of which at most [`MAX_LEN`] bytes are given.
pub(super) fn parse_number(bytes: &[u8]) -> io::Result<Option<u32>> {
    let text = std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.strip_prefix(HEAD)?.strip_suffix('\n'));
    match text.and_then(parse_exact) {
        Some(number) => Ok(Some(number)),
        None if last_grant::is_torn(bytes, HEAD, MAX_LEN) => Ok(None),
        None => Err(last_grant::foreign()),
    }
}

fn write_number(mut file: &File, number: u32) -> io::Result<()> {
    access::check_one_name(file)?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(format!("{HEAD}{number}\n").as_bytes())
}
