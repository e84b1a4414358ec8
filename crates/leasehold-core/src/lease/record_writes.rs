//! [`RecordWrites`]: the numbering of the writes of one lease.

use crate::{backend::record::RecordWrite, error::Result};

/// The writes of one lease, which are made one at a time.
#[derive(Debug, Default)]
pub(crate) struct RecordWrites {
    /// The number of different writes so far.
    sequence: u64,
    /// The last write, if it is not known whether it took effect.
    unanswered: Option<RecordWrite>,
}

impl RecordWrites {
    /// Returns the write of `value`, or of a cleared record. A repetition of the unanswered write
    /// has the same sequence, so that it counts once.
    pub(super) fn next(&mut self, value: Option<&[u8]>) -> Result<RecordWrite> {
        if let Some(unanswered) = &self.unanswered
            && unanswered.value() == value
        {
            return Ok(unanswered.clone());
        }
        let sequence = self.sequence + 1;
        let write = match value {
            Some(value) => RecordWrite::new(sequence, value)?,
            None => RecordWrite::clear(sequence),
        };
        self.sequence = sequence;
        // Kept until the answer comes, because the backend may panic before.
        self.unanswered = Some(write.clone());
        Ok(write)
    }

    /// Records that it is known whether the last write took effect.
    pub(super) fn answered(&mut self) {
        self.unanswered = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_repeated_unanswered_write_keeps_its_sequence() {
        let mut writes = RecordWrites::default();
        let mut next = |value, answered| {
            let write = writes.next(value).unwrap();
            if answered {
                writes.answered();
            }
            write.sequence()
        };
        let (a, b) = (Some(b"a".as_slice()), Some(b"b".as_slice()));
        assert_eq!(next(a, false), 1);
        assert_eq!(next(a, true), 1);
        assert_eq!(next(a, false), 2);
        assert_eq!(next(b, false), 3, "another value is another write");
        assert_eq!(next(a, false), 4, "the write of `a` before may be late");
        assert_eq!(next(None, false), 5);
        assert_eq!(next(None, true), 5);
        assert_eq!(next(Some(&[]), true), 6, "empty is not cleared");
    }

    #[test]
    fn an_oversized_value_uses_up_no_sequence() {
        let mut writes = RecordWrites::default();
        assert!(writes.next(Some(&[0; crate::Record::MAX_LEN + 1])).is_err());
        assert_eq!(writes.next(None).unwrap().sequence(), 1);
    }
}
