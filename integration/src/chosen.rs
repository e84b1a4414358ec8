//! The choices of the environment for a run: its backends, its seed, and the duration of chaos.

use std::{env, time::Duration};

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

/// Returns `LEASEHOLD_SEED`, or a random seed if it is not set, and prints it.
///
/// # Panics
/// The variable is not a number.
#[must_use]
pub fn seed() -> u64 {
    let seed = env::var("LEASEHOLD_SEED").map_or_else(
        |_| rand::random(),
        |seed| seed.parse().expect("LEASEHOLD_SEED must be a number"),
    );
    println!("LEASEHOLD_SEED={seed}");
    seed
}

/// Returns the duration of chaos: `LEASEHOLD_CHAOS_SECONDS`, or 10 s if it is not set.
///
/// # Panics
/// The variable is not a number of seconds.
#[must_use]
pub fn chaos_duration() -> Duration {
    let seconds = env::var("LEASEHOLD_CHAOS_SECONDS").map_or(10, |seconds| {
        seconds
            .parse()
            .expect("LEASEHOLD_CHAOS_SECONDS must be a number of seconds")
    });
    Duration::from_secs(seconds)
}
