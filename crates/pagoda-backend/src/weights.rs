//! Weight matrices as they lie in a checkpoint. Owns the formats' sizes; does not know how a backend packs them.

use std::borrow::Cow;
use std::fmt;

/// How the numbers of a weight matrix are stored. Block formats run along a row (the reduction axis).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit brain float: the upper half of an f32.
    Bf16,
    /// 16-bit IEEE float.
    F16,
    /// 32 weights: f16 scale `d`, 32 x i8; `w = d * q`.
    Q8_0,
    /// 32 weights: f16 scale `d`, 16 bytes; `w = d * (q - 8)`. The low nibbles are weights 0..16, the high 16..32.
    Q4_0,
    /// 32 weights: f16 scale `d`, f16 minimum `m`, 16 bytes; `w = d * q + m`. Nibbles as in `Q4_0`.
    Q4_1,
}

impl WeightFormat {
    /// Every format, for tests that must cover all.
    pub const ALL: [WeightFormat; 6] = [Self::F32, Self::Bf16, Self::F16, Self::Q8_0, Self::Q4_0, Self::Q4_1];

    /// Weights per block.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => 32,
        }
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
        }
    }

    /// Bytes of a row of `cols` weights.
    pub fn row_bytes(self, cols: usize) -> usize {
        assert_eq!(cols % self.block_len(), 0, "a row of {cols} is not whole {self} blocks");
        cols / self.block_len() * self.block_bytes()
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
        })
    }
}

/// A `[rows, cols]` weight matrix in host memory; `y = x W^T` reduces over `cols`.
#[derive(Clone, Debug)]
pub struct HostMatrix<'a> {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// How `data` is to be read.
    pub format: WeightFormat,
    /// `rows * format.row_bytes(cols)` bytes, little endian, borrowed from the checkpoint's mapping where possible.
    pub data: Cow<'a, [u8]>,
}

impl HostMatrix<'_> {
    /// The bytes of one row.
    pub fn row(&self, row: usize) -> &[u8] {
        let row_bytes = self.format.row_bytes(self.cols);
        &self.data[row * row_bytes..(row + 1) * row_bytes]
    }
}
