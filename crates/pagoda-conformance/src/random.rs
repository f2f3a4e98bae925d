//! Seeded inputs.

use half::{bf16, f16};
use pagoda_backend::{BatchMetadata, HostMatrix, InputToken, KvLayout, WeightFormat};

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Uniform in -1..1.
    pub(crate) fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Numbers that `round` leaves as they are.
    pub(crate) fn rounded(&mut self, len: usize, round: fn(f32) -> f32) -> Vec<f32> {
        (0..len).map(|_| round(self.number())).collect()
    }

    /// As [`Random::rounded`], heads of `head_dim` numbers of eight magnitudes: a cache in eight bits then has as many scales.
    pub(crate) fn heads(&mut self, len: usize, head_dim: usize, round: fn(f32) -> f32) -> Vec<f32> {
        let mut numbers = self.rounded(len, round);
        for head in numbers.chunks_mut(head_dim) {
            let magnitude = 2f32.powi(1 - self.below(8) as i32);
            head.iter_mut().for_each(|number| *number = round(*number * magnitude));
        }
        numbers
    }

    /// A matrix of random weights; scales and minima are ordinary, codes take every value. Dense weights are such that
    /// `round` leaves them as they are.
    pub(crate) fn matrix(
        &mut self,
        rows: usize,
        cols: usize,
        format: WeightFormat,
        round: fn(f32) -> f32,
    ) -> HostMatrix<'static> {
        let mut data = Vec::with_capacity(rows * format.row_bytes(cols));
        for _ in 0..rows * cols / format.block_len() {
            let value = round(bf16::from_f32(self.number()).to_f32());
            let scale = f16::from_f32(0.02 + 0.01 * value);
            match format {
                WeightFormat::F32 => data.extend(value.to_le_bytes()),
                WeightFormat::Bf16 => data.extend(bf16::from_f32(value).to_le_bytes()),
                WeightFormat::F16 => data.extend(f16::from_f32(value).to_le_bytes()),
                WeightFormat::Q8_0 | WeightFormat::Q4_0 => data.extend(scale.to_le_bytes()),
                WeightFormat::Q4_1 => {
                    data.extend(scale.to_le_bytes());
                    data.extend(f16::from_f32(self.number() * 0.1).to_le_bytes());
                }
            }
            let num_codes = match format {
                WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => 0,
                WeightFormat::Q8_0 => 32,
                WeightFormat::Q4_0 | WeightFormat::Q4_1 => 16,
            };
            data.extend((0..num_codes).map(|_| self.bits() as u8));
        }
        HostMatrix { rows, cols, format, data: data.into() }
    }

    /// Sequences over a shuffled block pool: `(context_len, query_len)` each. Block 0 stays free.
    pub(crate) fn batch(&mut self, layout: KvLayout, sequences: &[(usize, usize)]) -> BatchMetadata {
        let mut free: Vec<u32> = (1..layout.num_blocks as u32).collect();
        for index in (1..free.len()).rev() {
            free.swap(index, self.below(index + 1));
        }
        let tables: Vec<Vec<u32>> = sequences
            .iter()
            .map(|&(context_len, _)| {
                let num_blocks = context_len.div_ceil(layout.block_size);
                (0..num_blocks).map(|_| free.pop().expect("enough blocks")).collect()
            })
            .collect();
        batch_of(layout.block_size, sequences, &tables)
    }
}

/// The metadata of sequences with these block tables.
pub(crate) fn batch_of(
    block_size: usize,
    sequences: &[(usize, usize)],
    tables: &[Vec<u32>],
) -> BatchMetadata {
    let mut metadata =
        BatchMetadata { query_start_loc: vec![0], block_table_starts: vec![0], ..BatchMetadata::default() };
    for (&(context_len, query_len), table) in sequences.iter().zip(tables) {
        for position in context_len - query_len..context_len {
            let block = table[position / block_size] as usize;
            metadata.input_tokens.push(InputToken::Known(0));
            metadata.positions.push(position as u32);
            metadata.slot_mapping.push((block * block_size + position % block_size) as u32);
        }
        metadata.query_start_loc.push(metadata.input_tokens.len() as u32);
        metadata.context_lens.push(context_len as u32);
        metadata.block_tables.extend(table);
        metadata.block_table_starts.push(metadata.block_tables.len() as u32);
    }
    metadata
}
