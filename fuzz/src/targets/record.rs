//! Records beside locks, as backends store them.

use std::time::{Duration, SystemTime};

use leasehold_core::{
    ErrorKind, FencingToken, LockKey, Record,
    backend::{RecordWrite, Request, support::StoredRecord},
};

pub(super) fn check(data: &[u8]) {
    let key = LockKey::new("item/42").unwrap();
    let stored = match StoredRecord::decode(&key, data) {
        Ok(stored) => {
            assert_eq!(
                stored.encode(),
                data,
                "another program's value is taken for ours"
            );
            Some(stored)
        }
        Err(error) => {
            let kinds = [ErrorKind::Conflict, ErrorKind::Unsupported];
            assert!(kinds.contains(&error.kind()), "{error:?}");
            let later = error.kind() == ErrorKind::Unsupported;
            assert!(
                !later || data.starts_with(b"leasehold-record"),
                "another program's value is taken for ours"
            );
            assert!(
                error.message().contains("`item/42`") && error.message().len() < 512,
                "{error}"
            );
            None
        }
    };

    // A write after this record, with a label and a value that the byte 0xff separates.
    let mut texts = data.splitn(2, |byte| *byte == 0xff);
    let label = String::from_utf8_lossy(texts.next().unwrap_or_default());
    let request = Request::new(key.clone()).with_label(&*label);
    let write = match texts.next() {
        Some(value) => RecordWrite::new(7, value).unwrap(),
        None => RecordWrite::clear(7),
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_764_381_600_123_456_789);
    let token = data.first().map(|token| FencingToken::new((*token).into()));
    let after = StoredRecord::after(stored.as_ref(), &request, token, &write, now);
    assert!(label.starts_with(&after.label) && after.label.len() <= Record::MAX_LABEL_LEN);
    assert!(after.supersedes(request.owner(), 7) && !after.supersedes(request.owner(), 8));
    assert!(
        stored.is_none_or(|stored| after.version > stored.version || stored.version == u64::MAX)
    );
    assert_eq!(StoredRecord::decode(&key, &after.encode()).unwrap(), after);
}
