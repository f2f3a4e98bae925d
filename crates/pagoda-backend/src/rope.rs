//! Rotary position embeddings (RoFormer, arXiv 2104.09864) as a table: a pure function of the position.

/// `cos` and `sin` of every position, computed on the host in f64 and rounded once.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Rotated channels of a head; the rest pass through. Channel `i` pairs with `i + rotary_dim / 2`.
    pub rotary_dim: usize,
    /// `[num_positions, rotary_dim / 2]`
    pub cos: Vec<f32>,
    /// `[num_positions, rotary_dim / 2]`
    pub sin: Vec<f32>,
}

impl RopeTable {
    /// The table for the given inverse frequencies (`[rotary_dim / 2]`) and a factor on both (YaRN's attention scale; 1 else).
    pub fn new(inverse_frequencies: &[f64], num_positions: usize, scale: f64) -> Self {
        let half = inverse_frequencies.len();
        let mut cos = Vec::with_capacity(num_positions * half);
        let mut sin = Vec::with_capacity(num_positions * half);
        for position in 0..num_positions {
            for frequency in inverse_frequencies {
                let angle = position as f64 * frequency;
                cos.push((angle.cos() * scale) as f32);
                sin.push((angle.sin() * scale) as f32);
            }
        }
        RopeTable { rotary_dim: 2 * half, cos, sin }
    }

    /// Positions in the table.
    pub fn num_positions(&self) -> usize {
        self.cos.len() / (self.rotary_dim / 2)
    }
}
