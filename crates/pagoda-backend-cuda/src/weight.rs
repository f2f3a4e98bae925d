//! Packed weight matrices: dense ones as the backend's element type, block formats with codes and scales apart.
//!
//! A matrix is laid out piece by piece, straight into the memory that the device copies from, while the piece before is on its
//! way; large pieces by several threads.

use std::thread;

use half::{bf16, f16};
use pagoda_backend::{BackendError, HostMatrix, WeightFormat};

use crate::device::{Device, Memory};
use crate::element::Element;
use crate::params::WeightView;

/// Pieces from here on are worth the start of threads.
const THREADED_BYTES: usize = 1 << 20;
/// More do not lay out faster than the bus carries away.
const MAX_THREADS: usize = 8;

/// A packed `[rows, cols]` matrix on the device.
pub struct CudaWeight<M> {
    codes: M,
    /// One byte where the format has none.
    scales: M,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    format: u32,
}

/// What of a stored block goes into a packed array.
#[derive(Clone, Copy)]
enum Section {
    /// Every weight, as the element type.
    Dense(Element),
    /// What is behind the scales.
    Codes,
    /// Block formats begin with their scales.
    Scales,
}

impl<M: Memory> CudaWeight<M> {
    /// Stacks `parts` along the rows. Parts of different formats become dense.
    pub(crate) fn pack<D: Device<Memory = M>>(
        device: &mut D,
        element: Element,
        parts: &[HostMatrix<'_>],
    ) -> Result<Self, BackendError> {
        let first = parts.first().expect("a weight has a part");
        let (rows, cols) = (parts.iter().map(|part| part.rows).sum(), first.cols);
        let is_uniform = parts.iter().all(|part| part.format == first.format);
        let format = if is_uniform { format_code(first.format) } else { 0 };
        if cols % 8 != 0 {
            return Err(BackendError::Unsupported(format!(
                "a weight of {cols} columns: not a multiple of 8"
            )));
        }
        assert!(parts.iter().all(|part| part.cols == cols), "stacked weights have one width");
        let (codes, scales) = if format == 0 {
            (upload(device, parts, Section::Dense(element))?, device.alloc(1, 0, "a weight")?)
        } else {
            (upload(device, parts, Section::Codes)?, upload(device, parts, Section::Scales)?)
        };
        Ok(CudaWeight { codes, scales, rows, cols, format })
    }

    pub(crate) fn is_dense(&self) -> bool {
        self.format == 0
    }

    pub(crate) fn num_bytes(&self) -> u64 {
        (self.codes.num_bytes() + self.scales.num_bytes()) as u64
    }

    /// What a kernel sees of it.
    pub(crate) fn view(&self) -> WeightView {
        WeightView {
            codes: self.codes.address(),
            scales: self.scales.address(),
            rows: self.rows as u32,
            cols: self.cols as u32,
            format: self.format,
            reserved: 0,
        }
    }
}

/// The header's `WeightFormat`.
fn format_code(format: WeightFormat) -> u32 {
    match format {
        WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => 0,
        WeightFormat::Q8_0 => 1,
        WeightFormat::Q4_0 => 2,
        WeightFormat::Q4_1 => 3,
    }
}

fn upload<D: Device>(
    device: &mut D,
    parts: &[HostMatrix<'_>],
    section: Section,
) -> Result<D::Memory, BackendError> {
    let num_bytes = parts.iter().map(|part| section.packed_bytes(part)).sum::<usize>().max(1);
    let memory = device.alloc(num_bytes, 0, "a weight")?;
    device.write_with(&memory, 0, num_bytes, &mut |at, piece| section.fill(parts, at, piece))?;
    Ok(memory)
}

impl Section {
    /// Packed bytes of one stored block. Divides the 4 KiB at whose multiples pieces begin.
    fn block_bytes(self, format: WeightFormat) -> usize {
        match self {
            Section::Dense(_) => 2 * format.block_len(),
            Section::Codes => format.block_bytes() - scale_bytes(format),
            Section::Scales => scale_bytes(format),
        }
    }

    fn packed_bytes(self, part: &HostMatrix<'_>) -> usize {
        part.rows * part.cols / part.format.block_len() * self.block_bytes(part.format)
    }

    /// The packed bytes from `at` on.
    fn fill(self, parts: &[HostMatrix<'_>], at: usize, piece: &mut [u8]) {
        let num_threads = thread::available_parallelism().map_or(1, |count| count.get()).min(MAX_THREADS);
        if piece.len() < THREADED_BYTES || num_threads == 1 {
            return self.fill_here(parts, at, piece);
        }
        // Every thread's share begins where a block of any format does.
        let share = piece.len().div_ceil(num_threads).next_multiple_of(64);
        thread::scope(|scope| {
            for (index, piece) in piece.chunks_mut(share).enumerate() {
                scope.spawn(move || self.fill_here(parts, at + index * share, piece));
            }
        });
    }

    fn fill_here(self, parts: &[HostMatrix<'_>], at: usize, piece: &mut [u8]) {
        let mut start = 0;
        for part in parts {
            let end = start + self.packed_bytes(part);
            let (low, high) = (start.max(at), end.min(at + piece.len()));
            if low < high {
                let (stored, packed) = (part.format.block_bytes(), self.block_bytes(part.format));
                let first = (low - start) / packed * stored;
                let blocks = &part.data[first..first + (high - low) / packed * stored];
                self.pack_blocks(part.format, blocks, &mut piece[low - at..high - at]);
            }
            start = end;
        }
    }

    fn pack_blocks(self, format: WeightFormat, blocks: &[u8], out: &mut [u8]) {
        let pairs =
            blocks.chunks_exact(format.block_bytes()).zip(out.chunks_exact_mut(self.block_bytes(format)));
        match self {
            Section::Codes => {
                pairs.for_each(|(block, out)| out.copy_from_slice(&block[scale_bytes(format)..]))
            }
            Section::Scales => {
                pairs.for_each(|(block, out)| out.copy_from_slice(&block[..scale_bytes(format)]))
            }
            Section::Dense(element) => match (format, element) {
                (WeightFormat::Bf16, Element::Bf16) | (WeightFormat::F16, Element::F16) => {
                    out.copy_from_slice(blocks);
                }
                _ => pairs.for_each(|(block, out)| {
                    for (index, two) in out.chunks_exact_mut(2).enumerate() {
                        two.copy_from_slice(&element.bytes(weight_of(format, block, index)));
                    }
                }),
            },
        }
    }
}

/// 0 for formats without blocks.
fn scale_bytes(format: WeightFormat) -> usize {
    match format {
        WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => 0,
        WeightFormat::Q8_0 | WeightFormat::Q4_0 => 2,
        WeightFormat::Q4_1 => 4,
    }
}

fn weight_of(format: WeightFormat, block: &[u8], index: usize) -> f32 {
    let half_at = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let nibble = |byte: u8| f32::from(if index < 16 { byte & 15 } else { byte >> 4 });
    match format {
        WeightFormat::F32 => f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
        WeightFormat::Bf16 => bf16::from_le_bytes([block[0], block[1]]).to_f32(),
        WeightFormat::F16 => half_at(0),
        WeightFormat::Q8_0 => half_at(0) * f32::from(block[2 + index] as i8),
        WeightFormat::Q4_0 => half_at(0) * (nibble(block[2 + index % 16]) - 8.0),
        WeightFormat::Q4_1 => half_at(0) * nibble(block[4 + index % 16]) + half_at(2),
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    /// Any bytes but NaN and infinity, in any format.
    fn matrix(format: WeightFormat, rows: usize, cols: usize, seed: u8) -> HostMatrix<'static> {
        let num_bytes = format.row_bytes(cols) * rows;
        let bytes = (0..num_bytes).map(|i| (i as u8).wrapping_mul(37).wrapping_add(seed) & 0x3B).collect();
        HostMatrix { format, rows, cols, data: Cow::Owned(bytes) }
    }

    fn packed(section: Section, parts: &[HostMatrix<'_>], piece_bytes: usize) -> Vec<u8> {
        let mut out = vec![0xEE; parts.iter().map(|part| section.packed_bytes(part)).sum()];
        for (index, piece) in out.chunks_mut(piece_bytes).enumerate() {
            section.fill(parts, index * piece_bytes, piece);
        }
        out
    }

    #[test]
    fn a_weight_is_the_same_in_whatever_pieces_it_is_laid_out() {
        let formats = WeightFormat::ALL;
        let mixed: Vec<_> =
            formats.iter().zip(1..).map(|(&format, seed)| matrix(format, 30, 1056, seed)).collect();
        let dense = Section::Dense(Element::Bf16);
        let whole = packed(dense, &mixed, usize::MAX);
        assert_eq!(whole.len(), 6 * 30 * 1056 * 2);
        // The last number of the last part, the slow way.
        let last = mixed.last().unwrap();
        let block = last.data.chunks_exact(last.format.block_bytes()).last().unwrap();
        let number = Element::Bf16.bytes(weight_of(last.format, block, last.format.block_len() - 1));
        assert_eq!(whole[whole.len() - 2..], number);
        assert_eq!(packed(dense, &mixed, 4096), whole);
        for section in [Section::Codes, Section::Scales] {
            let parts = [matrix(WeightFormat::Q4_1, 7, 1024, 3), matrix(WeightFormat::Q4_1, 400, 1024, 5)];
            assert_eq!(packed(section, &parts, 4096), packed(section, &parts, usize::MAX));
        }
    }

    #[test]
    fn threads_lay_out_what_one_does() {
        let parts = [matrix(WeightFormat::Q8_0, 900, 1024, 1), matrix(WeightFormat::F32, 100, 1024, 2)];
        let section = Section::Dense(Element::F16);
        let num_bytes = parts.iter().map(|part| section.packed_bytes(part)).sum::<usize>();
        assert!(num_bytes > THREADED_BYTES);
        let mut alone = vec![0; num_bytes];
        section.fill_here(&parts, 0, &mut alone);
        assert_eq!(packed(section, &parts, usize::MAX), alone);
    }
}
