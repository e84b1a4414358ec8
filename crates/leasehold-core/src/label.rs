//! Labels: how a client is named to people.

use std::sync::Arc;

/// Returns the label of a client that sets none: host, process id and program, as in
/// `web-3/4711/shopd`.
///
/// ```
/// assert!(leasehold_core::default_label().contains(&std::process::id().to_string()));
/// ```
#[must_use]
pub fn default_label() -> Arc<str> {
    let program = std::env::args_os()
        .next()
        .and_then(|path| {
            Some(
                std::path::Path::new(&path)
                    .file_name()?
                    .to_string_lossy()
                    .into_owned(),
            )
        })
        .unwrap_or_else(|| String::from("?"));
    Arc::from(format!("{}/{}/{program}", host(), std::process::id()))
}

/// The number of characters of a label that every backend stores. Redis stores 32 printable ASCII
/// characters. PostgreSQL stores 63 bytes, which include a prefix.
const MAX_LABEL: usize = 32;

/// Returns the label in the form that every backend can store, so that a holder has the same label
/// on all nodes of a quorum. Returns `None` if the label has this form already.
pub(crate) fn truncate_label(label: &str) -> Option<Arc<str>> {
    let printable = |c: char| (' '..='~').contains(&c);
    if label.len() <= MAX_LABEL && label.chars().all(printable) {
        return None;
    }
    let kept: String = label
        .chars()
        .take(MAX_LABEL)
        .map(|c| if printable(c) { c } else { '?' })
        .collect();
    Some(kept.into())
}

#[cfg(unix)]
fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(not(unix))]
fn host() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| String::from("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_label_is_short_and_printable() {
        assert_eq!(truncate_label("web-3/4711/shopd"), None);
        assert_eq!(truncate_label("anna\u{f6}\n").as_deref(), Some("anna??"));
        let cut = truncate_label(&"ä".repeat(100)).unwrap();
        assert_eq!(
            (&*cut, truncate_label(&cut)),
            ("?".repeat(MAX_LABEL).as_str(), None)
        );
    }
}
