//! `out = x W^T + bias` over a range of weight panels, for any number of rows.
//!
//! ```text
//! out[r][n] = (sum over k in order, one fused multiply-add each) + bias[n]      lanes: sixteen n
//! ```
//!
//! Up to [`MAX_FEW_ROWS`] rows unpack a panel for themselves (`linear_few_rows`). More rows share a tile of at most
//! [`TILE_COLS`] columns x 16 outputs, unpacked once; partial sums of wider matrices rest in `out`. Storing an f32 and
//! loading it back changes nothing, so both ways sum each output in index order from 0 and give the same bits.
//!
//! A tile is read in order, 64 bytes for 12 multiply-adds, so L2 is near enough; tiles of 192 columns, which stay in L1,
//! cost more by their partial sums (of 102 GFLOP/s on Zen 3, 32 rows x 576 columns: 87 then, 92 now; 128 rows: 90, 98).
//!
//! The register tile is 6 rows x 16 outputs on AVX2 (12 of 16 registers accumulate; 8 loads feed 12 multiply-adds) and
//! 8 x 32 on AVX-512.

use std::ops::Range;

use pagoda_backend::WeightFormat;

use super::linear_few_rows::{MAX_FEW_ROWS, few_rows};
use super::unpack::{Unpack, for_format};
use crate::pack::{CpuWeight, Panel};
use crate::simd::{LANES, Simd, for_height, isa_entry};

/// Columns of a tile at most, 128 KiB; a multiple of 32.
const TILE_COLS: usize = 2048;
/// Bytes that come into a cache together.
const LINE: usize = 64;
/// f32 that `LinearTask::scratch` must hold.
pub(crate) const SCRATCH_LEN: usize = 2 * TILE_COLS * LANES;

/// One task of a linear op.
pub(crate) struct LinearTask<'a> {
    /// `[num_rows, weight.cols]`
    pub(crate) x: *const f32,
    pub(crate) num_rows: usize,
    pub(crate) weight: &'a CpuWeight,
    /// Which panels of `weight`.
    pub(crate) panels: Range<usize>,
    /// `[weight.rows]`, or null.
    pub(crate) bias: *const f32,
    /// `[num_rows, weight.rows]`; no other task writes the outputs of `panels`.
    pub(crate) out: *mut f32,
    /// [`SCRATCH_LEN`] numbers of this thread's own.
    pub(crate) scratch: *mut f32,
}

isa_entry!(fn linear(LinearTask<'_>) = linear_task);

#[inline(always)]
unsafe fn linear_task<S: Simd>(task: &LinearTask<'_>) {
    let mut index = task.panels.start;
    while index < task.panels.end {
        let panel = task.weight.panels[index];
        let has_pair = index + 1 < task.panels.end && task.weight.panels[index + 1].format == panel.format;
        // SAFETY: the panels lie in the weight; the rest is the caller's promise.
        unsafe {
            if task.num_rows <= MAX_FEW_ROWS {
                let step = if has_pair && task.num_rows == 1 { 2 } else { 1 };
                for_format!(panel.format, U => few_rows::<S, U>(task, index, step));
                index += step;
            } else {
                let step = if has_pair && S::HAS_WIDE_TILE { 2 } else { 1 };
                tiled::<S>(task, index, step);
                index += step;
            }
        }
    }
}

/// All rows x up to two panels, through tiles of f32.
#[inline(always)]
unsafe fn tiled<S: Simd>(task: &LinearTask<'_>, index: usize, num_panels: usize) {
    let cols = task.weight.cols;
    let num_tiles = cols.div_ceil(TILE_COLS).max(1);
    let tile_cols = cols.div_ceil(num_tiles).next_multiple_of(32);
    let mut first = 0;
    while first < cols || first == 0 {
        let depth = tile_cols.min(cols - first);
        let mut tiles = [task.scratch.cast_const(); 2];
        let mut outputs = [Output::new(task, task.weight.panels[index]); 2];
        for panel in 0..num_panels {
            let packed = task.weight.panels[index + panel];
            let bytes = task.weight.data[packed.offset..].as_ptr();
            let tile = task.scratch.wrapping_add(panel * TILE_COLS * LANES);
            outputs[panel] = Output::new(task, packed);
            // SAFETY: the panel holds `cols` columns; the tile has room for `TILE_COLS`.
            tiles[panel] = unsafe {
                for_format!(packed.format, U => tile_of::<S, U>(bytes, packed.format, first, depth, tile))
            };
        }
        let (x, is_first, is_last) = (task.x.wrapping_add(first), first == 0, first + depth >= cols);
        let upcoming = Upcoming::after(task.weight, index + num_panels - 1);
        // SAFETY: as above; the rows are the caller's promise.
        unsafe {
            if num_panels == 1 {
                let (weights, outputs) = ([tiles[0]], [outputs[0]]);
                all_rows::<S, 1>(task, Tile { x, depth, weights, outputs, upcoming, is_first, is_last });
            } else if S::HAS_WIDE_TILE {
                let (weights, outputs) = (tiles, outputs);
                all_rows::<S, 2>(task, Tile { x, depth, weights, outputs, upcoming, is_first, is_last });
            }
        }
        first += tile_cols;
    }
}

/// The `[depth, 16]` f32 of columns `first..first + depth`: in place for f32, unpacked into `tile` else.
#[inline(always)]
pub(super) unsafe fn tile_of<S: Simd, U: Unpack<S>>(
    panel: *const u8,
    format: WeightFormat,
    first: usize,
    depth: usize,
    tile: *mut f32,
) -> *const f32 {
    let mut block = panel.wrapping_add(first / U::BLOCK_COLS * U::BLOCK_BYTES);
    if format == WeightFormat::F32 {
        return block.cast();
    }
    let mut to = tile;
    for _ in 0..depth / U::BLOCK_COLS {
        // SAFETY: `first` and `depth` are whole blocks inside the panel.
        unsafe {
            let scales = U::scales(block);
            for group in 0..U::BLOCK_COLS / U::GROUP_COLS {
                let (even, odd) = U::columns(block, group, scales);
                S::store(to, even);
                if U::GROUP_COLS == 2 {
                    S::store(to.wrapping_add(LANES), odd);
                }
                to = to.wrapping_add(U::GROUP_COLS * LANES);
            }
        }
        block = block.wrapping_add(U::BLOCK_BYTES);
    }
    tile
}

/// Some columns of one or two panels, as f32.
#[derive(Clone, Copy)]
struct Tile<const PANELS: usize> {
    /// The first of these columns in row 0 of `x`.
    x: *const f32,
    depth: usize,
    /// `[depth, 16]` each.
    weights: [*const f32; PANELS],
    outputs: [Output; PANELS],
    upcoming: Upcoming,
    /// Whether the sums begin, and whether they end, with these columns.
    is_first: bool,
    is_last: bool,
}

/// Rows in register tiles of nearly equal height, so that no remainder runs at the latency of one row.
#[inline(always)]
unsafe fn all_rows<S: Simd, const PANELS: usize>(task: &LinearTask<'_>, tile: Tile<PANELS>) {
    let num_blocks = task.num_rows.div_ceil(S::TILE_ROWS);
    let mut row = 0;
    for block in 0..num_blocks {
        let height = (task.num_rows - row).div_ceil(num_blocks - block);
        macro_rules! block_of {
            ($rows:literal, $kind:ident) => {
                // SAFETY: `height` rows from `row` are inside the op.
                unsafe { register_tile::<S, $rows, PANELS>(task, tile, row) }
            };
        }
        for_height!(S, height, block_of);
        // SAFETY: asking for a line reads nothing.
        unsafe { tile.upcoming.prefetch::<S>(block, num_blocks) };
        row += height;
    }
}

/// The packed bytes that are unpacked next: asked for while the present ones are multiplied, so that unpacking does not
/// wait for memory.
#[derive(Clone, Copy)]
pub(super) struct Upcoming {
    first: *const u8,
    num_lines: usize,
}

impl Upcoming {
    /// What lies behind a panel is the next one; a panel of the same size is assumed.
    #[inline(always)]
    pub(super) fn after(weight: &CpuWeight, index: usize) -> Self {
        let panel = weight.panels[index];
        let len = LANES * panel.format.row_bytes(weight.cols);
        let first = weight.data.as_ptr().wrapping_add(panel.offset + len);
        Upcoming { first, num_lines: len.div_ceil(LINE) }
    }

    /// Asks for part `index` of `num_parts`.
    #[inline(always)]
    pub(super) unsafe fn prefetch<S: Simd>(self, index: usize, num_parts: usize) {
        for line in self.num_lines * index / num_parts..self.num_lines * (index + 1) / num_parts {
            // SAFETY: asking for a line reads nothing.
            unsafe { S::prefetch(self.first.wrapping_add(line * LINE)) };
        }
    }
}

#[inline(always)]
unsafe fn register_tile<S: Simd, const ROWS: usize, const PANELS: usize>(
    task: &LinearTask<'_>,
    tile: Tile<PANELS>,
    first_row: usize,
) {
    let cols = task.weight.cols;
    let x: [*const f32; ROWS] = std::array::from_fn(|row| tile.x.wrapping_add((first_row + row) * cols));
    // SAFETY: `x` has `depth` numbers per row, a tile `depth` columns, `out` every row.
    unsafe {
        let mut sums = [[S::splat(0.0); PANELS]; ROWS];
        if !tile.is_first {
            for row in 0..ROWS {
                for panel in 0..PANELS {
                    sums[row][panel] = tile.outputs[panel].load::<S>(first_row + row);
                }
            }
        }
        let mut weights = tile.weights;
        for column in 0..tile.depth {
            let mut lanes = [S::load(weights[0]); PANELS];
            for panel in 1..PANELS {
                lanes[panel] = S::load(weights[panel]);
            }
            for row in 0..ROWS {
                let value = S::splat(x[row].wrapping_add(column).read());
                for panel in 0..PANELS {
                    sums[row][panel] = S::mul_add(value, lanes[panel], sums[row][panel]);
                }
            }
            for weight in &mut weights {
                *weight = weight.wrapping_add(LANES);
            }
        }
        for row in 0..ROWS {
            for panel in 0..PANELS {
                let (sum, output) = (sums[row][panel], tile.outputs[panel]);
                let sum = if tile.is_last { output.add_bias::<S>(sum) } else { sum };
                output.store::<S>(first_row + row, sum);
            }
        }
    }
}

/// Where the sixteen outputs of a panel go.
#[derive(Clone, Copy)]
pub(super) struct Output {
    first: *mut f32,
    stride: usize,
    count: usize,
    bias: *const f32,
}

impl Output {
    #[inline(always)]
    pub(super) fn new(task: &LinearTask<'_>, panel: Panel) -> Self {
        Self::at(task.out, task.weight.rows, task.bias, panel)
    }

    /// In `out`, `[num_rows, stride]`, with a bias of `stride` numbers or null.
    #[inline(always)]
    pub(super) fn at(out: *mut f32, stride: usize, bias: *const f32, panel: Panel) -> Self {
        let bias = if bias.is_null() { bias } else { bias.wrapping_add(panel.first_row) };
        Output { first: out.wrapping_add(panel.first_row), stride, count: panel.num_rows, bias }
    }

    #[inline(always)]
    pub(super) unsafe fn load<S: Simd>(&self, row: usize) -> S::V {
        let from = self.first.wrapping_add(row * self.stride);
        // SAFETY: `count` outputs of the row are there.
        unsafe { S::load_first(from, self.count) }
    }

    #[inline(always)]
    pub(super) unsafe fn store<S: Simd>(&self, row: usize, v: S::V) {
        let to = self.first.wrapping_add(row * self.stride);
        // SAFETY: `count` outputs of the row are there.
        unsafe { S::store_first(to, v, self.count) }
    }

    #[inline(always)]
    pub(super) unsafe fn add_bias<S: Simd>(&self, sum: S::V) -> S::V {
        if self.bias.is_null() {
            return sum;
        }
        // SAFETY: the bias has a number for each of the `count` outputs.
        unsafe { S::add(sum, S::load_first(self.bias, self.count)) }
    }
}
