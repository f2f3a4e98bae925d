//! Passes over a row of logits: the largest of every 64 and whether all are finite; the sum of exponentials.

use crate::simd::{LANES, Simd, exp, isa_entry, sum_lanes};

/// Logits that share a maximum.
pub(crate) const GROUP: usize = 64;

/// One pass for maxima.
pub(crate) struct MaximaTask {
    /// `[len]`
    pub(crate) logits: *const f32,
    pub(crate) len: usize,
    /// `[len / GROUP, rounded up]`; a NaN is passed over.
    pub(crate) maxima: *mut f32,
    /// Receives whether every logit is finite.
    pub(crate) all_finite: *mut bool,
}

isa_entry!(fn group_maxima(MaximaTask) = maxima_pass);

#[inline(always)]
unsafe fn maxima_pass<S: Simd>(task: &MaximaTask) {
    // SAFETY: `len` logits and their groups are there.
    unsafe {
        let mut zeros = S::splat(0.0);
        for (group, first) in (0..task.len).step_by(GROUP).enumerate() {
            let mut maxima = S::splat(f32::NEG_INFINITY);
            for lane in (first..task.len.min(first + GROUP)).step_by(LANES) {
                let count = (task.len - lane).min(LANES);
                let value = S::load_first(task.logits.wrapping_add(lane), count);
                // 0 times infinity or NaN is NaN, and stays in the sum.
                zeros = S::mul_add(value, S::splat(0.0), zeros);
                let value = S::keep_lanes(value, 0, count as i32, S::splat(f32::NEG_INFINITY));
                maxima = S::max(value, maxima);
            }
            let mut lanes = [0.0f32; LANES];
            S::store(lanes.as_mut_ptr(), maxima);
            let mut max = f32::NEG_INFINITY;
            for lane in lanes {
                max = if lane > max { lane } else { max };
            }
            task.maxima.wrapping_add(group).write(max);
        }
        task.all_finite.write(sum_lanes::<S>(zeros) == 0.0);
    }
}

/// One pass for a sum of exponentials.
pub(crate) struct ExpSumTask {
    /// `[len]`; minus infinity counts as nothing.
    pub(crate) logits: *const f32,
    pub(crate) len: usize,
    /// The largest of them.
    pub(crate) max: f32,
    /// `1 / temperature`
    pub(crate) factor: f32,
    /// Receives `sum(e^((logit - max) * factor))`.
    pub(crate) sum: *mut f64,
}

isa_entry!(fn exp_sum(ExpSumTask) = exp_sum_pass);

/// Sums of 1,024 are kept in f32 and added in f64, so that the error does not grow with the vocabulary.
#[inline(always)]
unsafe fn exp_sum_pass<S: Simd>(task: &ExpSumTask) {
    const RUN: usize = 1024;
    let mut sum = 0.0;
    for first in (0..task.len).step_by(RUN) {
        // SAFETY: `len` logits are there.
        unsafe {
            let mut lanes = S::splat(0.0);
            for at in (first..task.len.min(first + RUN)).step_by(LANES) {
                let count = (task.len - at).min(LANES);
                let value = S::load_first(task.logits.wrapping_add(at), count);
                let distance = S::mul(S::sub(value, S::splat(task.max)), S::splat(task.factor));
                let weight = exp::<S>(distance);
                lanes = S::add(lanes, S::keep_lanes(weight, 0, count as i32, S::splat(0.0)));
            }
            sum += f64::from(sum_lanes::<S>(lanes));
        }
    }
    // SAFETY: the caller's place for the sum.
    unsafe { task.sum.write(sum) };
}
