//! [`AcquisitionId`]: the random id of one acquisition.

use std::{fmt, str::FromStr};

use rand::{Rng, rand_core::UnwrapErr, rngs::SysRng};

use crate::error::{Error, ErrorKind};

/// The id of one acquisition: 128 random bits. Each acquisition has a new one, so that the release
/// of an old grant can never free a newer grant.
///
/// It is written as 32 lowercase hexadecimal digits.
///
/// ```
/// use leasehold_core::AcquisitionId;
///
/// let id = AcquisitionId::random();
/// assert_eq!(id.to_string().parse::<AcquisitionId>()?, id);
/// assert_ne!(AcquisitionId::random(), id);
/// # Ok::<(), leasehold_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AcquisitionId(u128);

impl AcquisitionId {
    /// Draws an id from the operating system's random number generator. Forked processes draw
    /// different ids.
    #[must_use]
    pub fn random() -> Self {
        Self(u128::from_ne_bytes(random_bytes()))
    }

    /// Returns the id for the `count`th attempt of this acquisition to lock a node of a quorum
    /// again.
    ///
    /// A release that arrives late under an earlier id frees nothing that is held under a later
    /// one. The ids of one acquisition differ only in their last 16 bits.
    #[must_use]
    pub fn again(self, count: u16) -> Self {
        let last = (self.0 as u16).wrapping_add(count);
        Self(self.0 & !u128::from(u16::MAX) | u128::from(last))
    }

    /// Returns whether both ids belong to one acquisition; see [`again`](Self::again).
    #[must_use]
    pub fn is_same_acquisition(self, other: Self) -> bool {
        self.0 >> 16 == other.0 >> 16
    }

    /// Returns the 32 hexadecimal digits without an allocation.
    #[must_use]
    pub fn to_hex(self) -> [u8; 32] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = [0; 32];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.0.to_be_bytes()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        hex
    }

    /// Returns the bits as a number.
    #[must_use]
    pub fn as_u128(self) -> u128 {
        self.0
    }
}

impl From<u128> for AcquisitionId {
    fn from(bits: u128) -> Self {
        Self(bits)
    }
}

impl FromStr for AcquisitionId {
    type Err = Error;

    fn from_str(hex: &str) -> Result<Self, Error> {
        match u128::from_str_radix(hex, 16) {
            // `from_str_radix` accepts a sign.
            Ok(bits) if hex.len() == 32 && !hex.starts_with('+') => Ok(Self(bits)),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "`{}` is not an acquisition id; write 32 hexadecimal digits",
                    hex.escape_debug()
                ),
            )),
        }
    }
}

impl fmt::Display for AcquisitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for AcquisitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AcquisitionId({self})")
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_acquisition_belong_to_no_other() {
        let id = AcquisitionId::from(0x0007_ffff);
        let names = [id, id.again(1), id.again(2), id.again(u16::MAX)];
        assert_eq!(
            names.map(AcquisitionId::as_u128),
            [0x0007_ffff, 0x0007_0000, 0x0007_0001, 0x0007_fffe]
        );
        assert!(names.iter().all(|name| name.is_same_acquisition(id)));
        assert!(!id.is_same_acquisition(AcquisitionId::from(0x0008_ffff)));
    }

    #[test]
    fn hex_is_fixed_width_and_parses_back() {
        for bits in [0, 1, 0xab, u128::MAX, AcquisitionId::random().as_u128()] {
            let id = AcquisitionId::from(bits);
            assert_eq!(std::str::from_utf8(&id.to_hex()).unwrap(), id.to_string());
            assert_eq!(id.to_string().parse::<AcquisitionId>().unwrap(), id);
        }
        assert!("xyz".parse::<AcquisitionId>().is_err());
        assert!(format!("+{:031x}", 7).parse::<AcquisitionId>().is_err());
    }

    #[test]
    fn random_ids_differ() {
        assert_ne!(AcquisitionId::random(), AcquisitionId::random());
    }
}
