//! Properties of the parsers, for any input. The package `leasehold-fuzz` searches for an input
//! that breaks one.

use std::path::{Component, Path};

use leasehold_core::{LockKey, backend::Request};

use super::{
    admin, keys,
    last_grant::{self, LastGrant},
    permit,
};

/// Checks the contents of files beside a lock file, and their names.
pub fn beside(data: &[u8]) {
    match LastGrant::parse(data) {
        Some(last) => {
            let written = last.to_string();
            let (first, _) = written.split_once('\n').expect("two lines");
            assert!(
                data == first.as_bytes() || data.starts_with(format!("{first}\n").as_bytes()),
                "another program's file is taken for ours: {last:?}"
            );
            assert_eq!(LastGrant::parse(written.as_bytes()), Some(last));
        }
        None => {
            // A file that is neither ours nor torn is never written.
            let torn = last_grant::is_torn(data, last_grant::HEAD, last_grant::MAX_LEN);
            let ours = data.starts_with(last_grant::HEAD.as_bytes())
                || last_grant::HEAD.as_bytes().starts_with(data)
                || data.iter().all(|byte| *byte == 0);
            assert!(!torn || ours, "another program's file would be overwritten");
        }
    }
    // No more of the file is read.
    let data = &data[..data.len().min(64)];
    match permit::parse_number(data) {
        Ok(Some(number)) => {
            let written = format!("leasehold1 permits {number}\n");
            assert_eq!(
                data,
                written.as_bytes(),
                "another program's file is taken for ours"
            );
        }
        Ok(None) => assert!(data.len() < 64),
        Err(error) => assert!(error.to_string().contains("another program"), "{error}"),
    }
    let text = String::from_utf8_lossy(data);
    let request = Request::new(LockKey::new("k").expect("a valid name")).with_label(&*text);
    let last = LastGrant::of(
        &request,
        u64::from(data.first().copied().unwrap_or_default()),
    );
    assert_eq!(LastGrant::parse(last.to_string().as_bytes()), Some(last));

    let names = data.splitn(2, |byte| *byte == 0xff).map(LockKey::new);
    let names: Vec<LockKey> = names.filter_map(Result::ok).collect();
    let paths: Vec<_> = names
        .iter()
        .map(|name| keys::path_of(Path::new("/d"), name, ".lock"))
        .collect();
    for path in &paths {
        let below = path.strip_prefix("/d").expect("it is in the directory");
        let plain = |part| matches!(part, Component::Normal(name) if name.len() < 255);
        assert!(below.components().all(plain), "{path:?}");
    }
    if let ([one, other], [first, second]) = (&names[..], &paths[..]) {
        assert_eq!(one == other, first == second, "{first:?}");
    }
}

/// Checks the tables of the kernel.
pub fn proc_locks(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for line in text.lines() {
        if let Some(lock) = admin::parse(line) {
            assert!(
                line.contains("FLOCK") && line.contains(&lock.inode.to_string()),
                "{line}"
            );
            assert!(!lock.blocked || line.contains("->"), "{line}");
        }
    }
    if let Some((major, minor)) = admin::device_in(&text, "36") {
        assert!(
            text.contains(&format!("{major}:")) && text.contains(&minor.to_string()),
            "{text}"
        );
    }
}
