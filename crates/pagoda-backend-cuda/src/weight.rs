//! Packed weight matrices: dense ones as the backend's element type, block formats with codes and scales apart.

use half::{bf16, f16};
use pagoda_backend::{BackendError, HostMatrix, WeightFormat};

use crate::device::{Device, Memory};
use crate::element::Element;
use crate::params::WeightView;

/// A packed `[rows, cols]` matrix on the device.
pub struct CudaWeight<M> {
    codes: M,
    /// One byte where the format has none.
    scales: M,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    format: u32,
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
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for part in parts {
            assert_eq!(part.cols, cols, "stacked weights have one width");
            if format == 0 {
                append_dense(part, element, &mut codes);
            } else {
                append_blocks(part, &mut codes, &mut scales);
            }
        }
        if scales.is_empty() {
            scales.push(0);
        }
        let upload = |device: &mut D, bytes: &[u8]| {
            let memory = device.alloc(bytes.len(), 0, "a weight")?;
            device.write(&memory, 0, bytes).map(|()| memory)
        };
        Ok(CudaWeight {
            codes: upload(device, &codes)?,
            scales: upload(device, &scales)?,
            rows,
            cols,
            format,
        })
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

fn append_dense(part: &HostMatrix<'_>, element: Element, codes: &mut Vec<u8>) {
    for block in part.data.chunks_exact(part.format.block_bytes()) {
        let half_at = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let nibble = |byte: u8, index: usize| f32::from(if index < 16 { byte & 15 } else { byte >> 4 });
        let weight = |index: usize| match part.format {
            WeightFormat::F32 => f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            WeightFormat::Bf16 => bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            WeightFormat::F16 => half_at(0),
            WeightFormat::Q8_0 => half_at(0) * f32::from(block[2 + index] as i8),
            WeightFormat::Q4_0 => half_at(0) * (nibble(block[2 + index % 16], index) - 8.0),
            WeightFormat::Q4_1 => half_at(0) * nibble(block[4 + index % 16], index) + half_at(2),
        };
        element.encode((0..part.format.block_len()).map(weight), codes);
    }
}

/// Block formats begin with their scales.
fn append_blocks(part: &HostMatrix<'_>, codes: &mut Vec<u8>, scales: &mut Vec<u8>) {
    let scale_bytes = if part.format == WeightFormat::Q4_1 { 4 } else { 2 };
    for block in part.data.chunks_exact(part.format.block_bytes()) {
        scales.extend(&block[..scale_bytes]);
        codes.extend(&block[scale_bytes..]);
    }
}
