//! Random numbers for delays.

use std::cell::Cell;

use crate::backend::acquisition_id::random_bytes;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes the delays of quorums on this thread a function of `seed`. For simulations.
#[doc(hidden)]
pub fn seed_pauses(seed: u64) {
    SEED.set(Some(seed));
}

pub(super) fn draw() -> u32 {
    let Some(seed) = SEED.get() else {
        return u32::from_ne_bytes(random_bytes());
    };
    // SplitMix64; the quality of the numbers does not matter.
    let next = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    SEED.set(Some(next));
    let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 32) as u32
}
