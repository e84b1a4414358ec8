//! Who we are, for people.

use std::sync::Arc;

/// Returns the label of a client without one: host, process id and program, as in
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

/// What every kind of backend keeps of a label: Redis 32 printable characters, Postgres 63 bytes of
/// ASCII beside its own.
const KEPT: usize = 32;

/// The label as every kind of backend keeps it, so that one holder is called the same on all nodes
/// of a quorum. `None` if it is like that already.
pub(crate) fn common(label: &str) -> Option<Arc<str>> {
    let printable = |c: char| (' '..='~').contains(&c);
    if label.len() <= KEPT && label.chars().all(printable) {
        return None;
    }
    let kept: String = label
        .chars()
        .take(KEPT)
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
    fn what_every_backend_keeps_of_a_label_is_short_and_printable() {
        assert_eq!(common("web-3/4711/shopd"), None);
        assert_eq!(common("anna\u{f6}\n").as_deref(), Some("anna??"));
        let cut = common(&"ä".repeat(100)).unwrap();
        assert_eq!((&*cut, common(&cut)), ("?".repeat(KEPT).as_str(), None));
    }
}
