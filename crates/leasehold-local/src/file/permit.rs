//! Permits: `.permits` says how many there are, and each is a lock of its own, `.permit-<n>`.
//!
//! Who holds or wants a permit locks `.permits` in shared mode, so its number changes only when nobody does.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    ops::ControlFlow,
};

use leasehold_core::{ErrorKind, Result};

use super::{
    contender::{Contender, Outcome, leads_to, try_lock, try_lock_patiently},
    error::{io_error, refused},
};

/// An attempt tries one file after the other.
const MAX_PERMITS: u32 = 1024;

impl Contender {
    pub(super) fn attempt_permit(&mut self, file: File, of: u32) -> Result<Outcome> {
        if of > MAX_PERMITS {
            return Err(refused(
                ErrorKind::InvalidInput,
                format!("{of} permits were asked for, and files can do {MAX_PERMITS}; choose another backend"),
            ));
        }
        if !try_lock_patiently(&file, true, self.path())? {
            return self.keep(file, Outcome::Refused);
        }
        let mut hold = match self.confirm(file, true)? {
            ControlFlow::Continue(hold) => hold,
            ControlFlow::Break(outcome) => return Ok(outcome),
        };
        let number = read_number(&hold.file).map_err(|error| io_error("read", self.path(), error))?;
        if number != Some(of) {
            let file = hold.let_go().map_err(|error| io_error("unlock", self.path(), error))?;
            return self.set_number(file, number, of);
        }
        for n in 0..of {
            let path = self.backend.path(self.request.key(), &format!(".permit-{n}"));
            let slot = self.backend.open_file(&path)?;
            if !try_lock(&slot, false, &path)? {
                continue;
            }
            // Somebody may hold it on a file that was removed.
            let Some(shadow) = self.shadow(&path, false)? else { continue };
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
                None => self.keep(file, Outcome::Refused),
                Some(other) => Err(refused(
                    ErrorKind::Mismatch,
                    format!(
                        "`{}` is in use as a semaphore of {other} permits, and {of} were asked for; use one number for one name",
                        self.request.key()
                    ),
                )),
            };
        }
        if self.shadow(self.path(), false)?.is_none() {
            file.unlock().map_err(|error| io_error("unlock", self.path(), error))?;
            return self.keep(file, Outcome::Displaced);
        }
        write_number(&file, of).and_then(|()| file.unlock()).map_err(|error| io_error("write", self.path(), error))?;
        self.keep(file, Outcome::Again)
    }
}

pub(super) fn read_number(mut file: &File) -> io::Result<Option<u32>> {
    let mut text = String::new();
    file.rewind()?;
    match file.take(32).read_to_string(&mut text) {
        Ok(_) => Ok(text.strip_suffix('\n').and_then(|number| number.parse().ok())),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_number(mut file: &File, number: u32) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(format!("{number}\n").as_bytes())
}
