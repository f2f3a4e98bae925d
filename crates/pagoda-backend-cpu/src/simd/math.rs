//! `exp` and `tanh` of sixteen lanes, and the one order in which lanes are summed.

use super::{LANES, Simd};

/// `e^x` within 2 units in the last place: `2^n * p(r)` with `r = x - n ln 2` in [-0.35, 0.35] and `p` the Taylor
/// polynomial of degree 7 (its remainder there is 6e-9). Below -87 it is 0, above 88 it stays at `e^88`; NaN stays NaN.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: arithmetic on registers; the caller has `S`.
    unsafe {
        let lowest = S::splat(-87.0);
        let clamped = S::max(lowest, S::min(S::splat(88.0), x));
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts: the first has 12 trailing zero bits, so that n times it is exact.
        let r = S::mul_add(n, S::splat(-0.693_359_4), clamped);
        let r = S::mul_add(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = S::mul_add(p, r, S::splat(coefficient));
        }
        S::select_less(x, lowest, S::splat(0.0), S::mul(p, S::exp2_whole(n)))
    }
}

/// `tanh x = 1 - 2 / (e^(2x) + 1)`; absolute error below 1e-6.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: arithmetic on registers; the caller has `S`.
    unsafe {
        let power = exp::<S>(S::add(x, x));
        S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(power, S::splat(1.0))))
    }
}

/// Lanes summed as a fixed tree.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn sum_lanes<S: Simd>(v: S::V) -> f32 {
    let mut lanes = [0.0f32; LANES];
    // SAFETY: the array has 16 lanes; the caller has `S`.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}
