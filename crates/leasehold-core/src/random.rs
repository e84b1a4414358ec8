//! Random numbers, for acquisition ids and for the jitter of delays.

use rand::{Rng, rand_core::UnwrapErr, rngs::SysRng};

/// Returns random bytes from the operating system's generator.
///
/// A generator inside the process would be copied by `fork(2)`. Both processes would then draw the
/// same numbers, and two acquisitions with the same id could both hold one lock. Each call costs a
/// system call of less than a microsecond.
///
/// # Panics
/// Panics if the operating system has no generator.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    UnwrapErr(SysRng).fill_bytes(&mut bytes);
    bytes
}
