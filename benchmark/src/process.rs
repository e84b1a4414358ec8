//! Resource use of this process, and a clock shared by all processes.

use std::{fs, time::Duration};

use leasehold_core::{Clock, SystemClock};
use leasehold_integration::{HarnessError, Result};
use rustix::{
    process::{Resource, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};

/// Returns nanoseconds of a clock that all processes of this host share.
pub(super) fn now() -> u64 {
    SystemClock.now().as_nanos()
}

/// Returns the processor time used by this process.
pub(super) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Returns the resident memory of this process in bytes.
pub(super) fn resident() -> Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")
        .map_err(|error| HarnessError::caused_by("cannot read /proc/self/statm", error))?;
    let pages: Option<u64> = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    let pages = pages.ok_or_else(|| HarnessError::new("/proc/self/statm has an unknown format"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// Raises the limit of open files of this process and its children as far as permitted. Returns the
/// limit.
pub(super) fn raise_open_files() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If this fails, opening files fails later with an error.
    setrlimit(Resource::Nofile, limit).ok();
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
