//! [`CpuWeight`]: a weight matrix as panels of 16 rows, interleaved so that SIMD lanes run over outputs.
//!
//! Every number keeps its format; nothing is widened in memory. A stacked part begins a new panel, so panels of different
//! formats may follow each other in one matrix; the last panel of a part is padded with zero rows.
//!
//! ```text
//! f32         for each column:    16 f32, one per row
//! bf16, f16   for each column:    16 numbers, one per row
//! Q8_0        for each 32 columns: 16 f16 scales d | for each column: 16 codes
//! Q4_0, Q4_1  for each 32 columns: 16 f16 d (| 16 f16 m) | for each 2 columns: 16 bytes, low nibble the even column
//! ```

use half::{bf16, f16};
use pagoda_backend::{BackendError, HostMatrix, WeightFormat};

use crate::memory::Buffer;
use crate::simd::LANES;

/// Columns of a block of a quantised format.
pub(crate) const BLOCK: usize = 32;

/// Sixteen rows of one format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    pub(crate) format: WeightFormat,
    /// Where its bytes begin.
    pub(crate) offset: usize,
    /// The output of its first row.
    pub(crate) first_row: usize,
    /// Rows that are not padding.
    pub(crate) num_rows: usize,
}

/// A packed weight matrix.
pub struct CpuWeight {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) panels: Vec<Panel>,
    pub(crate) data: Buffer<u8>,
}

impl CpuWeight {
    /// Packs matrices with equal `cols`, stacked along the rows.
    pub(crate) fn pack(parts: &[HostMatrix<'_>]) -> Result<Self, BackendError> {
        let cols = parts.first().map_or(0, |part| part.cols);
        assert!(parts.iter().all(|part| part.cols == cols), "stacked parts need equal columns");
        let mut panels = Vec::new();
        let (mut rows, mut len_bytes) = (0, 0);
        for part in parts {
            for first in (0..part.rows).step_by(LANES) {
                let num_rows = LANES.min(part.rows - first);
                panels.push(Panel {
                    format: part.format,
                    offset: len_bytes,
                    first_row: rows + first,
                    num_rows,
                });
                len_bytes += LANES * part.format.row_bytes(cols);
            }
            rows += part.rows;
        }
        let mut data = Buffer::zeroed(len_bytes, "a packed weight")?;
        let mut remaining = panels.iter();
        for part in parts {
            let num_panels = part.rows.div_ceil(LANES);
            for (index, panel) in remaining.by_ref().take(num_panels).enumerate() {
                let bytes = &mut data[panel.offset..][..LANES * part.format.row_bytes(cols)];
                for lane in 0..panel.num_rows {
                    pack_row(part.format, part.row(index * LANES + lane), lane, bytes);
                }
            }
        }
        Ok(CpuWeight { rows, cols, panels, data })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether every panel holds integer codes.
    pub(crate) fn is_quantized(&self) -> bool {
        self.panels.iter().all(|panel| panel.format.block_len() == BLOCK)
    }

    /// Writes one row as f32, the same numbers that the products use.
    pub(crate) fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let panel = self.panels[self.panels.partition_point(|panel| panel.first_row <= row) - 1];
        let lane = row - panel.first_row;
        assert!(lane < panel.num_rows, "row {row} of a weight with {} rows", self.rows);
        let bytes = &self.data[panel.offset..][..LANES * panel.format.row_bytes(self.cols)];
        match panel.format {
            WeightFormat::F32 => {
                for (value, numbers) in out.iter_mut().zip(bytes.chunks_exact(4 * LANES)) {
                    *value = f32::from_le_bytes([
                        numbers[4 * lane],
                        numbers[4 * lane + 1],
                        numbers[4 * lane + 2],
                        numbers[4 * lane + 3],
                    ]);
                }
            }
            WeightFormat::Bf16 => {
                for (value, numbers) in out.iter_mut().zip(bytes.chunks_exact(2 * LANES)) {
                    *value = bf16::from_bits(half_bits(numbers, lane)).to_f32();
                }
            }
            WeightFormat::F16 => {
                for (value, numbers) in out.iter_mut().zip(bytes.chunks_exact(2 * LANES)) {
                    *value = f16::from_bits(half_bits(numbers, lane)).to_f32();
                }
            }
            WeightFormat::Q8_0 | WeightFormat::Q4_0 | WeightFormat::Q4_1 => {
                let block_bytes = LANES * panel.format.block_bytes();
                for (values, block) in out.chunks_exact_mut(BLOCK).zip(bytes.chunks_exact(block_bytes)) {
                    unpack_block(panel.format, block, lane, values);
                }
            }
        }
    }
}

/// Writes one checkpoint row into its lane of a panel.
fn pack_row(format: WeightFormat, row: &[u8], lane: usize, panel: &mut [u8]) {
    let block_bytes = format.block_bytes();
    for (block, packed) in row.chunks_exact(block_bytes).zip(panel.chunks_exact_mut(LANES * block_bytes)) {
        match format {
            WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => {
                packed[lane * block_bytes..][..block_bytes].copy_from_slice(block);
            }
            WeightFormat::Q8_0 => {
                packed[2 * lane..][..2].copy_from_slice(&block[..2]);
                for (column, &code) in block[2..].iter().enumerate() {
                    packed[2 * LANES + column * LANES + lane] = code;
                }
            }
            WeightFormat::Q4_0 => {
                packed[2 * lane..][..2].copy_from_slice(&block[..2]);
                pack_nibbles(&block[2..], lane, &mut packed[2 * LANES..]);
            }
            WeightFormat::Q4_1 => {
                packed[2 * lane..][..2].copy_from_slice(&block[..2]);
                packed[2 * LANES + 2 * lane..][..2].copy_from_slice(&block[2..4]);
                pack_nibbles(&block[4..], lane, &mut packed[4 * LANES..]);
            }
        }
    }
}

/// From "low nibbles are columns 0..16, high 16..32" to pairs of neighbouring columns, so that codes come in index order.
fn pack_nibbles(codes: &[u8], lane: usize, packed: &mut [u8]) {
    let code = |column: usize| if column < 16 { codes[column] & 15 } else { codes[column - 16] >> 4 };
    for pair in 0..BLOCK / 2 {
        packed[pair * LANES + lane] = code(2 * pair) | code(2 * pair + 1) << 4;
    }
}

fn half_bits(numbers: &[u8], lane: usize) -> u16 {
    u16::from_le_bytes([numbers[2 * lane], numbers[2 * lane + 1]])
}

/// One lane of a packed block: `d * q + m` in f32, as the kernels do it (`d * q` is exact, so fused or not is one).
fn unpack_block(format: WeightFormat, block: &[u8], lane: usize, values: &mut [f32]) {
    let scale = f16::from_bits(half_bits(block, lane)).to_f32();
    let nibble = |codes: &[u8], column: usize| codes[column / 2 * LANES + lane] >> (column % 2 * 4) & 15;
    for (column, value) in values.iter_mut().enumerate() {
        *value = match format {
            WeightFormat::Q8_0 => f32::from(block[2 * LANES + column * LANES + lane] as i8) * scale,
            WeightFormat::Q4_0 => f32::from(nibble(&block[2 * LANES..], column)) * scale + -8.0 * scale,
            _ => {
                let minimum = f16::from_bits(half_bits(&block[2 * LANES..], lane)).to_f32();
                f32::from(nibble(&block[4 * LANES..], column)) * scale + minimum
            }
        };
    }
}
