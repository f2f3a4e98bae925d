//! Tensors that are drawn instead of read: the numbers of each are a function of its seed and of their place alone, so that
//! threads may draw any part.

use half::{bf16, f16};
use pagoda_backend::WeightFormat;
use rayon::prelude::*;

/// Numbers that a thread draws at a time.
const CHUNK_LEN: usize = 1 << 16;

/// How a tensor's numbers are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Drawn {
    key: u64,
    role: Role,
}

/// What a tensor is for, which says how large its numbers are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    /// Around 0.
    Matrix {
        /// Standard deviation.
        deviation: f32,
    },
    /// Around 1.
    Norm,
    /// Around 0.
    Bias,
}

impl Drawn {
    /// The `index`-th tensor of a seed.
    pub(crate) fn new(seed: u64, index: u64, role: Role) -> Self {
        Drawn { key: mix(mix(seed) ^ index), role }
    }

    /// The first `len` numbers as they would be stored. The format is `f32`, `bf16` or `f16`.
    pub(crate) fn bytes(&self, len: usize, format: WeightFormat) -> Vec<u8> {
        let mut bytes = vec![0; format.row_bytes(len)];
        let chunk_bytes = format.row_bytes(CHUNK_LEN);
        bytes.par_chunks_mut(chunk_bytes).enumerate().for_each(|(chunk, bytes)| {
            let first = chunk * CHUNK_LEN;
            match format {
                WeightFormat::F32 => self.fill(first, bytes, f32::to_le_bytes),
                WeightFormat::Bf16 => self.fill(first, bytes, |value| bf16::from_f32(value).to_le_bytes()),
                WeightFormat::F16 => self.fill(first, bytes, |value| f16::from_f32(value).to_le_bytes()),
                _ => unreachable!("configurations name no {format}"),
            }
        });
        bytes
    }

    /// The first `len` numbers.
    #[cfg(test)]
    pub(crate) fn values(&self, len: usize) -> Vec<f32> {
        let bytes = self.bytes(len, WeightFormat::F32);
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    /// Four numbers for every 64 bits: 16 bits are as fine as bf16 and f16 can tell apart.
    fn fill<const N: usize>(&self, first: usize, bytes: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
        let (offset, deviation) = match self.role {
            Role::Matrix { deviation } => (0.0, deviation),
            Role::Norm => (1.0, 0.1),
            Role::Bias => (0.0, 0.3),
        };
        // Uniform numbers between -w and w have variance w^2 / 3.
        let scale = deviation * 3f32.sqrt() / 32_768.0;
        for (four, out) in bytes.chunks_mut(4 * N).enumerate() {
            let bits = mix(self.key ^ (first / 4 + four) as u64);
            for (place, out) in out.chunks_exact_mut(N).enumerate() {
                let uniform = (bits >> (16 * place)) as u16;
                out.copy_from_slice(&encode(offset + scale * (f32::from(uniform) - 32_767.5)));
            }
        }
    }
}

/// The output function of SplitMix64 over a Weyl sequence.
fn mix(place: u64) -> u64 {
    let mut z = place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 3 * CHUNK_LEN + 6;

    #[test]
    fn numbers_have_the_deviation_asked_for_and_depend_on_seed_and_tensor() {
        let draw = |seed, index| Drawn::new(seed, index, Role::Matrix { deviation: 0.02 }).values(LEN);
        let values = draw(1, 0);
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / LEN as f64;
        let variance = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / LEN as f64;
        assert!(mean.abs() < 2e-4 && (variance.sqrt() / 0.02 - 1.0).abs() < 0.01, "{mean} {variance}");
        assert_eq!(values, draw(1, 0));
        let num_equal = |other: &[f32]| values.iter().zip(other).filter(|(a, b)| a == b).count();
        assert!(num_equal(&draw(2, 0)) < LEN / 1000 && num_equal(&draw(1, 1)) < LEN / 1000);
        // Chunks do not repeat each other.
        assert!(num_equal(&values[CHUNK_LEN..]) < LEN / 1000);
    }

    #[test]
    fn formats_hold_the_same_numbers_rounded() {
        let drawn = Drawn::new(7, 3, Role::Norm);
        let stored = drawn.bytes(LEN, WeightFormat::Bf16);
        assert_eq!(stored.len(), 2 * LEN);
        let stored = stored.as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes));
        assert!(stored.eq(drawn.values(LEN).into_iter().map(bf16::from_f32)));
    }
}
