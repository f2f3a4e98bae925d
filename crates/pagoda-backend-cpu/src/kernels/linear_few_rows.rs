//! A linear op of few rows: the weights' packed bytes are all that moves, and unpacking them is most of the work.

use super::linear::{LinearTask, Output, tile_of};
use super::unpack::Unpack;
use crate::simd::{LANES, Simd};

/// Rows that unpack a panel for themselves.
pub(super) const MAX_FEW_ROWS: usize = 6;
/// Columns that are unpacked together; a multiple of 32.
const UNPACKED_COLS: usize = 32;

/// All rows of the task, [`MAX_FEW_ROWS`] at most, x `num_panels` panels: 1, or 2 for a single row.
#[inline(always)]
pub(super) unsafe fn few_rows<S: Simd, U: Unpack<S>>(task: &LinearTask<'_>, index: usize, num_panels: usize) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match (task.num_rows, num_panels) {
            (1, 2) => in_registers::<S, U, 1, 2>(task, index),
            (1, _) => in_registers::<S, U, 1, 1>(task, index),
            (2, _) => in_registers::<S, U, 2, 1>(task, index),
            (3, _) => block_by_block::<S, U, 3>(task, index),
            (4, _) => block_by_block::<S, U, 4>(task, index),
            (5, _) => block_by_block::<S, U, 5>(task, index),
            _ => block_by_block::<S, U, 6>(task, index),
        }
    }
}

/// `ROWS` rows x `PANELS` panels, unpacked in registers.
#[inline(always)]
unsafe fn in_registers<S: Simd, U: Unpack<S>, const ROWS: usize, const PANELS: usize>(
    task: &LinearTask<'_>,
    index: usize,
) {
    let cols = task.weight.cols;
    let mut x: [*const f32; ROWS] = std::array::from_fn(|row| task.x.wrapping_add(row * cols));
    let mut blocks: [*const u8; PANELS] =
        std::array::from_fn(|panel| task.weight.data[task.weight.panels[index + panel].offset..].as_ptr());
    // SAFETY: `cols` is whole blocks, and each panel holds that many blocks; `x` has `cols` numbers per row.
    unsafe {
        let mut sums = [[S::splat(0.0); PANELS]; ROWS];
        for _ in 0..cols / U::BLOCK_COLS {
            let mut scales = [U::scales(blocks[0]); PANELS];
            for panel in 1..PANELS {
                scales[panel] = U::scales(blocks[panel]);
            }
            for group in 0..U::BLOCK_COLS / U::GROUP_COLS {
                let mut columns = [U::columns(blocks[0], group, scales[0]); PANELS];
                for panel in 1..PANELS {
                    columns[panel] = U::columns(blocks[panel], group, scales[panel]);
                }
                for row in 0..ROWS {
                    let value = S::splat(x[row].read());
                    for panel in 0..PANELS {
                        sums[row][panel] = S::mul_add(value, columns[panel].0, sums[row][panel]);
                    }
                    if U::GROUP_COLS == 2 {
                        let value = S::splat(x[row].wrapping_add(1).read());
                        for panel in 0..PANELS {
                            sums[row][panel] = S::mul_add(value, columns[panel].1, sums[row][panel]);
                        }
                    }
                    x[row] = x[row].wrapping_add(U::GROUP_COLS);
                }
            }
            for block in &mut blocks {
                *block = block.wrapping_add(U::BLOCK_BYTES);
            }
        }
        for panel in 0..PANELS {
            let output = Output::new(task, task.weight.panels[index + panel]);
            for row in 0..ROWS {
                output.store::<S>(row, output.add_bias::<S>(sums[row][panel]));
            }
        }
    }
}

/// `ROWS` rows x one panel: some columns are unpacked into 2 KiB, which stay in L1, and then multiplied. Unpacked beside so
/// many sums they would take more registers than AVX2 has, and a sum that is spilled grows at the pace of a store and a
/// load (4 rows of Q4_1: 1.3 times the time).
#[inline(always)]
unsafe fn block_by_block<S: Simd, U: Unpack<S>, const ROWS: usize>(task: &LinearTask<'_>, index: usize) {
    let cols = task.weight.cols;
    let panel = task.weight.panels[index];
    let output = Output::new(task, panel);
    let mut block = task.weight.data[panel.offset..].as_ptr();
    let mut x: [*const f32; ROWS] = std::array::from_fn(|row| task.x.wrapping_add(row * cols));
    // SAFETY: `cols` is whole blocks, and the panel holds that many; `x` has `cols` numbers per row.
    unsafe {
        let mut sums = [S::splat(0.0); ROWS];
        let mut left = cols;
        while left > 0 {
            let depth = left.min(UNPACKED_COLS);
            let columns = tile_of::<S, U>(block, panel.format, 0, depth, task.scratch);
            for column in 0..depth {
                let lanes = S::load(columns.wrapping_add(column * LANES));
                for row in 0..ROWS {
                    let value = S::splat(x[row].wrapping_add(column).read());
                    sums[row] = S::mul_add(value, lanes, sums[row]);
                }
            }
            x = x.map(|row| row.wrapping_add(depth));
            block = block.wrapping_add(depth / U::BLOCK_COLS * U::BLOCK_BYTES);
            left -= depth;
        }
        for row in 0..ROWS {
            output.store::<S>(row, output.add_bias::<S>(sums[row]));
        }
    }
}
