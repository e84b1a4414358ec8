//! Who we are, for people.

use std::sync::Arc;

/// Host, process id and program: `web-3/4711/shopd`.
pub(crate) fn default_label() -> Arc<str> {
    let program = std::env::args_os()
        .next()
        .and_then(|path| Some(std::path::Path::new(&path).file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| String::from("?"));
    Arc::from(format!("{}/{}/{program}", host(), std::process::id()))
}

#[cfg(unix)]
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn host() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| String::from("?"))
}
