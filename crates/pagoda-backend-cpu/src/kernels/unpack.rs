//! Packed weights to f32 lanes: the one place where a format's numbers are made.
//!
//! The product of a single row and the tile of a large one both come through here, so a weight has the same bits in both.

use pagoda_backend::WeightFormat;

use crate::pack::BLOCK;
use crate::simd::{LANES, Simd};

/// How one format's panel bytes become columns of sixteen weights.
///
/// # Safety
/// The CPU has `S`; `block` points at `BLOCK_BYTES` bytes of a panel of this format.
pub(super) trait Unpack<S: Simd> {
    /// Columns of a block.
    const BLOCK_COLS: usize;
    /// Bytes of a block of a panel.
    const BLOCK_BYTES: usize;
    /// Columns that one load gives.
    const GROUP_COLS: usize;
    /// What the columns of a block share.
    type Scales: Copy;

    unsafe fn scales(block: *const u8) -> Self::Scales;
    /// Columns `GROUP_COLS * group ..`; the second is meaningless where `GROUP_COLS` is 1.
    unsafe fn columns(block: *const u8, group: usize, scales: Self::Scales) -> (S::V, S::V);
}

pub(super) struct F32;
pub(super) struct Bf16;
pub(super) struct F16;
pub(super) struct Q8;
pub(super) struct Q40;
pub(super) struct Q41;

macro_rules! float_format {
    ($name:ident, $format:ident, $load:ident) => {
        impl<S: Simd> Unpack<S> for $name {
            const BLOCK_COLS: usize = 1;
            const BLOCK_BYTES: usize = size_of_panel_block(WeightFormat::$format);
            const GROUP_COLS: usize = 1;
            type Scales = ();

            #[inline(always)]
            unsafe fn scales(_block: *const u8) {}

            #[inline(always)]
            unsafe fn columns(block: *const u8, _group: usize, _scales: ()) -> (S::V, S::V) {
                // SAFETY: a block is sixteen numbers.
                let column = unsafe { S::$load(block.cast()) };
                (column, column)
            }
        }
    };
}

const fn size_of_panel_block(format: WeightFormat) -> usize {
    LANES
        * match format {
            WeightFormat::F32 => 4,
            WeightFormat::Bf16 | WeightFormat::F16 => 2,
            WeightFormat::Q8_0 => 34,
            WeightFormat::Q4_0 => 18,
            WeightFormat::Q4_1 => 20,
        }
}

float_format!(F32, F32, load);
float_format!(Bf16, Bf16, load_bf16);
float_format!(F16, F16, load_f16);

impl<S: Simd> Unpack<S> for Q8 {
    const BLOCK_COLS: usize = BLOCK;
    const BLOCK_BYTES: usize = size_of_panel_block(WeightFormat::Q8_0);
    const GROUP_COLS: usize = 1;
    type Scales = S::V;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> S::V {
        // SAFETY: a block begins with sixteen f16.
        unsafe { S::load_f16(block.cast()) }
    }

    #[inline(always)]
    unsafe fn columns(block: *const u8, group: usize, scales: S::V) -> (S::V, S::V) {
        // SAFETY: sixteen codes per column follow the scales.
        let column = unsafe { S::mul(S::load_i8(block.wrapping_add(2 * LANES + group * LANES)), scales) };
        (column, column)
    }
}

macro_rules! nibble_format {
    ($name:ident, $format:ident, $header:expr, |$block:ident| $scales:expr) => {
        impl<S: Simd> Unpack<S> for $name {
            const BLOCK_COLS: usize = BLOCK;
            const BLOCK_BYTES: usize = size_of_panel_block(WeightFormat::$format);
            const GROUP_COLS: usize = 2;
            /// Factor and addend: `w = d * q + m`.
            type Scales = (S::V, S::V);

            #[inline(always)]
            unsafe fn scales($block: *const u8) -> (S::V, S::V) {
                // SAFETY: a block begins with its scales.
                unsafe { $scales }
            }

            #[inline(always)]
            unsafe fn columns(block: *const u8, group: usize, (d, m): (S::V, S::V)) -> (S::V, S::V) {
                // SAFETY: sixteen bytes per pair of columns follow the scales.
                unsafe {
                    let (even, odd) = S::load_nibbles(block.wrapping_add($header + group * LANES));
                    (S::mul_add(even, d, m), S::mul_add(odd, d, m))
                }
            }
        }
    };
}

nibble_format!(Q40, Q4_0, 2 * LANES, |block| {
    let d = S::load_f16(block.cast());
    // `d * q - 8 d` is exact: 11 + 4 bits.
    (d, S::mul(d, S::splat(-8.0)))
});
nibble_format!(Q41, Q4_1, 4 * LANES, |block| {
    (S::load_f16(block.cast()), S::load_f16(block.wrapping_add(2 * LANES).cast()))
});

/// Calls `$function::<.., U>` with the [`Unpack`] type of a format.
macro_rules! for_format {
    ($format:expr, $U:ident => $call:expr) => {
        match $format {
            WeightFormat::F32 => {
                type $U = $crate::kernels::unpack::F32;
                $call
            }
            WeightFormat::Bf16 => {
                type $U = $crate::kernels::unpack::Bf16;
                $call
            }
            WeightFormat::F16 => {
                type $U = $crate::kernels::unpack::F16;
                $call
            }
            WeightFormat::Q8_0 => {
                type $U = $crate::kernels::unpack::Q8;
                $call
            }
            WeightFormat::Q4_0 => {
                type $U = $crate::kernels::unpack::Q40;
                $call
            }
            WeightFormat::Q4_1 => {
                type $U = $crate::kernels::unpack::Q41;
                $call
            }
        }
    };
}
pub(super) use for_format;
