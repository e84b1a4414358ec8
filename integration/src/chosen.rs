//! The backends that a run of a test suite is limited to.

use std::env;

/// The environment variable with the selected backends, separated by commas.
const ONLY: &str = "LEASEHOLD_BACKENDS";

/// Returns those of `all` that `LEASEHOLD_BACKENDS` names, or all if it is not set.
///
/// # Errors
/// The variable names a backend that is not among them.
pub fn backends<B>(all: &'static [B], name: fn(&B) -> &str) -> Result<Vec<&'static B>, String> {
    let Ok(only) = env::var(ONLY) else {
        return Ok(all.iter().collect());
    };
    let named = |wanted: &str| {
        let found = all.iter().find(|backend| name(backend) == wanted);
        found.ok_or_else(|| {
            let names: Vec<_> = all.iter().map(name).collect();
            let names = names.join(", ");
            format!("{ONLY} names `{wanted}`, which is not built here; there are {names}")
        })
    };
    only.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(named)
        .collect()
}
