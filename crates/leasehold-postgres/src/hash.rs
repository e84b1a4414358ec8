//! `hashtextextended` of PostgreSQL 11 and later on little-endian machines: the 64-bit form of Bob
//! Jenkins' *lookup3* (2006). Connecting compares the result with the server's.

const GOLDEN: u32 = 0x9e37_79b9_u32.wrapping_add(3_923_095);

/// Returns `hashtextextended(text, seed)`.
pub(crate) fn hash_text_extended(text: &[u8], seed: u64) -> i64 {
    let start = GOLDEN.wrapping_add(text.len() as u32);
    let mut state = [start; 3];
    if seed != 0 {
        state[0] = state[0].wrapping_add((seed >> 32) as u32);
        state[1] = state[1].wrapping_add(seed as u32);
        mix(&mut state);
    }
    let mut blocks = text.chunks_exact(12);
    for block in &mut blocks {
        for (word, bytes) in state.iter_mut().zip(block.chunks_exact(4)) {
            *word = word.wrapping_add(little_endian(bytes));
        }
        mix(&mut state);
    }
    // The lowest byte of the third word is reserved for the length.
    let rest = blocks.remainder();
    let (first, second) = rest.split_at(rest.len().min(4));
    let (second, third) = second.split_at(second.len().min(4));
    state[0] = state[0].wrapping_add(little_endian(first));
    state[1] = state[1].wrapping_add(little_endian(second));
    state[2] = state[2].wrapping_add(little_endian(third) << 8);
    finish(&mut state);
    (u64::from(state[1]) << 32 | u64::from(state[2])).cast_signed()
}

/// Returns the number in up to four bytes.
fn little_endian(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn mix([a, b, c]: &mut [u32; 3]) {
    for (x, y, z, by) in [
        (0, 2, 1, 4),
        (1, 0, 2, 6),
        (2, 1, 0, 8),
        (0, 2, 1, 16),
        (1, 0, 2, 19),
        (2, 1, 0, 4),
    ] {
        let mut words = [*a, *b, *c];
        words[x] = words[x].wrapping_sub(words[y]) ^ words[y].rotate_left(by);
        words[y] = words[y].wrapping_add(words[z]);
        [*a, *b, *c] = words;
    }
}

fn finish(words: &mut [u32; 3]) {
    for (x, y, by) in [
        (2, 1, 14),
        (0, 2, 11),
        (1, 0, 25),
        (2, 1, 16),
        (0, 2, 4),
        (1, 0, 14),
        (2, 1, 24),
    ] {
        words[x] = (words[x] ^ words[y]).wrapping_sub(words[y].rotate_left(by));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results of `SELECT hashtextextended(text, seed)` on PostgreSQL 15. They must never
    /// change, because running programs compute the same keys.
    #[test]
    fn hash_equals_that_of_the_server() {
        for (text, seed, hash) in [
            ("item/42", 0, -8_097_702_976_211_214_439),
            ("", 0, -6_939_563_903_564_495_251),
            ("a", 1, 3_325_245_193_489_759_299),
            ("🔒 the quick brown fox jumps", 7, 4_289_352_829_431_138_670),
            ("abcdefghijkl", 0, -7_556_637_188_122_330_412),
        ] {
            assert_eq!(
                hash_text_extended(text.as_bytes(), seed),
                hash,
                "{text:?}, {seed}"
            );
        }
    }
}
