//! The backends selected for a run.

use std::env;

use crate::backend::{ALL, Backend};

/// The environment variable with the selected backends, separated by commas.
const ONLY: &str = "LEASEHOLD_BACKENDS";

pub(crate) fn backends() -> Result<Vec<&'static Backend>, String> {
    let Ok(only) = env::var(ONLY) else {
        return Ok(ALL.iter().collect());
    };
    only.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(named)
        .collect()
}

fn named(name: &str) -> Result<&'static Backend, String> {
    let names = || {
        ALL.iter()
            .map(|backend| backend.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let found = ALL.iter().find(|backend| backend.name == name);
    found.ok_or_else(|| {
        format!(
            "{ONLY} names `{name}`, which is not built here; there are {}",
            names()
        )
    })
}
