//! The URLs that the facade parses itself, and its errors about all URLs.

use leasehold::{connect_lazily, file_options};

/// The password in every input that has an authority with a user.
const SECRET: &str = "Zq7xWv9Kt3Bm";

pub(super) fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if text.contains(SECRET) {
        return;
    }
    let url = text.replace('\u{1}', SECRET);
    match file_options(&url) {
        Ok(Some((dir, _))) => {
            assert!(
                url.get(..5)
                    .is_some_and(|it| it.eq_ignore_ascii_case("file:")),
                "{url:?}"
            );
            let dir = dir.to_str().unwrap_or_else(|| panic!("{url:?}"));
            assert!(
                dir.starts_with('/') && !dir.contains('\0'),
                "{url:?}: {dir}"
            );
            // What follows the scheme is the directory, unless there is none.
            assert!(url.contains(dir) || !url.contains(":/"), "{url:?}: {dir}");
            // It would be created.
            return;
        }
        Ok(None) => {}
        Err(error) => {
            let shown = error.to_string();
            assert!(
                shown.len() < 2048 && !shown.contains(char::is_control),
                "{url:?}: {shown}"
            );
            // It names the directory, which is no secret.
            return;
        }
    }
    if let Err(error) = connect_lazily(&url) {
        let shown = error.to_string();
        assert!(
            shown.len() < 4096 && !shown.contains(char::is_control),
            "{url:?}: {shown}"
        );
        // Only a user or an option can be followed by a secret. A scheme is none.
        let (scheme, authority) = url.split_once("://").unwrap_or_default();
        let secret = authority
            .split_once(SECRET)
            .is_some_and(|(_, after)| after.contains('@'));
        if secret && !scheme.contains(SECRET) {
            assert!(!shown.contains(SECRET), "{url:?}: {shown}");
        }
    }
}
