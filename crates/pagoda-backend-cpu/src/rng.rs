//! The counter RNG of the draw: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//!
//! A word is a pure function of its key, so the noise of a token does not depend on which others are left, on the batch
//! or on the device. Philox is used rather than a 64-bit mix because it needs only 32-bit multiplies, which a GPU has.
//!
//! ```text
//! key     = [seed low, seed high]
//! counter = [token / 4, position, sample_index, 0x50414744]
//! noise of a token = word[token % 4]
//! ```

const MULTIPLIER_0: u32 = 0xD251_1F53;
const MULTIPLIER_1: u32 = 0xCD9E_8D57;
const WEYL_0: u32 = 0x9E37_79B9;
const WEYL_1: u32 = 0xBB67_AE85;
/// The fourth counter word: what the numbers are for ("PAGD"), so that another use of the seed draws other numbers.
const PURPOSE: u32 = 0x5041_4744;

/// Ten rounds of Philox4x32.
pub(crate) fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let product_0 = u64::from(MULTIPLIER_0) * u64::from(counter[0]);
        let product_1 = u64::from(MULTIPLIER_1) * u64::from(counter[2]);
        counter = [
            (product_1 >> 32) as u32 ^ counter[1] ^ key[0],
            product_1 as u32,
            (product_0 >> 32) as u32 ^ counter[3] ^ key[1],
            product_0 as u32,
        ];
        key = [key[0].wrapping_add(WEYL_0), key[1].wrapping_add(WEYL_1)];
    }
    counter
}

/// What the noise of a draw depends on besides the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DrawKey {
    /// Seed of the request.
    pub(crate) seed: u64,
    /// Which of the request's samples.
    pub(crate) sample_index: u32,
    /// Position that the chosen token will have.
    pub(crate) position: u32,
}

impl DrawKey {
    /// The random words of tokens `4 * group .. 4 * group + 4`.
    pub(crate) fn words(self, group: u32) -> [u32; 4] {
        philox4x32(
            [group, self.position, self.sample_index, PURPOSE],
            [self.seed as u32, (self.seed >> 32) as u32],
        )
    }
}

/// The noise of the largest word, rounded up: `-ln(-ln(1 - 2^-33))`.
pub(crate) const MAX_GUMBEL: f64 = 22.874;

/// Standard Gumbel noise of a random word: `-ln(-ln u)` with `u = (word + 0.5) / 2^32`, exact in f64.
pub(crate) fn gumbel_of_word(word: u32) -> f64 {
    let u = (f64::from(word) + 0.5) / 4_294_967_296.0;
    -(-u.ln()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn leading_ones_bound_the_noise() {
        for shift in 0..=32 {
            for word in
                [!(u32::MAX.checked_shr(shift).unwrap_or(0)), u32::MAX.checked_shl(shift).unwrap_or(0)]
            {
                let bound = f64::from(word.leading_ones() + 1) * std::f64::consts::LN_2;
                assert!(gumbel_of_word(word) <= bound, "{word:x}");
            }
        }
    }

    #[test]
    fn noise_is_finite_at_both_ends() {
        assert!(gumbel_of_word(0).is_finite() && gumbel_of_word(u32::MAX).is_finite());
        assert!(gumbel_of_word(u32::MAX) <= MAX_GUMBEL && gumbel_of_word(0) > -4.0);
    }
}
