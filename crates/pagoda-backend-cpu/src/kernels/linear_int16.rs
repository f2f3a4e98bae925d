//! `out = x W^T + bias` for quantised weights with activations as int16 per block of 32: the arithmetic option `Int16`.
//!
//! ```text
//! x[k] ~ dx * xq[k]    dx = max|x| / 32767 of the block
//! out  = sum over blocks in order of  d dx (sum q xq)  +  m dx (sum xq)        lanes: sixteen outputs
//! ```
//!
//! The sum of a block is exact in int32 (at most 32 x 32767 x 128), two multiply-adds per lane and instruction, twice the
//! rate of f32. Blocks are added in index order by fused multiply-adds, the same for every number of rows, so the numerics
//! law holds here too.

use std::ops::Range;

use pagoda_backend::WeightFormat;

use super::linear::{Output, Upcoming};
use crate::pack::{BLOCK, CpuWeight};
use crate::simd::{LANES, Simd, for_height, isa_entry, sum_lanes};

/// Rows that unpack codes in registers rather than into a tile.
const DIRECT_ROWS: usize = 3;
/// Columns of a tile at most: 64 KiB of pairs.
const TILE_COLS: usize = 2048;
/// Largest magnitude of a quantised activation.
const MAX_CODE: f32 = 32767.0;
/// Pairs of a block.
const PAIRS: usize = BLOCK / 2;

/// Rows to be quantised.
pub(crate) struct QuantizeTask {
    /// `[num_rows, cols]`, `cols` whole blocks.
    pub(crate) x: *const f32,
    pub(crate) num_rows: usize,
    pub(crate) cols: usize,
    /// `[num_rows, cols]`
    pub(crate) codes: *mut i16,
    /// `[num_rows, cols / 32, 2]`: `dx`, and `dx * sum(xq)`.
    pub(crate) scales: *mut f32,
}

isa_entry!(fn quantize(QuantizeTask) = quantize_rows);

#[inline(always)]
unsafe fn quantize_rows<S: Simd>(task: &QuantizeTask) {
    let (mut x, mut codes, mut scales) = (task.x, task.codes, task.scales);
    for _ in 0..task.num_rows * (task.cols / BLOCK) {
        // SAFETY: a block is 32 numbers of the task's own.
        unsafe {
            let halves = [S::load(x), S::load(x.wrapping_add(LANES))];
            let mut lanes = [0.0f32; LANES];
            let magnitude = |v| S::max(S::sub(S::splat(0.0), v), v);
            S::store(lanes.as_mut_ptr(), S::max(magnitude(halves[0]), magnitude(halves[1])));
            let max = lanes.iter().fold(0.0, |max, &lane| if lane > max { lane } else { max });
            // 0 times infinity or NaN is NaN: a block that is not finite makes its outputs NaN.
            let zeros = S::mul_add(halves[1], S::splat(0.0), S::mul(halves[0], S::splat(0.0)));
            let factor = S::splat(if max > 0.0 { MAX_CODE / max } else { 0.0 });
            let rounded = [S::round(S::mul(halves[0], factor)), S::round(S::mul(halves[1], factor))];
            S::store_i16(codes, rounded[0]);
            S::store_i16(codes.wrapping_add(LANES), rounded[1]);
            // Whole numbers below 2^24: the sum is exact.
            let sum = sum_lanes::<S>(S::add(rounded[0], rounded[1]));
            let scale = max / MAX_CODE + sum_lanes::<S>(zeros);
            scales.write(scale);
            scales.wrapping_add(1).write(scale * sum);
        }
        x = x.wrapping_add(BLOCK);
        codes = codes.wrapping_add(BLOCK);
        scales = scales.wrapping_add(2);
    }
}

/// One task of a linear op.
pub(crate) struct Int16Task<'a> {
    /// `[num_rows, weight.cols]`, of [`quantize`].
    pub(crate) codes: *const i16,
    /// `[num_rows, weight.cols / 32, 2]`, of [`quantize`].
    pub(crate) scales: *const f32,
    pub(crate) num_rows: usize,
    /// Quantised panels only.
    pub(crate) weight: &'a CpuWeight,
    pub(crate) panels: Range<usize>,
    /// `[weight.rows]`, or null.
    pub(crate) bias: *const f32,
    /// `[num_rows, weight.rows]`; no other task writes the outputs of `panels`.
    pub(crate) out: *mut f32,
    /// `kernels::linear::SCRATCH_LEN` numbers of this thread's own.
    pub(crate) scratch: *mut f32,
}

isa_entry!(fn linear_int16(Int16Task<'_>) = linear_task);

#[inline(always)]
unsafe fn linear_task<S: Simd>(task: &Int16Task<'_>) {
    for index in task.panels.clone() {
        // SAFETY: the panels lie in the weight; the rest is the caller's promise.
        unsafe {
            match task.weight.panels[index].format {
                WeightFormat::Q8_0 => panel_of::<S, Bytes>(task, index),
                WeightFormat::Q4_0 => panel_of::<S, Nibbles<false>>(task, index),
                WeightFormat::Q4_1 => panel_of::<S, Nibbles<true>>(task, index),
                WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => {
                    unreachable!("a float panel in an integer product")
                }
            }
        }
    }
}

/// Codes of a panel's block as pairs of columns.
///
/// # Safety
/// The CPU has `S`; `block` points at a block of this format.
trait Codes<S: Simd> {
    const BLOCK_BYTES: usize;
    unsafe fn pair(block: *const u8, pair: usize) -> S::I;
    /// `d`, and `m` if the format has an addend.
    unsafe fn scales(block: *const u8) -> (S::V, Option<S::V>);
}

struct Bytes;

impl<S: Simd> Codes<S> for Bytes {
    const BLOCK_BYTES: usize = 34 * LANES;

    #[inline(always)]
    unsafe fn pair(block: *const u8, pair: usize) -> S::I {
        let first = block.wrapping_add(2 * LANES + 2 * pair * LANES);
        // SAFETY: sixteen codes per column follow the scales.
        unsafe { S::load_i8_pairs(first, first.wrapping_add(LANES)) }
    }

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> (S::V, Option<S::V>) {
        // SAFETY: a block begins with its scales.
        unsafe { (S::load_f16(block.cast()), None) }
    }
}

/// Q4_1, and Q4_0 as `d * q - 8 d`.
struct Nibbles<const HAS_MINIMUM: bool>;

impl<S: Simd, const HAS_MINIMUM: bool> Codes<S> for Nibbles<HAS_MINIMUM> {
    const BLOCK_BYTES: usize = if HAS_MINIMUM { 20 * LANES } else { 18 * LANES };

    #[inline(always)]
    unsafe fn pair(block: *const u8, pair: usize) -> S::I {
        let header = if HAS_MINIMUM { 4 * LANES } else { 2 * LANES };
        // SAFETY: sixteen bytes per pair of columns follow the scales.
        unsafe { S::load_nibble_pairs(block.wrapping_add(header + pair * LANES)) }
    }

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> (S::V, Option<S::V>) {
        // SAFETY: a block begins with its scales.
        unsafe {
            let d = S::load_f16(block.cast());
            let m = if HAS_MINIMUM {
                S::load_f16(block.wrapping_add(2 * LANES).cast())
            } else {
                S::mul(d, S::splat(-8.0))
            };
            (d, Some(m))
        }
    }
}

/// Some blocks of a panel.
#[derive(Clone, Copy)]
struct Tile {
    first_block: usize,
    num_blocks: usize,
    /// The first of these blocks.
    blocks: *const u8,
    /// Their codes as pairs, `[num_blocks, 16, 16]`; null takes them from `blocks`.
    pairs: *const i32,
    output: Output,
    upcoming: Upcoming,
    is_first: bool,
    is_last: bool,
}

#[inline(always)]
unsafe fn panel_of<S: Simd, C: Codes<S>>(task: &Int16Task<'_>, index: usize) {
    let panel = task.weight.panels[index];
    let bytes = task.weight.data[panel.offset..].as_ptr();
    let output = Output::at(task.out, task.weight.rows, task.bias, panel);
    let total = task.weight.cols / BLOCK;
    let is_direct = task.num_rows <= DIRECT_ROWS;
    let step = if is_direct { total.max(1) } else { TILE_COLS / BLOCK };
    for first_block in (0..total.max(1)).step_by(step) {
        let num_blocks = step.min(total - first_block);
        let blocks = bytes.wrapping_add(first_block * C::BLOCK_BYTES);
        let (is_first, is_last) = (first_block == 0, first_block + num_blocks >= total);
        let (pairs, upcoming) = (std::ptr::null(), Upcoming::after(task.weight, index));
        let mut tile = Tile { first_block, num_blocks, blocks, pairs, output, upcoming, is_first, is_last };
        // SAFETY: the blocks lie in the panel; the scratch holds the tile; the rows are the caller's promise.
        unsafe {
            if is_direct {
                direct_rows::<S, C>(task, tile);
            } else {
                tile.pairs = unpack::<S, C>(blocks, num_blocks, task.scratch.cast());
                all_rows::<S, C>(task, tile);
            }
        }
    }
}

#[inline(always)]
unsafe fn unpack<S: Simd, C: Codes<S>>(blocks: *const u8, num_blocks: usize, tile: *mut i32) -> *const i32 {
    let mut to = tile;
    for block in 0..num_blocks {
        for pair in 0..PAIRS {
            // SAFETY: the caller's promise.
            unsafe { S::store_i32(to, C::pair(blocks.wrapping_add(block * C::BLOCK_BYTES), pair)) };
            to = to.wrapping_add(LANES);
        }
    }
    tile
}

#[inline(always)]
unsafe fn direct_rows<S: Simd, C: Codes<S>>(task: &Int16Task<'_>, tile: Tile) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match task.num_rows {
            1 => register_tile::<S, C, 1, true>(task, tile, 0),
            2 => register_tile::<S, C, 2, true>(task, tile, 0),
            _ => register_tile::<S, C, 3, true>(task, tile, 0),
        }
    }
}

#[inline(always)]
unsafe fn all_rows<S: Simd, C: Codes<S>>(task: &Int16Task<'_>, tile: Tile) {
    let num_blocks = task.num_rows.div_ceil(S::TILE_ROWS);
    let mut row = 0;
    for block in 0..num_blocks {
        let height = (task.num_rows - row).div_ceil(num_blocks - block);
        macro_rules! block_of {
            ($rows:literal, $kind:ident) => {
                // SAFETY: `height` rows from `row` are inside the op.
                unsafe { register_tile::<S, C, $rows, false>(task, tile, row) }
            };
        }
        for_height!(S, height, block_of);
        // SAFETY: asking for a line reads nothing.
        unsafe { tile.upcoming.prefetch::<S>(block, num_blocks) };
        row += height;
    }
}

#[inline(always)]
unsafe fn register_tile<S: Simd, C: Codes<S>, const ROWS: usize, const IS_DIRECT: bool>(
    task: &Int16Task<'_>,
    tile: Tile,
    first_row: usize,
) {
    let cols = task.weight.cols;
    let mut codes: [*const i16; ROWS] = std::array::from_fn(|row| {
        task.codes.wrapping_add((first_row + row) * cols + tile.first_block * BLOCK)
    });
    let mut scales: [*const f32; ROWS] = std::array::from_fn(|row| {
        task.scales.wrapping_add(((first_row + row) * (cols / BLOCK) + tile.first_block) * 2)
    });
    let (mut block, mut pairs) = (tile.blocks, tile.pairs);
    // SAFETY: the rows' codes and scales, the tile's blocks and pairs are there.
    unsafe {
        let mut sums = [S::splat(0.0); ROWS];
        if !tile.is_first {
            for row in 0..ROWS {
                sums[row] = tile.output.load::<S>(first_row + row);
            }
        }
        for _ in 0..tile.num_blocks {
            let mut dots = [S::splat_i32(0); ROWS];
            for pair in 0..PAIRS {
                let weights = if IS_DIRECT {
                    C::pair(block, pair)
                } else {
                    S::load_i32(pairs.wrapping_add(pair * LANES))
                };
                for row in 0..ROWS {
                    let x = codes[row].cast::<Pair>().wrapping_add(pair).read();
                    dots[row] = S::add_products(dots[row], weights, S::splat_i32(x.0));
                }
            }
            let (d, m) = C::scales(block);
            for row in 0..ROWS {
                let scale = S::mul(d, S::splat(scales[row].read()));
                sums[row] = S::mul_add(S::to_f32(dots[row]), scale, sums[row]);
                if let Some(m) = m {
                    sums[row] = S::mul_add(m, S::splat(scales[row].wrapping_add(1).read()), sums[row]);
                }
                codes[row] = codes[row].wrapping_add(BLOCK);
                scales[row] = scales[row].wrapping_add(2);
            }
            block = block.wrapping_add(C::BLOCK_BYTES);
            pairs = pairs.wrapping_add(PAIRS * LANES);
        }
        for row in 0..ROWS {
            let sum = if tile.is_last { tile.output.add_bias::<S>(sums[row]) } else { sums[row] };
            tile.output.store::<S>(first_row + row, sum);
        }
    }
}

/// Two int16 at any even address.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
struct Pair(i32);
