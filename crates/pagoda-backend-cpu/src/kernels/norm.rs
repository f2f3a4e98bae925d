//! RMS norm of one row.
//!
//! ```text
//! out[i] = x[i] * (1 / sqrt(sum(x^2) / width + eps)) * weight[i]
//! ```
//!
//! The squares are summed per lane (channel mod 16) and the lanes as a fixed tree: the order depends on the width alone.

use crate::simd::{LANES, Simd, isa_entry, sum_lanes};

/// Rows to be normed.
pub(crate) struct NormTask {
    /// `[num_rows, stride]`, written where `residual` says so.
    pub(crate) x: *const f32,
    /// `[num_rows, stride]`: `residual += x` comes first and the sum is normed; null norms `x`.
    pub(crate) residual: *mut f32,
    /// `[width]`
    pub(crate) weight: *const f32,
    pub(crate) eps: f32,
    pub(crate) width: usize,
    pub(crate) num_rows: usize,
    /// `[num_rows, width]`; may be `x`.
    pub(crate) out: *mut f32,
}

isa_entry!(fn rms_norm(NormTask) = norm_rows);

#[inline(always)]
unsafe fn norm_rows<S: Simd>(task: &NormTask) {
    for row in 0..task.num_rows {
        let offset = row * task.width;
        let x = task.x.wrapping_add(offset);
        let out = task.out.wrapping_add(offset);
        // SAFETY: the row is inside the op.
        unsafe {
            if task.residual.is_null() {
                norm_row::<S>(x, task.weight, task.eps, task.width, out);
            } else {
                let residual = task.residual.wrapping_add(offset);
                add_row::<S>(x, residual, task.width);
                norm_row::<S>(residual, task.weight, task.eps, task.width, out);
            }
        }
    }
}

#[inline(always)]
unsafe fn add_row<S: Simd>(x: *const f32, residual: *mut f32, width: usize) {
    for first in (0..width).step_by(LANES) {
        let (count, to) = ((width - first).min(LANES), residual.wrapping_add(first));
        // SAFETY: `count` channels are left.
        unsafe {
            let sum = S::add(S::load_first(to, count), S::load_first(x.wrapping_add(first), count));
            S::store_first(to, sum, count);
        }
    }
}

/// Norms one row of `width` channels; `out` may be `x`.
///
/// # Safety
/// The CPU has `S`; `x`, `weight` and `out` have `width` numbers.
#[inline(always)]
pub(super) unsafe fn norm_row<S: Simd>(
    x: *const f32,
    weight: *const f32,
    eps: f32,
    width: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's promise; tails are masked.
    unsafe {
        let mut squares = S::splat(0.0);
        for first in (0..width).step_by(LANES) {
            let value = S::load_first(x.wrapping_add(first), (width - first).min(LANES));
            squares = S::mul_add(value, value, squares);
        }
        let factor = S::splat(1.0 / (sum_lanes::<S>(squares) / width as f32 + eps).sqrt());
        for first in (0..width).step_by(LANES) {
            let count = (width - first).min(LANES);
            let value = S::load_first(x.wrapping_add(first), count);
            let scaled = S::mul(S::mul(value, factor), S::load_first(weight.wrapping_add(first), count));
            S::store_first(out.wrapping_add(first), scaled, count);
        }
    }
}
