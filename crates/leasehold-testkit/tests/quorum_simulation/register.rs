//! The protected resource: a number that rejects smaller tokens than it has seen.

use leasehold_testkit::history::{RegisterLine, Write};

#[derive(Default)]
pub(crate) struct Register {
    token: u64,
    value: u64,
    pub(crate) history: Vec<RegisterLine>,
}

impl Register {
    pub(crate) fn read(&mut self, token: u64) -> Option<u64> {
        (token >= self.token).then(|| {
            self.token = token;
            self.history.push(RegisterLine {
                token,
                value: self.value,
                write: None,
            });
            self.value
        })
    }

    pub(crate) fn write(&mut self, token: u64, proc: &str, read: u64) {
        if token >= self.token {
            (self.token, self.value) = (token, read + 1);
            let write = Some(Write {
                proc: proc.to_owned(),
                read,
            });
            self.history.push(RegisterLine {
                token,
                value: self.value,
                write,
            });
        }
    }
}
