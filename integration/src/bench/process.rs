//! What this process uses, and what time it is for all processes.

use std::{fs, time::Duration};

use leasehold_core::{Clock, SystemClock};
use rustix::{
    process::{Resource, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};

use crate::{HarnessError, Result};

/// Nanoseconds of a clock that all processes of this host share.
pub(super) fn now() -> u64 {
    SystemClock.now().as_nanos()
}

/// The processor time that this process has used.
pub(super) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// The memory that this process occupies, in bytes.
pub(super) fn resident() -> Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")
        .map_err(|error| HarnessError::caused_by("cannot read /proc/self/statm", error))?;
    let pages: Option<u64> = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    let pages = pages.ok_or_else(|| HarnessError::new("/proc/self/statm has another format"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// Lets this process, and those that it starts, open as many files as it may. How many that is.
pub(super) fn raise_open_files() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it may not, opening fails later and says so.
    setrlimit(Resource::Nofile, limit).ok();
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
