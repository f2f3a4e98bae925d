//! Weight formats by their definition ([`WeightFormat`]'s own words), one number at a time.

use half::{bf16, f16};
use pagoda_backend::{HostMatrix, WeightFormat};

/// The `[rows, cols]` numbers of a matrix, exact but for one rounding to f32.
pub fn dequantize(matrix: &HostMatrix<'_>) -> Vec<f32> {
    let mut out = Vec::with_capacity(matrix.rows * matrix.cols);
    for row in 0..matrix.rows {
        for block in matrix.row(row).chunks_exact(matrix.format.block_bytes()) {
            for index in 0..matrix.format.block_len() {
                out.push(weight(matrix.format, block, index) as f32);
            }
        }
    }
    out
}

fn weight(format: WeightFormat, block: &[u8], index: usize) -> f64 {
    let half_at = |byte: usize| f16::from_le_bytes([block[byte], block[byte + 1]]).to_f64();
    let nibble = |codes: &[u8]| {
        let byte = codes[index % 16];
        f64::from(if index < 16 { byte & 15 } else { byte >> 4 })
    };
    match format {
        WeightFormat::F32 => f64::from(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
        WeightFormat::Bf16 => bf16::from_le_bytes([block[0], block[1]]).to_f64(),
        WeightFormat::F16 => half_at(0),
        WeightFormat::Q8_0 => half_at(0) * f64::from(block[2 + index] as i8),
        WeightFormat::Q4_0 => half_at(0) * (nibble(&block[2..]) - 8.0),
        WeightFormat::Q4_1 => half_at(0) * nibble(&block[4..]) + half_at(2),
    }
}
