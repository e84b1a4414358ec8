//! Permits: `.permits` says how many there are, and each is a lock of its own, `.permit-<n>`.
//!
//! Who holds or wants a permit locks `.permits` in shared mode, so its number changes only when
//! nobody does.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    ops::ControlFlow,
};

use leasehold_core::{ErrorKind, Result};

use super::{
    access,
    acquire::{FileAcquisition, Outcome, leads_to, try_lock, try_lock_patiently},
    error::{io_error, refused},
    record,
};

/// What `.permits` says before the number.
const HEAD: &str = "leasehold1 permits ";
/// More than it ever says.
const MAX_LEN: u64 = 64;
/// An attempt tries one file after the other.
const MAX_PERMITS: u32 = 1024;

impl FileAcquisition {
    pub(super) fn attempt_permit(&mut self, file: File, of: u32) -> Result<Outcome> {
        if of > MAX_PERMITS {
            return Err(refused(
                ErrorKind::InvalidInput,
                format!(
                    "{of} permits were asked for, and files can do {MAX_PERMITS}; choose another backend"
                ),
            ));
        }
        if !try_lock_patiently(&file, true, self.path())? {
            return self.keep_open(file, Outcome::Refused);
        }
        let mut hold = match self.confirm(file, true)? {
            ControlFlow::Continue(hold) => hold,
            ControlFlow::Break(outcome) => return Ok(outcome),
        };
        let number =
            read_number(&hold.file).map_err(|error| io_error("read", self.path(), error))?;
        if number != Some(of) {
            let file = hold
                .let_go()
                .map_err(|error| io_error("unlock", self.path(), error))?;
            return self.set_number(file, number, of);
        }
        for n in 0..of {
            let path = self
                .backend
                .path(self.request.key(), &format!(".permit-{n}"));
            let slot = self.backend.open_file(&path)?;
            if !try_lock(&slot, false, &path)? {
                continue;
            }
            // Somebody may hold it on a file that was removed.
            let Some(shadow) = self.shadow(&path, false)? else {
                continue;
            };
            if !leads_to(&path, &slot)? {
                continue;
            }
            hold.slot = Some(slot);
            hold.slot_shadow = Some(shadow);
            return Ok(Outcome::Held(Box::new(hold)));
        }
        self.let_go(hold, Outcome::Refused)
    }

    fn set_number(&mut self, file: File, number: Option<u32>, of: u32) -> Result<Outcome> {
        if !try_lock_patiently(&file, false, self.path())? {
            return match number {
                // Somebody sets it at this moment.
                None => self.keep_open(file, Outcome::Refused),
                Some(other) => Err(refused(
                    ErrorKind::Conflict,
                    format!(
                        "`{}` is in use as a semaphore of {other} permits, and {of} were asked for; use one number for one name",
                        self.request.key()
                    ),
                )),
            };
        }
        if self.shadow(self.path(), false)?.is_none() {
            file.unlock()
                .map_err(|error| io_error("unlock", self.path(), error))?;
            return self.keep_open(file, Outcome::Displaced);
        }
        write_number(&file, of)
            .and_then(|()| file.unlock())
            .map_err(|error| io_error("write", self.path(), error))?;
        self.keep_open(file, Outcome::Again)
    }
}

/// Returns the number of permits; `None` if none is set yet.
///
/// # Errors
/// If the file says anything else: it is another program's.
pub(super) fn read_number(mut file: &File) -> io::Result<Option<u32>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MAX_LEN).read_to_end(&mut bytes)?;
    let text = std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.strip_prefix(HEAD)?.strip_suffix('\n'));
    match text.and_then(|number| number.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None if record::is_torn(&bytes, HEAD, MAX_LEN) => Ok(None),
        None => Err(record::foreign()),
    }
}

fn write_number(mut file: &File, number: u32) -> io::Result<()> {
    access::check_one_name(file)?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(format!("{HEAD}{number}\n").as_bytes())
}
