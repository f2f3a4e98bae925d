//! The rotation frequencies of a model. RoPE is a pure function of the position (else KV blocks could not be shared), so
//! variants whose frequencies depend on the sequence's length are refused when the configuration is read.

use std::f64::consts::TAU;

/// How positions become angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Rotated channels of a head.
    pub rotary_dim: usize,
    /// What stretches the context.
    pub scaling: RopeScaling,
}

/// How a longer context is mapped onto the trained one.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all (Su et al., arXiv 2104.09864).
    Default,
    /// All frequencies are divided by `factor` (position interpolation, arXiv 2306.15595).
    Linear {
        /// Divides every frequency.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths are divided by `factor`, short ones stay, those between are blended.
    Llama3 {
        /// Divides the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` stay.
        high_freq_factor: f64,
        /// The context length before the stretch.
        original_max_position_embeddings: f64,
    },
    /// Each frequency has its own divisor, `[rotary_dim / 2]` (GGUF's `rope_freqs.weight`).
    Divisors(Vec<f32>),
}

impl RopeConfig {
    /// `[rotary_dim / 2]` angles per position, in radians.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let frequency = |i: usize| self.theta.powf(-2.0 * i as f64 / self.rotary_dim as f64);
        let plain = (0..self.rotary_dim / 2).map(frequency);
        match &self.scaling {
            RopeScaling::Default => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
            RopeScaling::Llama3 { .. } => plain.map(|f| self.scaling.llama3(f)).collect(),
            RopeScaling::Divisors(divisors) => plain.zip(divisors).map(|(f, d)| f / f64::from(*d)).collect(),
        }
    }
}

impl RopeScaling {
    fn llama3(&self, frequency: f64) -> f64 {
        let RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } = self
        else {
            return frequency;
        };
        // Full turns within the original context: many turns are position detail, less than one is long range.
        let num_turns = original_max_position_embeddings * frequency / TAU;
        let kept = ((num_turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
        kept * frequency + (1.0 - kept) * frequency / factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta: 500_000.0, rotary_dim: 128, scaling }
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = config(RopeScaling::Default).inverse_frequencies();
        let linear = config(RopeScaling::Linear { factor: 4.0 }).inverse_frequencies();
        assert_eq!(plain[0], 1.0);
        assert!(plain.iter().zip(&linear).all(|(p, l)| p / 4.0 == *l));
    }

    #[test]
    fn llama3_keeps_short_waves_divides_long_ones_and_blends_between() {
        let plain = config(RopeScaling::Default).inverse_frequencies();
        let scaled = config(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        })
        .inverse_frequencies();
        // Channel 28 turns 4.18 times in 8192 positions and stays; 29 turns 3.41 times and is blended:
        // (3.41 - 1) / 3 = 0.8035 kept; 36 turns 0.81 times and is divided.
        assert_eq!(scaled[28], plain[28]);
        assert!(
            (scaled[29] / plain[29] - (0.8035 + 0.1965 / 8.0)).abs() < 1e-3,
            "{}",
            scaled[29] / plain[29]
        );
        assert_eq!(scaled[36], plain[36] / 8.0);
    }

    #[test]
    fn divisors_from_a_file_apply_one_by_one() {
        let divisors: Vec<f32> = (0..64).map(|i| 1.0 + i as f32).collect();
        let plain = config(RopeScaling::Default).inverse_frequencies();
        let scaled = config(RopeScaling::Divisors(divisors)).inverse_frequencies();
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 64.0);
    }
}
