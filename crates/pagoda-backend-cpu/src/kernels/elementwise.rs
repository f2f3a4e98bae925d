//! The gated activation: `out[i] = act(gate[i]) * up[i]`.

use pagoda_backend::Activation;

use crate::simd::{LANES, Simd, exp, isa_entry};

/// Rows to be gated.
pub(crate) struct GateTask {
    /// `[num_rows, 2 * width]`: gate, then up.
    pub(crate) gate_up: *const f32,
    pub(crate) activation: Activation,
    pub(crate) width: usize,
    pub(crate) num_rows: usize,
    /// `[num_rows, width]`
    pub(crate) out: *mut f32,
}

isa_entry!(fn gated_activation(GateTask) = gate_rows);

#[inline(always)]
unsafe fn gate_rows<S: Simd>(task: &GateTask) {
    for row in 0..task.num_rows {
        let gate = task.gate_up.wrapping_add(row * 2 * task.width);
        let up = gate.wrapping_add(task.width);
        let out = task.out.wrapping_add(row * task.width);
        for first in (0..task.width).step_by(LANES) {
            let count = (task.width - first).min(LANES);
            // SAFETY: `count` channels of the row are left.
            unsafe {
                let x = S::load_first(gate.wrapping_add(first), count);
                let activated = match task.activation {
                    Activation::Silu => silu::<S>(x, x),
                    Activation::GeluTanh => gelu::<S>(x),
                };
                let product = S::mul(activated, S::load_first(up.wrapping_add(first), count));
                S::store_first(out.wrapping_add(first), product, count);
            }
        }
    }
}

/// `x * sigmoid(y)`
#[inline(always)]
unsafe fn silu<S: Simd>(x: S::V, y: S::V) -> S::V {
    // SAFETY: arithmetic on registers.
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), y)))) }
}

/// `0.5 x (1 + tanh y) = x * sigmoid(2 y)` with `y = sqrt(2/pi) (x + 0.044715 x^3)`.
#[inline(always)]
unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    // SAFETY: arithmetic on registers.
    unsafe {
        let cubic = S::mul(S::mul(x, x), S::mul(x, S::splat(0.044_715)));
        silu::<S>(x, S::mul(S::splat(TWICE_SQRT_2_OVER_PI), S::add(x, cubic)))
    }
}
