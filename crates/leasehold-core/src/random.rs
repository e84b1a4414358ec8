//! Random numbers: for acquisition ids, which must differ, and for pauses.

use rand::{Rng, rand_core::UnwrapErr, rngs::SysRng};

/// Draws bytes from the operating system's generator.
///
/// A generator in this process would be copied by `fork(2)`: both processes would then draw the
/// same numbers, and an id that two acquisitions share lets both hold one lock. A draw costs a
/// system call of less than a microsecond.
///
/// # Panics
/// The operating system has no generator.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    UnwrapErr(SysRng).fill_bytes(&mut bytes);
    bytes
}
